import contextlib
import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bulk.listing import ListingError, listed, listed_paths


def test_rows_come_with_the_name_of_their_sound_and_what_they_lack_is_empty() -> None:
    lines = ["label,file_name,fold", "dog,a.wav,1", "cat,", "", "owl,sub/b.wav"]
    assert list(listed(lines, "list.csv", needs=("label",))) == [
        ("a.wav", {"label": "dog", "file_name": "a.wav", "fold": "1"}),
        ("sub/b.wav", {"label": "owl", "file_name": "sub/b.wav", "fold": ""}),
    ]


def test_a_list_with_both_columns_is_read_by_file_name() -> None:
    assert [name for name, _ in listed(["path,file_name", "a.wav,b.wav"], "list.csv")] == ["b.wav"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"name\na.wav\n", r"list\.csv has no column 'file_name' or 'path', only name$"),
        (b"path\na.wav\n", r"list\.csv has no column 'label', only path$"),
        (b"path,label\na\xff.wav,x\n", r"list\.csv is not a CSV file in UTF-8: 'utf-8' codec"),
    ],
)
def test_what_is_no_such_list_is_said(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(ListingError, match=sentence):
        list(listed_paths(tmp_path / "list.csv", needs=("label",)))


def test_paths_are_relative_to_a_list_that_a_spreadsheet_wrote(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbfpath\r\nsub/a.wav\r\n")
    assert [path for path, _ in listed_paths(tmp_path / "list.csv")] == [tmp_path / "sub" / "a.wav"]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        # The quote before 7 takes in what follows: to the end, to the next quote, to one that closes well.
        (
            ['a.wav,"7 inch single', "b.wav,rain", "c.wav,dog"],
            "line 3: unexpected end of data; is a quote not",
        ),
        (['a.wav,"7 inch single', 'b.wav,"rain"', "c.wav,dog"], "line 3: .* is a quote not closed"),
        (
            ['a.wav,"7 inch single', 'b.wav,rain"', "c.wav,dog"],
            "line 3: a cell goes on to line 4; is a quote",
        ),
        (['a.wav,"7" single"', "b.wav,rain"], "line 3: .* is a quote not closed"),
        (["a.wav,rain, wind"], "line 3: there are more cells than the 2 columns"),
    ],
)
def test_no_row_is_lost_to_a_quote_or_a_comma(lines: list[str], sentence: str) -> None:
    """The error names the line, counted in the file, and the rows before it are given."""
    rows = listed(iter(["path,label\n", "first.wav,dog\n", *(f"{line}\n" for line in lines)]), "list.csv")
    assert next(rows)[0] == "first.wav"
    with pytest.raises(ListingError, match=rf"^list\.csv, {sentence}"):
        list(rows)


def test_a_quote_in_a_cell_without_quotes_or_written_twice_is_a_quote() -> None:
    lines = ["path,label", 'a.wav,7" single', 'b.wav,"12"" single, new"', "c.wav,dog,,"]
    found = [row["label"] for _, row in listed(lines, "list.csv")]
    assert found == ['7" single', '12" single, new', "dog"]


CELLS = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=6)
# A name that begins with a comma or a quote, with its own quote gone, is none, and such rows are passed over.
NAMES = st.text(st.sampled_from('ab",é '), max_size=6).map(lambda name: f"n{name}")


@given(rows=st.lists(st.tuples(NAMES, CELLS), min_size=1, max_size=6), data=st.data())
def test_whatever_quote_goes_missing_all_rows_are_there_or_an_error_is(
    rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    written = io.StringIO()
    csv.writer(written).writerows([("path", "label"), *rows])
    text = written.getvalue()
    found = list(listed(io.StringIO(text, newline=""), "list.csv"))
    assert [(name, row["label"]) for name, row in found] == rows
    quotes = [at for at, character in enumerate(text) if character == '"']
    if quotes:
        at = data.draw(st.sampled_from(quotes))
        damaged = text[:at] + text[at + 1 :]
        with contextlib.suppress(ListingError):
            assert len(list(listed(io.StringIO(damaged, newline=""), "list.csv"))) == len(rows)
