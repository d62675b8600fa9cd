from pathlib import Path

import pytest

from model_export.errors import ExportError
from model_export.folder import new_folder


def write_old(out: Path) -> None:
    (out / "heads").mkdir(parents=True)
    (out / "card.json").write_text("old")
    (out / "heads" / "esc50.safetensors").write_text("old")


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    out = tmp_path / "models" / "a"
    with new_folder(out, force=False) as folder:
        (folder / "card.json").write_text("new")
        assert not out.exists()
    assert everything_in(tmp_path / "models") == ["a", "a/card.json"]


@pytest.mark.parametrize("error", [ExportError, KeyboardInterrupt, OSError])
def test_nothing_is_left_of_what_fails(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "a"
    write_old(out)
    before = everything_in(tmp_path)

    def fail() -> None:
        with new_folder(out, force=True) as folder:
            (folder / "card.json").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert everything_in(tmp_path) == before
    assert (out / "card.json").read_text() == "old"


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    write_old(tmp_path / "a")
    with pytest.raises(ExportError, match="--force"), new_folder(tmp_path / "a", force=False):
        pytest.fail("not entered")


def test_force_replaces_the_folder_as_a_whole_heads_included(tmp_path: Path) -> None:
    write_old(tmp_path / "a")
    with new_folder(tmp_path / "a", force=True) as folder:
        (folder / "card.json").write_text("new")
    assert everything_in(tmp_path) == ["a", "a/card.json"]
    assert (tmp_path / "a" / "card.json").read_text() == "new"


def test_force_does_not_replace_what_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="no model folder"), new_folder(tmp_path, force=True):
        pytest.fail("not entered")
    assert (tmp_path / "thesis.txt").exists()
