"""AST as transformers has it, served, against transformers itself."""

from pathlib import Path

import torch

from service.inference.windows import embed
from tests.model_export.sources.hf.checkpoints import noises, write_ast
from tests.model_export.sources.hf.served import assert_same, imported, published, together

LENGTHS_S = (0.026, 0.3137, 1.0, 2.1)


def test_a_clip_is_the_mean_of_both_tokens_alone_and_in_a_batch(tmp_path: Path) -> None:
    reference = write_ast(tmp_path / "source")
    model = imported(tmp_path / "source", tmp_path / "model", "--fuse", "1,2")
    clips = noises(*LENGTHS_S)
    for clip, in_batch in zip(clips, together(model, clips), strict=True):
        outputs = published(reference, tmp_path / "source", clip)
        middle = reference.layernorm(outputs.hidden_states[1])[0, :2].mean(dim=0)
        expected = torch.cat([middle, outputs.pooler_output[0]]).numpy()
        assert_same(embed(model.run, model.card, [model.logmel(clip)]).vector, expected)
        assert_same(in_batch, expected)
    assert (model.card.windows.frames, model.card.windows.kind) == (216, "independent")
