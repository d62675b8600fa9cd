"""Embeddings by the million: a folder of parquet files, of which each is written in one step.

    OUT/part-00000.parquet      embeddings, paths, durations_s, modified_s: a table of its own
    OUT/_failed-00000.parquet   paths, errors: the files of the same stretch that could not be embedded;
                                readers of a folder pass over names that begin with _

A run that was stopped in any way goes on: what OUT holds is not embedded again, unless the file has changed
since. Failed files are tried again. A path has one row and one failure at the most, and the newer counts:

    part-00003  a b c           part-00003  a c       `b` had changed and was embedded again. What an older
    part-00019  b d       ─►    part-00019  b d       part says of it is taken out at the end, or at the next
                                                      start where there was no end

Memory does not grow with the number of files: which path is where stands in a table on disk.
"""

import io
import re
import sqlite3
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from service.bulk_inputs import filesystem_of, modified_s, place_of
from service.bulk_table import (
    CannotRun,
    Row,
    Table,
    as_utf_8,
    check_parquet,
    model_of,
    not_a_table,
    write_whole,
)
from service.offline import Embed, FileResult, Place

if TYPE_CHECKING:
    import pyarrow

PART_ROWS = 1024  # 12 MB at 3072 numbers a row
PART_S = 300.0  # a part is written after so many seconds, however few rows it has
PART, FAILED = "part-", "_failed-"
NOT_UTF_8 = "its name is not UTF-8, and parquet holds no other; rename it"


class Sound(NamedTuple):
    """A file to embed, and when it was last modified (seconds since 1970)."""

    place: Place
    modified_s: float

    @property
    def name(self) -> str:
        return as_utf_8(str(self.place))


@dataclass
class Part:
    """A stretch of results: rows and the sentences of failures by path, no path in both."""

    rows: dict[str, Row] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows) + len(self.failures)

    def add(self, sound: Sound, result: FileResult) -> None:
        if result.error is not None:
            self.failures[sound.name] = result.error
        elif sound.name != str(sound.place):
            self.failures[sound.name] = NOT_UTF_8
        else:
            assert result.embedding is not None
            assert result.duration_s is not None
            self.rows[sound.name] = Row(result.embedding, result.duration_s, sound.modified_s)

    def write(self, folder: "Folder", number: int, model_id: str) -> None:
        """As the files `number` of the folder. Raises CannotRun."""
        if self.failures:
            import pyarrow

            columns = {"paths": list(self.failures), "errors": list(self.failures.values())}
            folder.write(_named(FAILED, number), pyarrow.table(columns))
        if self.rows:
            folder.write(_named(PART, number), Table.of(self.rows, model_id).to_arrow())


