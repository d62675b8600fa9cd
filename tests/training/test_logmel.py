"""The log-mel of training against float64 arithmetic and against the server's own."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders.frontend import BYOLA, EFFICIENTAT, Frontend, mel_filterbank, window_of
from service.sound import logmel as served
from service.sound.audio import decode
from training.logmel import LogMel

CLIPS = [
    "speech_16k_mono.flac",
    "trumpet_44k1_stereo.ogg",
    "dog_bark_44k1_mono.ogg",
    "digit7_8k_mono_pcm16.wav",
    "silence_1s_16k_mono.wav",
]


@pytest.fixture(scope="module")
def logmel() -> LogMel:
    return LogMel(BYOLA)


def in_float64(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """(samples,) -> (64, T), written down from the definition."""
    filters = librosa.filters.mel(
        sr=16_000, n_fft=1024, n_mels=64, fmin=60, fmax=7800, htk=False, norm="slaney", dtype=np.float64
    )
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    padded = np.pad(waveform.astype(np.float64), 512, mode="reflect")
    frames = np.stack([padded[start : start + 1024] for start in range(0, len(waveform) + 1, 160)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.log(filters @ power.T + 1.1920929e-07)


def assert_agree(x: NDArray[np.floating], reference: NDArray[np.floating]) -> None:
    """To 1e-4, but for the few values near the floor in a loud frame: float32 resolves 1e-7 of the loudest
    bin's amplitude, which is some thousandths of a band 100 dB below it."""
    difference = np.abs(x - reference)
    assert np.quantile(difference, 0.99) < 1e-4
    assert difference.max() < 1e-3


@pytest.mark.parametrize("name", CLIPS)
def test_the_log_mel_is_that_of_float64(logmel: LogMel, fixtures_dir: Path, name: str) -> None:
    waveform = decode(fixtures_dir / name, sample_rate=16_000).samples
    x = logmel(torch.from_numpy(waveform)[None])
    assert x.shape == (1, 1, 64, 1 + len(waveform) // 160)
    assert_agree(x[0, 0].numpy(), in_float64(waveform))


@pytest.mark.parametrize("frontend", [BYOLA, EFFICIENTAT], ids=["byola", "efficientat"])
@pytest.mark.parametrize("name", CLIPS)
def test_the_log_mel_is_the_servers(fixtures_dir: Path, name: str, frontend: Frontend) -> None:
    waveform = decode(fixtures_dir / name, sample_rate=frontend.sample_rate).samples
    numbers = {name: getattr(frontend, name) for name in served.Frontend.model_fields}
    server = served.LogMel(served.Frontend(**numbers), window_of(frontend), mel_filterbank(frontend))
    logmel = LogMel(frontend)
    x = logmel(torch.from_numpy(waveform)[None])[0, 0].numpy()
    assert x.shape[1] == logmel.frames(len(waveform))
    assert_agree(x, server(waveform))


def test_silence_is_the_logarithm_of_the_floor(logmel: LogMel) -> None:
    x = logmel(torch.zeros(1, 16_000))
    assert torch.allclose(x, torch.tensor(-15.942385), atol=1e-6)


def test_a_segment_of_950_ms_has_96_frames(logmel: LogMel) -> None:
    assert logmel(torch.zeros(2, 15_200)).shape == (2, 1, 64, 96)


def test_twice_the_amplitude_is_four_times_the_power(logmel: LogMel) -> None:
    x = 0.1 * torch.randn(1, 16_000)
    torch.testing.assert_close(
        logmel(2 * x) - logmel(x), torch.full((1, 1, 64, 101), np.log(4.0)), atol=1e-3, rtol=0
    )
