"""Results one by one in, one table out, and a file of every few hundred on the way to it.

    OUT.npz              the results of a finished run
    OUT.npz.partial/     those that came since: 000001.npz 000002.npz ... until `finish` joins them all

and the same of OUT.parquet, OUT.csv and OUT.jsonl. A run that was stopped in any way goes on: what either
holds is not made again, unless the sound has changed since.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic

from service.bulk.errors import CommandError
from service.bulk.inputs import modified_s
from service.bulk.kinds import Kind, R
from service.bulk.offline import FileResult, Location
from service.bulk.table import as_utf_8

SHARD_FILES = 256  # results are saved after so many files
SHARD_S = 10.0  # or seconds, whichever comes first


class ResumableTable(Generic[R]):
    """The results of `out`: those of a finished run, and those saved in `partial` since."""

    def __init__(self, out: Path, kind: Kind[R], made_by: str) -> None:
        """made_by: the model, and with what it is asked."""
        self.partial = partial_folder_of(out)
        self._out = out
        self._kind = kind
        self._made_by = made_by
        self._name: Callable[[Location], str] = str if out.suffix == ".npz" else _utf_8_name
        self._modified_s: dict[str, float] = {}  # of the files of this run, before they are read
        self._earlier: dict[str, float] = {}  # the same of those done before this run
        self._pending: dict[str, R] = {}
        self._saved_at = time.monotonic()

    def clear(self) -> None:
        """Forgets all earlier results."""
        self._out.unlink(missing_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    def missing(self, paths: Sequence[Location]) -> list[Location]:
        """The paths without a result, and those whose file has changed since.

        Raises CommandError where the results are another model's, or some are of other paths, which would be
        lost.
        """
        for file in self._files():
            rows, made_by = self._kind.read(file)
            self._check_made_by(made_by, file)
            self._earlier |= {name: row.modified_s for name, row in rows.items()}
        self._modified_s = {self._name(path): modified_s(path) for path in paths}
        self._check_none_is_lost()
        names = map(self._name, paths)
        return [
            path
            for path, name in zip(paths, names, strict=True)
            if self._earlier.get(name) != self._modified_s[name]
        ]

    def holds(self, path: Location) -> bool:
        """Whether `path` was done before this run."""
        return self._name(path) in self._earlier

    def add(self, result: FileResult) -> None:
        path = self._name(result.path)
        self._pending[path] = self._kind.row(result, self._modified_s[path])
        if len(self._pending) >= SHARD_FILES or time.monotonic() - self._saved_at > SHARD_S:
            self.save()

    def save(self) -> None:
        """Writes what was added since as the next file in `partial`."""
        if self._pending:
            number = 1 + max((int(file.stem) for file in self._shards()), default=0)
            shard = self.partial / f"{number:06d}{self._kind.shard_suffix}"
            self._kind.write(shard, self._pending, self._made_by)
        self._pending = {}
        self._saved_at = time.monotonic()

    def finish(self, paths: Iterable[Location]) -> int:
        """Writes `out`, the results of `paths` in their order, and clears `partial`; how many they are. If
        there are none, nothing is touched."""
        self.save()
        rows: dict[str, R] = {}
        for file in self._files():  # later ones replace earlier ones
            rows |= self._kind.read(file)[0]
        names = map(self._name, paths)
        found = {name: rows[name] for name in names if name in rows}
        if found:
            self._kind.write(self._out, found, self._made_by)
            shutil.rmtree(self.partial, ignore_errors=True)
        return len(found)

    def _check_made_by(self, made_by: str, file: Path) -> None:
        if made_by != self._made_by:
            where = self._out if file == self._out else self.partial
            raise self._kind.made_by_another(where, made_by, self._made_by)

    def _check_none_is_lost(self) -> None:
        others = [path for path in self._earlier if path not in self._modified_s]
        if others:
            where = self._out if self._out.exists() else self.partial
            raise CommandError(
                f"{where} holds {len(others)} file(s) that this run does not find, such as {others[0]}; name "
                "them too, choose another --out, or start anew with --overwrite"
            )

    def _files(self) -> list[Path]:
        """Oldest first."""
        return [*([self._out] if self._out.exists() else []), *self._shards()]

    def _shards(self) -> list[Path]:
        return sorted(self.partial.glob(f"[0-9]*{self._kind.shard_suffix}"))


def _utf_8_name(path: Location) -> str:
    return as_utf_8(str(path))


def partial_folder_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")
