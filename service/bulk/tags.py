"""Tags and the paths of their files: a table, written as .csv, .jsonl or .parquet in one step and read back.

    .csv, .parquet   a row per file and tag, the best with rank 1. A file without tags, because none reaches
                     the threshold, has one row, of rank 0: its label and score are empty.
                     path, label, score, rank, duration_s, model, head, modified_s, made_by
    .jsonl           a line per file, as /classify answers: {"path": ..., "model": ..., "head": ...,
                     "duration_s": ..., "tags": [{"label": ..., "score": ...}, ...], "modified_s": ...,
                     "made_by": ...}

Paths are `as_utf_8`. made_by tells the model, the head and the parameters: files of one table have the same.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from service.bulk.offline import Tags
from service.bulk.table import MODEL_KEY, not_a_table, write_whole
from service.inference.heads import Tag

if TYPE_CHECKING:
    import pyarrow

# Raised where the same head gives other tags than before, or the columns change: older tables are refused.
VERSION = 1
COLUMNS = ("path", "label", "score", "rank", "duration_s", "model", "head", "modified_s", "made_by")

NO_TAGS = [(None, None, 0)]  # label, score, rank

Record = dict[str, Any]  # a row of a file, by column; or its line


class TagRow(NamedTuple):
    """duration_s: of the clip; modified_s: of the file, when it was classified."""

    tags: Tags
    duration_s: float
    modified_s: float


Rows = dict[str, TagRow]  # by path


def tags_to_arrow(rows: Rows, made_by: str) -> "pyarrow.Table":
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    types = dict.fromkeys(COLUMNS, text) | dict.fromkeys(("score", "duration_s", "modified_s"), number)
    schema = pyarrow.schema(types | {"rank": pyarrow.int32()}, metadata={MODEL_KEY: made_by})
    return pyarrow.Table.from_pylist(list(_ranked(rows, made_by)), schema=schema)


def write_tags(path: Path, rows: Rows, made_by: str) -> None:
    """By the path's suffix, in one step. Raises CommandError."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        write_whole(path, lambda file: pyarrow.parquet.write_table(tags_to_arrow(rows, made_by), file))
    elif path.suffix == ".csv":
        write_whole(path, lambda file: _write_csv(file, _ranked(rows, made_by)))
    else:
        write_whole(path, lambda file: _write_lines(file, _whole(rows, made_by)))


def read_tags(path: Path) -> tuple[Rows, str]:
    """The rows, and who made them. Raises CommandError where it is not such a table."""
    if path.suffix == ".parquet":
        records = _read_parquet(path)
    else:
        try:
            text = path.read_bytes().decode("utf-8-sig")
            records = _from_csv(text) if path.suffix == ".csv" else _from_lines(text)
        except (OSError, csv.Error, ValueError, KeyError, TypeError) as error:
            raise not_a_table(path, "tags") from error
    if not records:  # none is written
        raise not_a_table(path, "tags")
    rows = {name: _row_of(of_file) for name, of_file in _by_path(records).items()}
    return rows, " and of ".join(dict.fromkeys(record["made_by"] for record in records))


def _ranked(rows: Rows, made_by: str) -> Iterator[Record]:
    """A row per file and tag."""
    for path, row in rows.items():
        best = [(tag.label, tag.score, rank) for rank, tag in enumerate(row.tags.best, 1)]
        of_file = (row.duration_s, row.tags.model, row.tags.head, row.modified_s, made_by)
        for tag in best or NO_TAGS:
            yield dict(zip(COLUMNS, (path, *tag, *of_file), strict=True))


def _whole(rows: Rows, made_by: str) -> Iterator[Record]:
    """An object per file."""
    for path, row in rows.items():
        yield {
            "path": path,
            "model": row.tags.model,
            "head": row.tags.head,
            "duration_s": row.duration_s,
            "tags": [tag._asdict() for tag in row.tags.best],
            "modified_s": None if math.isnan(row.modified_s) else row.modified_s,  # JSON has no NaN
            "made_by": made_by,
        }


def _by_path(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["path"], []).append(record)
    return found


def _row_of(records: list[Record]) -> TagRow:
    first = records[0]
    by_rank = sorted(records, key=lambda record: int(record["rank"]))
    best = tuple(Tag(record["label"], record["score"]) for record in by_rank if record["rank"])
    return TagRow(Tags(first["model"], first["head"], best), first["duration_s"], first["modified_s"])


def _write_csv(file: IO[bytes], records: Iterable[Record]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(records)
    text.detach()  # it stays open for its owner; this writes what is left


def _write_lines(file: IO[bytes], records: Iterable[Record]) -> None:
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def _from_csv(text: str) -> list[Record]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    return [
        {name: row[name] for name in COLUMNS}
        | {name: float(row[name]) for name in ("duration_s", "modified_s")}
        | {"score": float(row["score"]) if row["score"] else None, "rank": int(row["rank"])}
        for row in rows
    ]


def _from_lines(text: str) -> list[Record]:
    return [record for line in text.split("\n") if line for record in _ranked_line(json.loads(line))]


def _ranked_line(line: Record) -> list[Record]:
    """The rows that the file would have in a CSV."""
    best = [(tag["label"], tag["score"], rank) for rank, tag in enumerate(line["tags"], 1)]
    file = {name: line[name] for name in COLUMNS if name in line}
    file["modified_s"] = math.nan if line["modified_s"] is None else line["modified_s"]
    return [file | {"label": label, "score": score, "rank": rank} for label, score, rank in best or NO_TAGS]


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow.parquet

    try:
        records: list[Record] = pyarrow.parquet.read_table(path).select(list(COLUMNS)).to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise not_a_table(path, "tags") from error
    return records
