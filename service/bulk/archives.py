"""A path that leads through an archive in, the bytes of the sound there out, without unpacking it.

    shards/000.tar/dog/1.flac       a member of a tar file, such as a WebDataset's shard
    data/train.parquet/17.wav       row 17 of a table with a column of sounds, {bytes, path},
    data/train.arrow/17.wav         as Hugging Face's `datasets` keeps them

A tar file is searched once, and a member costs one read. Of a parquet file a group of rows is held at a time:
read in order, each is read once.
"""

import bisect
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from service.errors import AudioMissing

if TYPE_CHECKING:
    import pyarrow

TAR, PARQUET, ARROW = ".tar", ".parquet", ".arrow"
TABLES = (PARQUET, ARROW)
ARCHIVES = (TAR, *TABLES)
INDICES = 64  # of archives that are remembered
ROW_GROUPS = 4  # of parquet files that are held: one for each thread that reads, more or less


class ArchiveError(ValueError):
    """The file is no such archive: the sentence says which and why, without its full stop."""


class Member(NamedTuple):
    """Where its bytes lie in the tar file."""

    offset: int
    size: int


def is_archive(path: Path) -> bool:
    """By its suffix, and as it lies on the disk."""
    return path.suffix in ARCHIVES and path.is_file()


def source_of(path: Path) -> Path | bytes:
    """The path itself where it leads to a file, else what lies there in an archive. Raises OSError, and
    AudioMissing of a member that is not there and of an archive that cannot be read."""
    archive = archive_of(path)
    if archive is None:
        return path
    inside = path.relative_to(archive)
    try:
        if archive.suffix == TAR:
            return _read_member(archive, inside.as_posix())
        return _read_row(archive, int(inside.stem))
    except (ArchiveError, KeyError, IndexError, ValueError) as error:
        said = str(error) if isinstance(error, ArchiveError) else f"{archive} holds no {inside}"
        raise AudioMissing(said) from error


def archive_of(path: Path) -> Path | None:
    """The archive that a path leads through; None where it leads through none."""
    if not any(parent.suffix in ARCHIVES for parent in path.parents) or path.exists():
        return None
    return next((parent for parent in path.parents if is_archive(parent)), None)


def tar_members(archive: Path) -> dict[str, Member]:
    """Its files by their names, in its order. Raises ArchiveError and OSError."""
    return _tar_members(archive, _state(archive))


def read_member(archive: Path, member: Member) -> bytes:
    with archive.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def rows_of(archive: Path) -> "pyarrow.Table":
    """A table without the bytes of its sounds: of such a column the paths alone. Raises ArchiveError."""
    sounds = sound_column(archive)
    if archive.suffix == PARQUET:
        with _parquet(archive) as file:
            names = [name for name in file.schema_arrow.names if name != sounds]
            table = file.read(columns=[*names, f"{sounds}.path"])
    else:
        table = _arrow(archive, _state(archive))
    import pyarrow.compute as pc

    paths = pc.struct_field(table[sounds], "path")
    return table.set_column(table.schema.get_field_index(sounds), sounds, paths)


def schema_of(archive: Path) -> "pyarrow.Schema":
    """Raises ArchiveError."""
    if archive.suffix == PARQUET:
        with _parquet(archive) as file:
            return file.schema_arrow
    return _arrow(archive, _state(archive)).schema


def sound_column(archive: Path) -> str:
    """The column {bytes, path}. Raises ArchiveError."""
    name = sound_column_of(schema_of(archive))
    if name is None:
        raise ArchiveError(f"{archive} has no column of sounds, which is one of {{bytes, path}}")
    return name


def sound_column_of(schema: "pyarrow.Schema") -> str | None:
    """The column that holds {bytes, path}: `audio`, where there are several."""
    import pyarrow

    found = [
        field.name
        for field in schema
        if pyarrow.types.is_struct(field.type) and {"bytes", "path"} <= {part.name for part in field.type}
    ]
    return "audio" if "audio" in found else next(iter(found), None)


def _read_member(archive: Path, name: str) -> bytes:
    return read_member(archive, tar_members(archive)[name])


def _read_row(archive: Path, row: int) -> Path | bytes:
    """A sound that a table does not hold lies beside it."""
    state = _state(archive)
    if row < 0:
        raise IndexError(row)
    if archive.suffix == PARQUET:
        ends = _row_group_ends(archive, state)
        group = bisect.bisect_right(ends, row)
        column = _row_group(archive, state, group)
        row -= ends[group - 1] if group else 0
    else:
        column = _arrow(archive, state)[sound_column(archive)]
    sound: dict[str, Any] = column[row].as_py() or {}
    if sound.get("bytes") is not None:
        return bytes(sound["bytes"])
    if sound.get("path"):
        return archive.parent / str(sound["path"])
    raise ArchiveError(f"row {row} of {archive} holds no sound")


def _state(archive: Path) -> tuple[int, int]:
    """What is remembered of a file holds as long as this stays."""
    state = archive.stat()
    return state.st_size, state.st_mtime_ns


def _check_pyarrow(archive: Path) -> None:
    if find_spec("pyarrow") is None:
        raise ArchiveError(f"{archive} needs pyarrow: pip install '.[bulk]'")


@contextmanager
def _parquet(archive: Path) -> Iterator["pyarrow.parquet.ParquetFile"]:
    _check_pyarrow(archive)
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(archive) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise ArchiveError(f"{archive} is no parquet file: {error}") from error


@lru_cache(INDICES)
def _tar_members(archive: Path, state: tuple[int, int]) -> dict[str, Member]:
    try:
        with tarfile.open(archive, "r:") as tar:
            return {
                PurePosixPath(entry.name).as_posix(): Member(entry.offset_data, entry.size)
                for entry in tar
                if entry.isreg() and not entry.issparse()
            }
    except tarfile.TarError as error:
        raise ArchiveError(f"{archive} is no tar file, or a compressed one: unpack it ({error})") from error


@lru_cache(INDICES)
def _row_group_ends(archive: Path, state: tuple[int, int]) -> list[int]:
    with _parquet(archive) as file:
        counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return [sum(counts[: number + 1]) for number in range(len(counts))]


@lru_cache(ROW_GROUPS)
def _row_group(archive: Path, state: tuple[int, int], group: int) -> "pyarrow.ChunkedArray":
    sounds = sound_column(archive)
    with _parquet(archive) as file:
        if group >= file.num_row_groups:
            raise IndexError(group)
        return file.read_row_group(group, columns=[sounds])[sounds]


@lru_cache(INDICES)
def _arrow(archive: Path, state: tuple[int, int]) -> "pyarrow.Table":
    """Mapped, not read: `datasets` keeps a stream of record batches, others a file of them."""
    _check_pyarrow(archive)
    import pyarrow

    try:
        mapped = pyarrow.memory_map(str(archive))
        try:
            return pyarrow.ipc.open_stream(mapped).read_all()
        except pyarrow.ArrowInvalid:
            return pyarrow.ipc.open_file(mapped).read_all()
    except pyarrow.ArrowException as error:
        raise ArchiveError(f"{archive} is no Arrow file: {error}") from error
