"""What the command line names in, the files to embed out, one after the other: folders, lists and URLs.

    sounds/                 the audio files below it, at any depth, and the links that lead to none
    s3://bucket/sounds/     the same, through fsspec
    sounds.csv              its column `path` or `file_name`, relative to the CSV; a row may be a URL
    dog.ogg                 itself

Nothing is held but the names of one folder at a time, so that millions of files cost no memory.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from service.bulk.errors import CommandError
from service.bulk.listing import ListingError, listed
from service.bulk.offline import Location, audio_files_below, is_audio_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def locations(inputs: Iterable[str]) -> Iterator[Location]:
    """The files to embed, in order; one that is named twice comes twice. Raises CommandError."""
    named = [location_of(text) for text in inputs]
    folders = {location for location in named if isinstance(location, Path) and location.is_dir()}
    for location in named:
        if str(location).lower().endswith(".csv"):
            yield from _listed(location)
        elif isinstance(location, str):
            yield from _below_url(location)
        elif location in folders:
            # A link to a folder that is named, too, is searched in its turn.
            yield from (
                path for path in audio_files_below(location) if path == location or path not in folders
            )
        else:
            yield location


def location_of(text: str) -> Location:
    """A URL as it is, anything else as the path of a file."""
    return text if "://" in text else Path(text)


def modified_s(location: Location) -> float:
    """When the file was last modified, in seconds since 1970. NaN if it cannot be told, which differs from
    every time; 0 for a URL, where asking would cost a request."""
    if isinstance(location, str):
        return 0.0
    try:
        return location.stat().st_mtime
    except OSError:
        return float("nan")


def filesystem_of(url: str) -> tuple["AbstractFileSystem", str]:
    """fsspec's file system for the URL, and the path on it. Raises CommandError."""
    try:
        import fsspec
    except ImportError as error:
        raise CommandError(
            "URLs, and an --out that is a folder, need fsspec: pip install '.[bulk]'"
        ) from error
    try:
        return fsspec.url_to_fs(url)
    except Exception as error:  # those of fsspec's many file systems share no class but this
        raise _unreachable(url, error) from error


def _below_url(url: str) -> Iterator[Location]:
    filesystem, root = filesystem_of(url)
    try:
        if not filesystem.isdir(root):
            yield url
            return
        for folder, folders, names in filesystem.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if is_audio_file(name) and not name.startswith("."):
                    yield filesystem.unstrip_protocol(f"{folder.rstrip('/')}/{name}")
    except Exception as error:  # as above
        raise _unreachable(url, error) from error


def _listed(table: Location) -> Iterator[Location]:
    try:
        with _opened(table) as file:
            for name, _ in listed(file, table):
                yield _beside(table, name)
    except ListingError as error:
        raise CommandError(str(error)) from error


@contextmanager
def _opened(table: Location) -> Iterator[TextIO]:
    try:
        if isinstance(table, Path):
            file = table.open("rb")
        else:
            filesystem, path = filesystem_of(table)
            file = filesystem.open(path, "rb")
    except CommandError:
        raise
    except Exception as error:  # as above
        raise _unreachable(table, error) from error
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield text


def _beside(table: Location, name: str) -> Location:
    """A file that a table names, relative to it."""
    location = location_of(name)
    if isinstance(location, str) or location.is_absolute():
        return location
    if isinstance(table, Path):
        return table.parent / location
    return f"{table.rpartition('/')[0]}/{name}"


def _unreachable(location: Location, error: Exception) -> CommandError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return CommandError(f"{location} cannot be read: {reason}")
