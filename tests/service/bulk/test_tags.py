import csv
import math
from pathlib import Path

import pytest

from service.bulk.offline import Tags
from service.bulk.tags import TagRow, read_tags, write_tags
from service.inference.heads import Tag

SUFFIXES = [".csv", ".jsonl", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_path_and_any_label_comes_back_as_it_was(suffix: str, tmp_path: Path) -> None:
    paths = [
        "a, b.wav",
        'a "quoted"\nname.wav',
        "\u2028.wav",
        "=1+1.wav",
        r"caf\xe9.wav",
        "ünï.wav",
        "cr\r.wav",
    ]
    tags = Tags("toy", "pets", (Tag('Dog, "woof"', 0.123457), Tag("Écho\r\n", 0.0)))
    rows = {path: TagRow(tags, 1 / 3, 1.7e9 + n / 7) for n, path in enumerate(paths)}
    rows |= {"none.wav": TagRow(Tags("toy", "pets", ()), 0.01, 0.0)}
    write_tags(tmp_path / f"tags{suffix}", rows, "toy 1, head pets")
    assert read_tags(tmp_path / f"tags{suffix}") == (rows, "toy 1, head pets")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_whose_time_is_not_known_counts_as_changed(suffix: str, tmp_path: Path) -> None:
    rows = {"a.wav": TagRow(Tags("toy", "pets", (Tag("dog", 0.5),)), 1.0, math.nan)}
    write_tags(tmp_path / f"tags{suffix}", rows, "toy 1")
    assert math.isnan(read_tags(tmp_path / f"tags{suffix}")[0]["a.wav"].modified_s)


def test_rows_in_another_order_are_the_same_table(tmp_path: Path) -> None:
    """As after a spreadsheet has sorted them by score."""
    out = tmp_path / "tags.csv"
    best = (Tag("dog", 0.5), Tag("cat", 0.25))
    rows = {name: TagRow(Tags("toy", "pets", best), 1.0, 2.0) for name in ("a.wav", "b.wav")}
    write_tags(out, rows, "toy 1")
    with out.open(newline="") as file:
        head, *others = csv.reader(file)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([head, *sorted(others, key=lambda cells: float(cells[2]))])
    assert read_tags(out) == (rows, "toy 1")
