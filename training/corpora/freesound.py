"""FSD50K's own CSVs in, their sounds with labels and splits out.

FSD50K.ground_truth/dev.csv     fname,labels,mids,split      64760,"Electric_guitar,Guitar",...,train
FSD50K.ground_truth/eval.csv    fname,labels,mids            all of it is tested on
FSD50K.dev_audio/64760.wav      FSD50K.eval_audio/...        found by their names, below the same folder
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from training.corpora.sound import PARTS, TEST, Sound, sounds_by_stem
from training.errors import DataError

FOLDER = "FSD50K.ground_truth"
HEADER = ["fname", "labels", "mids"]


def tables_of_fsd50k(data: Path) -> list[Path]:
    """dev.csv and eval.csv of a folder, or the one that is named; none where it is no such data."""
    if data.is_file():
        return [data] if data.suffix == ".csv" and _header(data)[:3] == HEADER else []
    return [path for name in ("dev.csv", "eval.csv") if (path := data / FOLDER / name).is_file()]


def sounds_of_fsd50k(tables: list[Path]) -> Iterator[Sound]:
    folder = tables[0].parent
    root = folder.parent if folder.name == FOLDER else folder
    paths = dict(sounds_by_stem(root))
    found = False
    for table in tables:
        with table.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                if row["fname"] not in paths:
                    continue
                found = True
                labels = tuple(filter(None, (row["labels"] or "").split(",")))
                part = PARTS.get(row.get("split") or "", TEST)
                yield Sound(paths[row["fname"]], "fsd50k", labels, part)
    if not found:
        raise DataError(f"{root} holds none of the sounds that {tables[0].name} names, such as 64760.wav.")


def _header(table: Path) -> list[str]:
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return next(csv.reader(file), [])
