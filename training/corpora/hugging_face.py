"""What `datasets` keeps on disk in, or any parquet file of {bytes, path}; its sounds with labels out.

    saved/  dataset_dict.json  train/ (dataset_info.json, state.json, data-00000-of-00001.arrow)  test/ ...
    data/   train-00000-of-00002.parquet  ...

The sounds stay where they are: row 17 is the path `.../train.parquet/17.wav`. The label is the column `label`
(or `labels`, `class`, `category`, `tags`), else the first that is a ClassLabel, by its names.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from service.bulk.archives import ArchiveError, rows_of, schema_of, sound_column
from training.corpora.sound import PARTS, Sound, part_in
from training.corpora.webdataset import LABELS, labels_in, plain_columns
from training.errors import DataError

SPLITS, INFO, STATE = "dataset_dict.json", "dataset_info.json", "state.json"
ROWS = 1024  # that are looked at together

Features = dict[str, Any]


def is_saved(data: Path) -> bool:
    return (data / SPLITS).is_file() or (data / STATE).is_file()


def sounds_of_saved(data: Path) -> Iterator[Sound]:
    """What `save_to_disk` has written, with its splits."""
    if not (data / SPLITS).is_file():
        yield from _sounds_of_split(data, data.name, "")
        return
    for split in _read(data / SPLITS).get("splits", []):
        yield from _sounds_of_split(data / split, data.name, PARTS.get(split, split))


def sounds_of_tables(tables: list[Path], task: str) -> Iterator[Sound]:
    for table in tables:
        yield from _sounds_of_table(table, task, part_in(table.name) or part_in(table.parent.name), {})


def _sounds_of_split(folder: Path, task: str, part: str) -> Iterator[Sound]:
    features = _read(folder / INFO).get("features") or {}
    for file in _read(folder / STATE).get("_data_files", []):
        yield from _sounds_of_table(folder / file["filename"], task, part, features)


def _sounds_of_table(table: Path, task: str, part: str, features: Features) -> Iterator[Sound]:
    try:
        sounds, rows = sound_column(table), rows_of(table)
        features = features or _features_in(table)
    except ArchiveError as error:
        raise DataError(f"{error}.") from error
    names = {column: found for column, kind in features.items() if (found := _class_names(kind))}
    labelled = next((name for name in LABELS if name in rows.column_names), next(iter(names), None))
    number = 0
    for batch in rows.to_batches(ROWS):
        for row in batch.to_pylist():
            suffix = PurePosixPath(row.pop(sounds) or "").suffix
            row = {name: _named(value, names.get(name)) for name, value in row.items()}
            labels = labels_in({"label": row.get(labelled)}) if labelled else ()
            yield Sound(table / f"{number}{suffix}", task, labels, part, plain_columns(row))
            number += 1


def _features_in(table: Path) -> Features:
    """As `datasets` writes them into a parquet file."""
    told = (schema_of(table).metadata or {}).get(b"huggingface")
    try:
        return (json.loads(told).get("info") or {}).get("features") or {} if told else {}
    except (ValueError, AttributeError):
        return {}


def _class_names(kind: object) -> list[str]:
    """Of a ClassLabel or a list of them."""
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if not isinstance(kind, dict):
        return []
    if kind.get("_type") == "ClassLabel":
        return [str(name) for name in kind.get("names", [])]
    return _class_names(kind.get("feature"))


def _named(value: object, names: list[str] | None) -> object:
    """A number of a class by its name; -1, which is no class, and what has no names stays as it is."""
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    return content if isinstance(content, dict) else {}
