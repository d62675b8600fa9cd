from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_export.errors import ExportError
from model_export.sources.training_run import load_run
from tests.model_export.conftest import MEAN, STD, random_encoder


@pytest.mark.parametrize(
    ("average_decay", "asked_for", "expected"),
    [(0.0, None, "last"), (0.999, None, "average"), (0.999, "last", "last"), (0.0, "average", "average")],
)
def test_the_average_is_taken_where_the_recipe_keeps_one(
    make_run: Callable[..., Path], average_decay: float, asked_for: str | None, expected: str
) -> None:
    trained = load_run(make_run(average_decay), weights=asked_for)  # type: ignore[arg-type]
    bias = random_encoder("byola-2022").state_dict()["fc.0.bias"] + (1.0 if expected == "average" else 0.0)
    torch.testing.assert_close(trained.encoder.state_dict()["fc.0.bias"], bias)
    assert trained.training["weights"] == expected
    assert not trained.encoder.training


def test_what_the_run_tells_of_its_training_is_kept_without_paths(make_run: Callable[..., Path]) -> None:
    trained = load_run(make_run())
    assert (trained.mean, trained.std) == (MEAN, STD)
    assert trained.parameters == {"n_mels": 64, "d": 1280}
    assert {key: trained.training[key] for key in ("clips", "hours", "commit", "step", "segments_seen")} == {
        "clips": 5, "hours": 0.1, "commit": "abc", "step": 20, "segments_seen": 2560
    }  # fmt: skip
    assert trained.training["unreadable"] == 1
    assert "recipe" in trained.training


def test_weights_that_are_not_the_encoders_are_refused_by_name(make_run: Callable[..., Path]) -> None:
    state = dict(random_encoder("byola-2022").state_dict())
    state["fc.9.weight"] = state.pop("fc.3.bias")
    with pytest.raises(ExportError, match=r"lacks fc\.3\.bias; it has fc\.9\.weight"):
        load_run(make_run(average=state), weights="average")


def test_weights_that_are_not_finite_are_refused(make_run: Callable[..., Path]) -> None:
    state = dict(random_encoder("byola-2022").state_dict())
    state["fc.0.bias"] = torch.full((2048,), torch.nan)
    with pytest.raises(ExportError, match=r"fc\.0\.bias holds NaN"):
        load_run(make_run(average=state), weights="average")


def test_what_is_no_run_is_said(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not the folder of a pre-training run"):
        load_run(tmp_path)
    run = make_run()
    (run / "data.json").unlink()
    with pytest.raises(ExportError, match=r"data\.json cannot be read"):
        load_run(run)
    torch.save({"recipe": {}}, run / "checkpoint.pt")
    with pytest.raises(ExportError, match="'optimisation' is missing"):
        load_run(run)
    (run / "checkpoint.pt").write_bytes(b"half a checkp")
    with pytest.raises(ExportError, match="cannot be read"):
        load_run(run)
