"""What a run makes of each file, and how that is kept: EMBEDDINGS and TAGS.

All else is the same for both: which files are found, which of them are done, how a run goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from service.bulk.errors import CommandError
from service.bulk.offline import FileResult
from service.bulk.table import Row, Table, read_table, write_table
from service.bulk.tags import TagRow, read_tags, tags_to_arrow, write_tags

if TYPE_CHECKING:
    import pyarrow


class KeptRow(Protocol):
    """What is kept of a file; modified_s: when the file was last modified before it was read."""

    @property
    def modified_s(self) -> float: ...


R = TypeVar("R", bound=KeptRow)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """noun, done: for sentences. suffixes: of one table, and of the shards on the way to it. path_column,
    error_column: in the parquet files of a folder.

    row: of a file that is done, with the time of its file. to_arrow: a part of rows by path, and who made
    them. read, write: one table, of the same.
    """

    noun: str
    done: str
    suffixes: tuple[str, ...]
    shard_suffix: str
    path_column: str
    error_column: str
    row: Callable[[FileResult, float], R]
    to_arrow: Callable[[dict[str, R], str], "pyarrow.Table"]
    read: Callable[[Path], tuple[dict[str, R], str]]
    write: Callable[[Path, dict[str, R], str], None]

    def made_by_another(self, where: Path | str, made_by: str, wanted: str) -> CommandError:
        return CommandError(
            f"{where} holds {self.noun} of {made_by or 'an unknown model'}, not of {wanted}; choose another "
            "--out, or start anew with --overwrite"
        )


def _embedding_row(result: FileResult, modified_s: float) -> Row:
    assert result.embedding is not None
    assert result.duration_s is not None
    return Row(result.embedding, result.duration_s, modified_s)


def _embeddings_to_arrow(rows: dict[str, Row], model: str) -> "pyarrow.Table":
    return Table.of(rows, model).to_arrow()


def _read_embeddings(path: Path) -> tuple[dict[str, Row], str]:
    table = read_table(path)
    return table.rows(), table.model


def _write_embeddings(path: Path, rows: dict[str, Row], model: str) -> None:
    write_table(path, Table.of(rows, model))


def _tag_row(result: FileResult, modified_s: float) -> TagRow:
    assert result.tags is not None
    assert result.duration_s is not None
    return TagRow(result.tags, result.duration_s, modified_s)


EMBEDDINGS = Kind(
    noun="embeddings",
    done="embedded",
    suffixes=(".npz", ".parquet"),
    shard_suffix=".npz",
    path_column="paths",
    error_column="errors",
    row=_embedding_row,
    to_arrow=_embeddings_to_arrow,
    read=_read_embeddings,
    write=_write_embeddings,
)
TAGS = Kind(
    noun="tags",
    done="classified",
    suffixes=(".csv", ".jsonl", ".parquet"),
    shard_suffix=".jsonl",
    path_column="path",
    error_column="error",
    row=_tag_row,
    to_arrow=tags_to_arrow,
    read=read_tags,
    write=write_tags,
)
