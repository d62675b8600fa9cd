"""CLAP's audio tower, served, against transformers itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor

from model_export.errors import ExportError
from model_export.sources.hf.load import load_hf
from service.inference.windows import embed
from tests.model_export.sources.hf.checkpoints import CLAP_RATE, noises, write_clap
from tests.model_export.sources.hf.served import SAME, assert_same, imported, together

LENGTHS_S = (0.013, 0.3137, 1.0, 1.37, 2.0)


@torch.no_grad()
def published(model: Any, source: Path, clip: NDArray[np.float32]) -> NDArray[np.float32]:
    extractor = AutoFeatureExtractor.from_pretrained(source)
    inputs = extractor(clip, sampling_rate=CLAP_RATE, return_tensors="pt")
    features = inputs.input_features.float()
    return model.get_audio_features(features, is_longer=inputs.is_longer).pooler_output[0].numpy()


@pytest.mark.parametrize(
    ("fusion", "padding"), [(False, "repeatpad"), (False, "repeat"), (False, "pad"), (True, "repeatpad")]
)
def test_a_clip_is_what_get_audio_features_makes_of_it(fusion: bool, padding: str, tmp_path: Path) -> None:
    reference = write_clap(tmp_path / "source", fusion=fusion, padding=padding)
    model = imported(tmp_path / "source", tmp_path / "model")
    clips = noises(*LENGTHS_S, rate=CLAP_RATE)
    for clip, in_batch in zip(clips, together(model, clips), strict=True):
        expected = published(reference, tmp_path / "source", clip)
        assert_same(embed(model.run, model.card, [model.logmel(clip)]).vector, expected)
        assert_same(in_batch, expected)
    assert (model.card.sample_rate, model.card.embedding_size) == (CLAP_RATE, 24)
    assert model.card.windows.frames == 200


@torch.no_grad()
@pytest.mark.parametrize("fusion", [False, True])
def test_fused_stages_are_the_means_of_what_transformers_gives(fusion: bool, tmp_path: Path) -> None:
    reference = write_clap(tmp_path, fusion=fusion)
    encoder = load_hf(str(tmp_path), fuse=(1, 2))[0].encoder
    (clip,) = noises(0.75, rate=CLAP_RATE)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    inputs = extractor(clip, sampling_rate=CLAP_RATE, return_tensors="pt")
    states = reference.audio_model(
        inputs.input_features.float(), is_longer=inputs.is_longer, output_hidden_states=True
    ).hidden_states
    expected = torch.cat([states[1].mean(dim=(2, 3)), states[2].mean(dim=(2, 3))], dim=1)
    x = torch.from_numpy(clip).reshape(-1, 80).T[None, None]
    found = encoder(x, torch.tensor([len(clip)]))[:, 0]
    torch.testing.assert_close(found, expected, atol=SAME, rtol=SAME)


@pytest.mark.parametrize(
    ("fusion", "change", "sentence"),
    [
        (False, {"truncation": "fusion"}, "truncation 'fusion', and config.json enable_fusion False"),
        (False, {"feature_size": 64}, "takes 32 bands, and preprocessor_config.json makes 64"),
        (False, {"padding": "mirror"}, "padding 'mirror', none of repeatpad, repeat, pad"),
    ],
)
def test_an_extractor_of_another_network_is_refused(
    fusion: bool, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_clap(tmp_path, fusion=fusion)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ExportError, match=sentence):
        load_hf(str(tmp_path))
