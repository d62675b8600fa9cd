"""Folders of sounds, and what a command gives to the model, for the tests of `embed` and `classify`."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.bulk.offline import FileResult, Location
from service.inference.model import Model


@pytest.fixture
def make_sounds(tmp_path: Path, fixtures_dir: Path) -> Callable[[Sequence[str]], Path]:
    """make_sounds(names) is a folder of these fixtures and of text.wav, which is none."""

    def make(names: Sequence[str]) -> Path:
        folder = tmp_path / "sounds"
        folder.mkdir()
        for name in (*names, "invalid/text.wav"):
            shutil.copy(fixtures_dir / name, folder)
        return folder

    return make


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, str], list[str]]:
    """note(command, function) is a list that will hold the names of the files that the command has the
    function read."""

    def noting(command: ModuleType, function: str) -> list[str]:
        names: list[str] = []
        read = getattr(command, function)

        def noted(model: Model, paths: Iterable[Location], **options: Any) -> Iterator[FileResult]:
            for result in read(model, paths, **options):
                names.append(Path(result.path).name)
                yield result

        monkeypatch.setattr(command, function, noted)
        return names

    return noting
