"""A checkpoint is there as a whole or not at all."""

import pickle
from pathlib import Path

import pytest
import torch

from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError

STATE = {
    "step": 3,
    "weights": torch.arange(4.0),
    "recipe": {"crop": (0.6, 1.5), "name": "tiny"},
    "past": [1, 2.5],
}


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    loaded = checkpoint.load(tmp_path)
    assert torch.equal(loaded.pop("weights"), torch.arange(4.0))
    assert loaded == {name: value for name, value in STATE.items() if name != "weights"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"a": Path("x")}, "Python objects or a program"),
        (b"hello", "is no such file"),
        (b"", "is no such file"),
    ],
)
def test_what_cannot_be_loaded_is_told_without_the_advice_to_run_it(
    state: object, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "checkpoint.pt"
    if isinstance(state, bytes):
        file.write_bytes(state)
    else:
        torch.save(state, file)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        checkpoint.load(tmp_path)
    assert "weights_only" not in str(refused.value)


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, STATE)

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, STATE | {"step": 4})
    assert checkpoint.load(tmp_path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt does not exist"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_that_was_cut_off_is_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path)


class Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_checkpoint_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"step": Intruder()}, tmp_path / "checkpoint.pt", pickle_module=pickle)
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path)
    assert "executed" not in capsys.readouterr().out
