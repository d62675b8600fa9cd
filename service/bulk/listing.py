"""A CSV that names sounds in, its rows out, each with the sound's name: the column `file_name` or `path`.

UTF-8, as spreadsheets write it too; empty lines and rows that name no sound are passed over. A row is a line:
else a quote that is not closed would take all rows up to the next one, or to the end, into its cell.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

COLUMNS = ("file_name", "path")

UNCLOSED = "is a quote not closed? Inside a cell in quotes, write each quote twice"

Row = dict[str, str]


class ListingError(ValueError):
    """The file is no such list: the sentence, without its full stop, says which and why."""


def listed(lines: Iterable[str], name: object, *, needs: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    """(name of the sound, row) for each line of an open file; cells that a row lacks are empty.

    name: of the list, for messages; needs: columns that it must have, too. Raises ListingError.
    """
    rows = _rows(lines, name)
    _, columns = next(rows, (1, []))
    column = next((each for each in COLUMNS if each in columns), None)
    if column is None:
        raise ListingError(f"{name} has no column 'file_name' or 'path', only {', '.join(columns)}")
    for each in needs:
        if each not in columns:
            raise ListingError(f"{name} has no column '{each}', only {', '.join(columns)}")
    for line, cells in rows:
        if any(cells[len(columns) :]):
            raise ListingError(
                f"{name}, line {line}: there are more cells than the {len(columns)} columns; put a cell that "
                "holds a comma into quotes"
            )
        row = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
        if row[column]:
            yield row[column], row


def listed_paths(table: Path, *, needs: Sequence[str] = ()) -> Iterator[tuple[Path, Row]]:
    """The same of a file that is not open yet: (path of the sound, row). Raises also OSError."""
    with table.open(newline="", encoding="utf-8-sig") as file:
        yield from ((table.parent / name, row) for name, row in listed(file, table, needs=needs))


def _rows(lines: Iterable[str], name: object) -> Iterator[tuple[int, list[str]]]:
    """(number of its line, cells) of each line that is not empty. Raises ListingError."""
    rows = csv.reader(lines, strict=True)
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except UnicodeDecodeError as error:
            raise ListingError(f"{name} is not a CSV file in UTF-8: {error}") from error
        except csv.Error as error:
            raise ListingError(f"{name}, line {line}: {error}; {UNCLOSED}") from error
        if cells is None:
            return
        if rows.line_num > line:
            raise ListingError(f"{name}, line {line}: a cell goes on to line {rows.line_num}; {UNCLOSED}")
        if cells:
            yield line, cells
