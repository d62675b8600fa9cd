"""A taught head's file becomes part of a model folder."""

import shutil
from pathlib import Path

import pytest

from service.__main__ import main
from service.inference.model import Model


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    copy: Path = shutil.copytree(toy_folder, tmp_path / "toy")
    return copy


def test_the_folder_serves_the_head_that_was_added(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "doors.safetensors"
    shutil.copy(folder / "heads" / "pets.safetensors", file)
    assert main(["add-head", str(folder), str(file)]) == 0
    assert "the head doors with 3 labels" in capsys.readouterr().out
    assert list(Model.load(folder, device="cpu").heads) == ["pets", "moods", "doors"]


@pytest.mark.parametrize("name", ["no_head.safetensors", ".hidden.safetensors", "doors.txt"])
def test_what_is_no_head_changes_nothing(
    folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"no head")
    card = (folder / "card.json").read_bytes()
    assert main(["add-head", str(folder), str(tmp_path / name)]) == 1
    assert "error: " in capsys.readouterr().err
    assert (folder / "card.json").read_bytes() == card
    assert not (folder / "heads" / name).exists()
