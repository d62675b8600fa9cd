"""The log-mels within the graph, against the extractors of transformers, at their published sizes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ClapFeatureExtractor, WhisperFeatureExtractor

from model_export.clips import FIXTURES, read_clips
from model_export.sources.hf.clap import ClapEncoder
from model_export.sources.hf.spectrogram import MelSpectrogram
from model_export.sources.hf.whisper import WhisperEncoder


def of(extractor: Any, filters: Any, n_fft: int) -> Any:
    return SimpleNamespace(_mel=MelSpectrogram(filters, n_fft=n_fft, hop_length=extractor.hop_length))


def test_whispers_log_mel_is_that_of_its_extractor() -> None:
    extractor = WhisperFeatureExtractor()
    encoder = of(extractor, extractor.mel_filters, 400)
    for clip in read_clips(FIXTURES, sample_rate=16_000, at_most=5):
        samples = np.pad(clip, (0, extractor.n_samples - len(clip)))
        found = WhisperEncoder.features(encoder, torch.from_numpy(samples[None]))
        expected = extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)  # in fours of powers of ten


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_claps_log_mel_is_that_of_its_extractor(truncation: str) -> None:
    extractor = ClapFeatureExtractor(truncation=truncation, frequency_min=50, padding="pad")
    filters = extractor.mel_filters if truncation == "fusion" else extractor.mel_filters_slaney
    for clip in read_clips(FIXTURES, sample_rate=48_000, at_most=5):
        samples = np.pad(clip, (0, extractor.nb_max_samples - len(clip)))
        found = ClapEncoder.features(of(extractor, filters, 1024), torch.from_numpy(samples[None]))
        expected = extractor(clip, sampling_rate=48_000, return_tensors="pt").input_features[:, :1]
        apart = (found - expected.float()).abs()  # dB; the extractor computes in float64
        assert float(apart.mean()) < 1e-3
        assert float(apart.max()) < 0.3  # where a band is 100 dB below the loudest