class Folder:
    """Parquet files by name, in a folder of this machine or, by a URL, elsewhere."""

    def __init__(self, out: str) -> None:
        """Raises CannotRun."""
        check_parquet()
        place = place_of(out.removeprefix("file://"))
        self.is_local = isinstance(place, Path)
        self.out = str(place.absolute()) if isinstance(place, Path) else place
        self._filesystem, self._root = filesystem_of(self.out)

    def names(self, prefix: str) -> list[str]:
        """The oldest first."""
        self._filesystem.invalidate_cache()  # others write there, too
        try:
            names = [Path(path).name for path in self._filesystem.ls(self._root, detail=False)]
        except FileNotFoundError:  # an object store has no empty folders
            return []
        is_ours = re.compile(rf"{prefix}\d+\.parquet").fullmatch
        return sorted(filter(is_ours, names), key=_number_of)

    def read(self, name: str, columns: list[str] | None = None) -> "pyarrow.Table":
        import pyarrow.parquet

        try:
            with self._filesystem.open(self._path(name), "rb") as file:
                rows = pyarrow.parquet.read_table(file, columns=columns)
            return rows.select(columns) if columns else rows
        except (OSError, KeyError, pyarrow.ArrowException) as error:
            raise not_a_table(f"{self.out.rstrip('/')}/{name}") from error

    def write(self, name: str, rows: "pyarrow.Table") -> None:
        """In one step: an object store shows a file once it is whole, and here it is renamed then. Raises
        CannotRun."""
        import pyarrow.parquet

        if self.is_local:
            write_whole(Path(self._path(name)), lambda file: pyarrow.parquet.write_table(rows, file))
            return
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(rows, buffer)
        try:
            self._filesystem.pipe_file(self._path(name), buffer.getvalue())
        except Exception as error:  # those of fsspec's many file systems share no class but this
            raise CannotRun(f"{self._path(name)} cannot be written: {error}") from error

    def remove(self, name: str) -> None:
        self._filesystem.rm_file(self._path(name))

    def prepare(self) -> None:
        """Makes it where it is missing, and clears what a killed run has left half-written. Raises
        CannotRun."""
        if not self.is_local:
            return
        folder = Path(self._root)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".*.parquet.*.tmp"):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise CannotRun(f"--out {self.out} cannot be written: {error.strerror or error}") from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class Parts:
    """What a folder holds of one model's embeddings, and which files are missing there."""

    def __init__(self, out: str, model_id: str, *, overwrite: bool = False) -> None:
        """Raises CannotRun where the folder cannot be used, or holds another model's embeddings."""
        self.folder = Folder(out)
        self.folder.prepare()
        self.model_id = model_id
        self.n_found = self.n_embedded_already = 0
        self._out = out
        self._ledger = _Ledger()
        self._stale: set[str] = set()  # files with rows that a newer file has, too
        if overwrite:
            for name in (*self.folder.names(FAILED), *self.folder.names(PART)):
                self.folder.remove(name)
        self._next = self._read_all()
        self.tidy()

    def missing(self, places: Iterable[Place]) -> Iterator[Sound]:
        """Each file once, if it has no row or has changed since it was embedded."""
        for place in places:
            sound = Sound(place, modified_s(place))
            is_new, embedded_s = self._ledger.look_up(sound.name)
            if not is_new:
                continue
            self.n_found += 1
            if embedded_s == sound.modified_s:
                self.n_embedded_already += 1
            else:
                yield sound

    def new_number(self) -> int:
        self._next += 1
        return self._next - 1

    def keep(self, part: Part) -> None:
        """Raises CannotRun."""
        if len(part):
            number = self.new_number()
            part.write(self.folder, number, self.model_id)
            self.note(number, {name: row.modified_s for name, row in part.rows.items()}, part.failures)

    def note(self, number: int, embedded: dict[str, float], failed: Iterable[str]) -> None:
        """That the files `number` are written, with these paths and the times of their files."""
        for name, time_s in embedded.items():
            self._supersede(self._ledger.put_row(name, time_s, number))
        for name in failed:
            self._supersede((None, self._ledger.put_failure(name, number)))

    def forget(self, number: int) -> None:
        """Removes the files `number`, which were not noted, if they are there."""
        for prefix in (FAILED, PART):
            if (name := _named(prefix, number)) in self.folder.names(prefix):
                self.folder.remove(name)

    def tidy(self) -> None:
        """Takes out of older files what newer ones say again."""
        import pyarrow

        for name in sorted(self._stale):
            rows = self.folder.read(name)
            number, is_part = _number_of(name), name.startswith(PART)
            kept = [self._ledger.is_at(path, number, is_part) for path in rows["paths"].to_pylist()]
            if any(kept):
                self.folder.write(name, rows.filter(pyarrow.array(kept)))
            else:
                self.folder.remove(name)
        self._stale.clear()

    def counts(self) -> tuple[int, int]:
        """Of the files that `missing` was given: how many have a row, how many have failed in the end."""
        return self._ledger.counts()

    def _read_all(self) -> int:
        """Into the ledger; returns the first free number."""
        numbers = [-1]
        for name in self.folder.names(PART):
            rows = self.folder.read(name, ["paths", "modified_s"])
            self._check_model(model_of(rows))
            numbers.append(_number_of(name))
            times = zip(rows["paths"].to_pylist(), rows["modified_s"].to_pylist(), strict=True)
            self.note(numbers[-1], dict(times), ())
        for name in self.folder.names(FAILED):
            numbers.append(_number_of(name))
            for path in self.folder.read(name, ["paths"])["paths"].to_pylist():
                self._supersede((None, self._ledger.put_failure(path, numbers[-1])))
                if self._ledger.has_newer_row(path, numbers[-1]):
                    self._stale.add(name)
                    self._ledger.drop_failure(path)
        return max(numbers) + 1

    def _check_model(self, model: str) -> None:
        if model != self.model_id:
            raise CannotRun(
                f"{self._out} holds embeddings of {model or 'an unknown model'}, not of {self.model_id}; "
                "choose another --out, or start anew with --overwrite"
            )

    def _supersede(self, older: tuple[int | None, int | None]) -> None:
        """older: the numbers of the part and of the failures that held the path until now."""
        for prefix, number in zip((PART, FAILED), older, strict=True):
            if number is not None:
                self._stale.add(_named(prefix, number))


