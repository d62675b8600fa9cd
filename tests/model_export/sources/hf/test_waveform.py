"""Wav2Vec2 and its relatives, served, against transformers itself, whose every clip is alone."""

from pathlib import Path

import pytest
import torch

from service.inference.windows import embed
from tests.model_export.sources.hf.checkpoints import WAVEFORM, noises, write_waveform
from tests.model_export.sources.hf.served import assert_same, imported, published, together

LENGTHS_S = (0.0251, 0.3137, 1.0, 2.37, 4.0)


@pytest.mark.parametrize("name", WAVEFORM)
def test_a_clip_is_what_transformers_makes_of_it_alone_and_in_a_batch(name: str, tmp_path: Path) -> None:
    reference = write_waveform(tmp_path / "source", name)
    model = imported(tmp_path / "source", tmp_path / "model", "--fuse", "1,2")
    clips = noises(*LENGTHS_S)
    for clip, in_batch in zip(clips, together(model, clips), strict=True):
        alone = embed(model.run, model.card, [model.logmel(clip)], frames=True)
        states = published(reference, tmp_path / "source", clip).hidden_states
        expected = torch.cat([states[1], states[2]], dim=2)[0]
        assert alone.frames is not None
        assert alone.frames.shape == expected.shape
        assert_same(alone.vector, expected.mean(dim=0).numpy())
        assert_same(in_batch, expected.mean(dim=0).numpy())
    assert model.card.licence == "Apache-2.0"
    assert model.card.frame_period_ms == 20
