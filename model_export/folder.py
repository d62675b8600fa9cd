"""A folder that appears as a whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_export.errors import ExportError


@contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A hidden sibling of `out` to write into; on leaving it becomes `out`, on any exception it is removed.

    An `out` that exists is refused with ExportError; with `force` the new folder takes its place at the end.
    """
    if out.exists() and not force:
        raise ExportError(f"{out} exists: choose another --out, or replace it as a whole with --force.")
    if out.exists() and not (out / "card.json").is_file():
        raise ExportError(f"{out} is no model folder (it has no card.json): --force does not replace it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        folder = work / "new"
        folder.mkdir()
        yield folder
        _put_in_place(folder, out, old=work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put_in_place(folder: Path, out: Path, old: Path) -> None:
    """Two renames; where the second one fails, the first is undone."""
    if not out.exists():
        folder.rename(out)
        return
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