def embed_into(
    parts: Parts, embed: Embed, places: Iterable[Place], *, part_rows: int
) -> Generator[FileResult, None, None]:
    """Embeds what is missing and keeps it, part after part; gives each result on, to be shown."""
    under_way: deque[Sound] = deque()

    def noted() -> Iterator[Place]:
        for sound in parts.missing(places):
            under_way.append(sound)
            yield sound.place

    part, began_at = Part(), time.monotonic()
    try:
        for result in embed(noted()):
            part.add(under_way.popleft(), result)
            yield result
            if len(part) >= part_rows or time.monotonic() - began_at > PART_S:
                parts.keep(part)
                part, began_at = Part(), time.monotonic()
    finally:  # also when stopped
        parts.keep(part)
    parts.tidy()


def stretches(sounds: Iterable[Sound], n: int) -> Iterator[Sequence[Sound]]:
    """`n` at a time."""
    left = iter(sounds)
    while stretch := list(islice(left, n)):
        yield stretch


class _Ledger:
    """Which path is in which part, and in which file of failures: a table on disk, gone with this object."""

    def __init__(self) -> None:
        self._tables = sqlite3.connect("", isolation_level=None)  # a temporary file, past SQLite's cache
        self._tables.execute("PRAGMA journal_mode = OFF")
        self._tables.execute("PRAGMA synchronous = OFF")
        self._tables.execute(
            "CREATE TABLE paths (path TEXT PRIMARY KEY, modified_s REAL, part INTEGER, failure INTEGER, "
            "is_seen INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"
        )

    def look_up(self, path: str) -> tuple[bool, float | None]:
        """(whether it is looked up for the first time, when the file of its row was modified)."""
        self._make(path)
        modified_s, is_seen = self._one("SELECT modified_s, is_seen FROM paths WHERE path = ?", path)
        self._tables.execute("UPDATE paths SET is_seen = 1 WHERE path = ?", [path])
        return not is_seen, modified_s

    def put_row(self, path: str, modified_s: float, part: int) -> tuple[int | None, int | None]:
        """It has a row in this part now, and no failure. Returns the part and the failures where it was."""
        older = self._make(path)
        self._tables.execute(
            "UPDATE paths SET modified_s = ?, part = ?, failure = NULL WHERE path = ?",
            [modified_s, part, path],
        )
        return older

    def put_failure(self, path: str, failure: int) -> int | None:
        """It has failed; a row from before stays. Returns the failures where it was."""
        _, older = self._make(path)
        self._tables.execute("UPDATE paths SET failure = ? WHERE path = ?", [failure, path])
        return older

    def drop_failure(self, path: str) -> None:
        self._tables.execute("UPDATE paths SET failure = NULL WHERE path = ?", [path])

    def has_newer_row(self, path: str, number: int) -> bool:
        (part,) = self._one("SELECT part FROM paths WHERE path = ?", path)
        return part is not None and part > number

    def is_at(self, path: str, number: int, is_part: bool) -> bool:
        part, failure = self._one("SELECT part, failure FROM paths WHERE path = ?", path)
        return bool((part if is_part else failure) == number)

    def counts(self) -> tuple[int, int]:
        n_embedded, n_failed = self._tables.execute(
            "SELECT count(part), count(failure) FROM paths WHERE is_seen"
        ).fetchone()
        return n_embedded, n_failed

    def _make(self, path: str) -> tuple[int | None, int | None]:
        self._tables.execute("INSERT OR IGNORE INTO paths (path) VALUES (?)", [path])
        part, failure = self._one("SELECT part, failure FROM paths WHERE path = ?", path)
        return part, failure

    def _one(self, question: str, path: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._tables.execute(question, [path]).fetchone()
        return row


def _named(prefix: str, number: int) -> str:
    return f"{prefix}{number:05d}.parquet"


def _number_of(name: str) -> int:
    return int(Path(name).stem.rpartition("-")[2])
