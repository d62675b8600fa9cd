"""What the command line names in, the files to embed out, one after the other: folders, lists and URLs.

    sounds/                 the audio files below it, at any depth
    s3://bucket/sounds/     the same, through fsspec
    sounds.csv              its column `path` or `file_name`, relative to the CSV; a row may be a URL
    dog.ogg                 itself

Nothing is held but the names of one folder at a time, so that millions of files cost no memory.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from service.bulk_table import CannotRun
from service.offline import Place, is_sound, sounds_below

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

COLUMNS = ("file_name", "path")


def places(inputs: Iterable[str]) -> Iterator[Place]:
    """The files to embed, in order; one that is named twice comes twice. Raises CannotRun."""
    for text in inputs:
        place = place_of(text)
        if text.lower().endswith(".csv"):
            yield from _listed(place)
        elif isinstance(place, str):
            yield from _below_url(place)
        elif place.is_dir():
            yield from sounds_below(place)
        else:
            yield place


def place_of(text: str) -> Place:
    """A URL as it is, anything else as the path of a file."""
    return text if "://" in text else Path(text)


def modified_s(place: Place) -> float:
    """When the file was last modified, in seconds since 1970. NaN if it cannot be told, which differs from
    every time; 0 for a URL, where asking would cost a request."""
    if isinstance(place, str):
        return 0.0
    try:
        return place.stat().st_mtime
    except OSError:
        return float("nan")


def filesystem_of(url: str) -> tuple["AbstractFileSystem", str]:
    """fsspec's file system for the URL, and the path on it. Raises CannotRun."""
    try:
        import fsspec
    except ImportError as error:
        raise CannotRun("URLs, and an --out that is a folder, need fsspec: pip install '.[bulk]'") from error
    try:
        return fsspec.url_to_fs(url)
    except Exception as error:  # those of fsspec's many file systems share no class but this
        raise _unreachable(url, error) from error


def _below_url(url: str) -> Iterator[Place]:
    filesystem, root = filesystem_of(url)
    try:
        if not filesystem.isdir(root):
            yield url
            return
        for folder, folders, names in filesystem.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if is_sound(name) and not name.startswith("."):
                    yield filesystem.unstrip_protocol(f"{folder.rstrip('/')}/{name}")
    except Exception as error:  # as above
        raise _unreachable(url, error) from error


def _listed(table: Place) -> Iterator[Place]:
    try:
        with _opened(table) as file:
            rows = csv.DictReader(file, restval="")
            names = rows.fieldnames or []
            column = next((name for name in COLUMNS if name in names), None)
            if column is None:
                raise CannotRun(f"{table} has no column 'path' or 'file_name', only {', '.join(names)}")
            for row in rows:
                if row[column]:
                    yield _beside(table, row[column])
    except (UnicodeDecodeError, csv.Error) as error:
        raise CannotRun(f"{table} is not a CSV file in UTF-8: {error}") from error


@contextmanager
def _opened(table: Place) -> Iterator[TextIO]:
    try:
        if isinstance(table, Path):
            file = table.open("rb")
        else:
            filesystem, path = filesystem_of(table)
            file = filesystem.open(path, "rb")
    except CannotRun:
        raise
    except Exception as error:  # as above
        raise _unreachable(table, error) from error
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


def _beside(table: Place, name: str) -> Place:
    """A file that a table names, relative to it."""
    place = place_of(name)
    if isinstance(place, str) or place.is_absolute():
        return place
    if isinstance(table, Path):
        return table.parent / place
    return f"{table.rpartition('/')[0]}/{name}"


def _unreachable(place: Place, error: Exception) -> CannotRun:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return CannotRun(f"{place} cannot be read: {reason}")
