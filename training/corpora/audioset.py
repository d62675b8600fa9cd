"""AudioSet's own CSVs in, those of their sounds that are there, with labels and splits, out.

    # YTID, start_seconds, end_seconds, positive_labels
    --PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"

The sounds lie below the CSV's folder and are called by their YouTube id, as they usually are:
`--PJHxphWEs.wav`, `Y--PJHxphWEs.wav`, `--PJHxphWEs_30.flac`, `--PJHxphWEs_30000_40000.mp3`. Many videos are
gone: segments without a sound are passed over. `class_labels_indices.csv` beside the CSV names the labels,
else they are /m/09x0r.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from training.corpora.sound import Sound, part_in, sounds_by_stem
from training.errors import DataError

TABLES = ("balanced_train_segments.csv", "unbalanced_train_segments.csv", "eval_segments.csv")
NAMES = "class_labels_indices.csv"
HEADER = re.compile(r"#\s*YTID\s*,\s*start_seconds", re.IGNORECASE)
COMMENTS = 5  # lines that begin with #, of which one is the header
SOUND = re.compile(r"(?P<id>[\w-]{11})(?:[_.].*)?")


def tables_of_audioset(data: Path) -> list[Path]:
    """The segments of a folder, or the ones that are named; none where it is no such data."""
    named = [data / name for name in TABLES] if data.is_dir() else [data]
    return [path for path in named if path.suffix == ".csv" and path.is_file() and _is_audiosets(path)]


def sounds_of_audioset(tables: list[Path]) -> Iterator[Sound]:
    folder = tables[0].parent
    names = _names(folder / NAMES)
    paths = {id: path for stem, path in sounds_by_stem(folder) for id in _ids(stem)}
    found = False
    for table in tables:
        part = part_in(table.name.removesuffix("_segments.csv"))
        for line, (ytid, _, _, mids) in _segments(table):
            if not mids:
                raise DataError(f"{table}, line {line}: there are no labels.")
            if ytid in paths:
                found = True
                labels = tuple(names.get(mid, mid) for mid in mids.split(","))
                yield Sound(paths[ytid], "audioset", labels, part, {"ytid": ytid})
    if not found:
        raise DataError(
            f"{folder} holds none of the sounds that {tables[0].name} names: they are found by their YouTube "
            "id, --PJHxphWEs.wav or Y--PJHxphWEs.wav or --PJHxphWEs_30.wav."
        )


def _segments(table: Path) -> Iterator[tuple[int, list[str]]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        for line, cells in enumerate(csv.reader(file, skipinitialspace=True), 1):
            if cells and not cells[0].startswith("#"):
                if len(cells) != 4:
                    raise DataError(f"{table}, line {line}: there are {len(cells)} cells and not 4.")
                yield line, cells


def _ids(stem: str) -> Iterator[str]:
    """The ids that a sound's name may stand for; a Y before it is a habit of those who collect them."""
    for name in (stem, stem[1:] if stem.startswith("Y") else ""):
        if match := SOUND.fullmatch(name):
            yield match["id"]


def _names(table: Path) -> dict[str, str]:
    """/m/09x0r -> Speech."""
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        return {row["mid"]: row["display_name"] for row in csv.DictReader(file)}


def _is_audiosets(table: Path) -> bool:
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        return any(HEADER.match(line) for _, line in zip(range(COMMENTS), file, strict=False))
