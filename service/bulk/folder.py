"""Results by the million: a folder of parquet files, of which each is written in one step.

    OUT/part-00000.parquet      embeddings, paths, durations_s, modified_s; or the columns of `tags`:
                                a table of its own
    OUT/_failed-00000.parquet   paths, errors (of tags: path, error): the files of that part that are bad;
                                readers of a folder pass over names that begin with _

A path that is no UTF-8 is written as `as_utf_8` shows it.

A run that was stopped in any way goes on: what OUT holds is not made again, unless the file has changed
since. Failed files are tried again. A path has one result and one failure at the most, and the newer counts:

    part-00003  a b c           part-00003  a c       `b` had changed and was read again. What an older
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
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from service.bulk.errors import CommandError
from service.bulk.inputs import filesystem_of, location_of, modified_s
from service.bulk.kinds import Kind, R
from service.bulk.offline import FileResult, Location, Work
from service.bulk.table import as_utf_8, check_parquet, model_of, not_a_table, write_whole
from service.process.files import NEW

if TYPE_CHECKING:
    import pyarrow

PART_ROWS = 1024  # 12 MB at 3072 numbers a row
PART_S = 300.0  # a part is written after so many seconds, however few rows it has
PART, FAILED = "part-", "_failed-"


class InputFile(NamedTuple):
    """A file to read, and when it was last modified (seconds since 1970)."""

    location: Location
    modified_s: float

    @property
    def name(self) -> str:
        return as_utf_8(str(self.location))


@dataclass
class Part(Generic[R]):
    """Results that are written together: rows, and the sentences of failures, by path, no path in both."""

    kind: Kind[R]
    rows: dict[str, R] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows) + len(self.failures)

    def add(self, file: InputFile, result: FileResult) -> None:
        if result.error is not None:
            self.failures[file.name] = as_utf_8(result.error)
        else:
            self.rows[file.name] = self.kind.row(result, file.modified_s)

    def write(self, folder: "Folder", number: int, made_by: str) -> None:
        """As the files `number` of the folder. Raises CommandError."""
        if self.failures:
            import pyarrow

            columns = (list(self.failures), list(self.failures.values()))
            names = (self.kind.path_column, self.kind.error_column)
            folder.write(_named(FAILED, number), pyarrow.table(dict(zip(names, columns, strict=True))))
        if self.rows:
            folder.write(_named(PART, number), self.kind.to_arrow(self.rows, made_by))


class Folder:
    """Parquet files by name, in a folder of this machine or, by a URL, elsewhere."""

    def __init__(self, out: str, noun: str) -> None:
        """noun: what they hold, for sentences. Raises CommandError."""
        check_parquet()
        self._noun = noun
        location = location_of(out.removeprefix("file://"))
        self.is_local = isinstance(location, Path)
        self.out = str(location.absolute()) if isinstance(location, Path) else location
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
            raise not_a_table(f"{self.out.rstrip('/')}/{name}", self._noun) from error

    def write(self, name: str, rows: "pyarrow.Table") -> None:
        """In one step: an object store shows a file once it is whole, and here it is renamed then. Raises
        CommandError."""
        import pyarrow.parquet

        if self.is_local:
            write_whole(Path(self._path(name)), lambda file: pyarrow.parquet.write_table(rows, file))
            return
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(rows, buffer)
        try:
            self._filesystem.pipe_file(self._path(name), buffer.getvalue())
        except Exception as error:  # those of fsspec's many file systems share no class but this
            raise CommandError(f"{self._path(name)} cannot be written: {error}") from error

    def remove(self, name: str) -> None:
        self._filesystem.rm_file(self._path(name))

    def prepare(self) -> None:
        """Makes it where it is missing, and clears what a killed run has left half-written. Raises
        CommandError."""
        if not self.is_local:
            return
        folder = Path(self._root)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{NEW}*"):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise CommandError(f"--out {self.out} cannot be written: {error.strerror or error}") from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class Parts(Generic[R]):
    """What a folder holds of one model's results, and which files are missing there."""

    def __init__(self, out: str, kind: Kind[R], made_by: str, *, overwrite: bool = False) -> None:
        """made_by: the model, and with what it is asked. Raises CommandError where the folder cannot be used,
        or holds what another has made."""
        self.folder = Folder(out, kind.noun)
        self.folder.prepare()
        self.kind = kind
        self.made_by = made_by
        self.n_found = self.n_done_already = 0
        self._out = out
        self._index = _PathIndex()
        self._stale: set[str] = set()  # files with rows that a newer file has, too
        if overwrite:
            for name in (*self.folder.names(FAILED), *self.folder.names(PART)):
                self.folder.remove(name)
        self._next = self._read_all()
        self.tidy()

    def missing(self, locations: Iterable[Location]) -> Iterator[InputFile]:
        """Each file once, if it has no row or has changed since it got one."""
        for location in locations:
            file = InputFile(location, modified_s(location))
            is_new, done_s = self._index.look_up(file.name)
            if not is_new:
                continue
            self.n_found += 1
            if done_s == file.modified_s:
                self.n_done_already += 1
            else:
                yield file

    def new_number(self) -> int:
        self._next += 1
        return self._next - 1

    def keep(self, part: Part[R]) -> None:
        """Raises CommandError."""
        if len(part):
            number = self.new_number()
            part.write(self.folder, number, self.made_by)
            self.note(number, {name: row.modified_s for name, row in part.rows.items()}, part.failures)

    def note(self, number: int, done: dict[str, float], failed: Iterable[str]) -> None:
        """That the files `number` are written, with these paths and the times of their files."""
        for name, time_s in done.items():
            self._supersede(self._index.put_row(name, time_s, number))
        for name in failed:
            self._supersede((None, self._index.put_failure(name, number)))

    def forget(self, number: int) -> None:
        """Removes the files `number`, which were not noted, if they are there."""
        for prefix in (FAILED, PART):
            if (name := _named(prefix, number)) in self.folder.names(prefix):
                self.folder.remove(name)

    def tidy(self) -> None:
        """Removes from older files the paths that newer ones hold, too."""
        import pyarrow

        for name in sorted(self._stale):
            rows = self.folder.read(name)
            number, is_part = _number_of(name), name.startswith(PART)
            kept = [
                self._index.is_at(path, number, is_part) for path in rows[self.kind.path_column].to_pylist()
            ]
            if any(kept):
                self.folder.write(name, rows.filter(pyarrow.array(kept)))
            else:
                self.folder.remove(name)
        self._stale.clear()

    def counts(self) -> tuple[int, int]:
        """Of the files that `missing` was given: how many have a row, how many have failed in the end."""
        return self._index.counts()

    def _read_all(self) -> int:
        """Into the index; returns the first free number."""
        paths, numbers = self.kind.path_column, [-1]
        for name in self.folder.names(PART):
            rows = self.folder.read(name, [paths, "modified_s"])
            if (made_by := model_of(rows)) != self.made_by:
                raise self.kind.made_by_another(self._out, made_by, self.made_by)
            numbers.append(_number_of(name))
            times = zip(rows[paths].to_pylist(), rows["modified_s"].to_pylist(), strict=True)
            self.note(numbers[-1], dict(times), ())
        for name in self.folder.names(FAILED):
            numbers.append(_number_of(name))
            for path in self.folder.read(name, [paths])[paths].to_pylist():
                self._supersede((None, self._index.put_failure(path, numbers[-1])))
                if self._index.has_newer_row(path, numbers[-1]):
                    self._stale.add(name)
                    self._index.drop_failure(path)
        return max(numbers) + 1

    def _supersede(self, older: tuple[int | None, int | None]) -> None:
        """older: the numbers of the part and of the file of failures that held the path until now."""
        for prefix, number in zip((PART, FAILED), older, strict=True):
            if number is not None:
                self._stale.add(_named(prefix, number))


