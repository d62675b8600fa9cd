"""Whisper's encoder, served, against transformers itself."""

import json
from pathlib import Path

import pytest
import torch

from model_export.errors import ExportError
from model_export.sources.hf.load import load_hf
from service.inference.windows import embed
from tests.model_export.sources.hf.checkpoints import noises, write_whisper
from tests.model_export.sources.hf.served import assert_same, imported, published, together

LENGTHS_S = (0.013, 0.3137, 1.0, 2.37, 3.0)


def test_a_clip_is_the_mean_of_its_own_frames_alone_and_in_a_batch(tmp_path: Path) -> None:
    reference = write_whisper(tmp_path / "source").encoder
    model = imported(tmp_path / "source", tmp_path / "model", "--fuse", "1,2")
    clips = noises(*LENGTHS_S)
    for clip, in_batch in zip(clips, together(model, clips), strict=True):
        alone = embed(model.run, model.card, [model.logmel(clip)], frames=True)
        states = published(reference, tmp_path / "source", clip).hidden_states
        n = -(-len(clip) // 320)
        expected = torch.cat([states[1], states[2]], dim=2)[0, :n]
        assert alone.frames is not None
        assert alone.frames.shape == expected.shape
        assert_same(alone.vector, expected.mean(dim=0).numpy())
        assert_same(in_batch, expected.mean(dim=0).numpy())
    assert (model.card.windows.frames, model.card.frame_period_ms) == (300, 20)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chunk_length": 30, "n_samples": 480_000, "nb_max_frames": 3000}, "takes 40 bands of 300 frames"),
        ({"dither": 0.001}, "adds noise"),
    ],
)
def test_an_extractor_of_another_network_is_refused(
    change: dict[str, float], sentence: str, tmp_path: Path
) -> None:
    write_whisper(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ExportError, match=sentence):
        load_hf(str(tmp_path))