def work_into(
    parts: Parts[R], work: Work, locations: Iterable[Location], *, part_rows: int
) -> Generator[FileResult, None, None]:
    """Makes what is missing and keeps it, part after part; gives each result on, to be shown."""
    in_flight: deque[InputFile] = deque()

    def remembered() -> Iterator[Location]:
        for file in parts.missing(locations):
            in_flight.append(file)
            yield file.location

    part, began_at = Part(parts.kind), time.monotonic()
    try:
        for result in work(remembered()):
            part.add(in_flight.popleft(), result)
            yield result
            if len(part) >= part_rows or time.monotonic() - began_at > PART_S:
                parts.keep(part)
                part, began_at = Part(parts.kind), time.monotonic()
    finally:  # also when stopped
        parts.keep(part)
    parts.tidy()


def chunked(files: Iterable[InputFile], n: int) -> Iterator[Sequence[InputFile]]:
    """`n` at a time."""
    left = iter(files)
    while chunk := list(islice(left, n)):
        yield chunk


class _PathIndex:
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
        """It has a row in this part now, and no failure. Returns the part and the file of failures that held
        it before."""
        older = self._make(path)
        self._tables.execute(
            "UPDATE paths SET modified_s = ?, part = ?, failure = NULL WHERE path = ?",
            [modified_s, part, path],
        )
        return older

    def put_failure(self, path: str, failure: int) -> int | None:
        """It has failed; a row from before stays. Returns the file of failures that held it before."""
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
        n_done, n_failed = self._tables.execute(
            "SELECT count(part), count(failure) FROM paths WHERE is_seen"
        ).fetchone()
        return n_done, n_failed

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
