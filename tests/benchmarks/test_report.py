"""Tables find their place, and are those of the results."""

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.harness import results
from benchmarks.report import NAMES, README, section, with_section


def test_a_table_replaces_what_is_between_its_markers() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin --><!-- y: end -->\n"
    assert with_section(page, "x", r"\1 new") == page.replace("old", r"\1 new")
    with pytest.raises(ValueError, match="<!-- z: begin -->"):
        with_section(page, "z", "")


@pytest.mark.parametrize(("path", "name"), [(report.COMPARISON, "load"), (report.DOORBELL, "teach")])
def test_the_pages_with_a_summary_are_up_to_date(path: Path, name: str) -> None:
    page = path.read_text(encoding="utf-8")
    told = section(name, results.read(name), "summary")
    assert with_section(page, name, told) == page, "run `python -m benchmarks.report`"


def test_every_table_has_its_place_in_the_page() -> None:
    page = README.read_text(encoding="utf-8")
    for name in NAMES:
        assert section(name, None) in with_section(page, name, section(name, None))


@pytest.mark.parametrize("name", NAMES)
def test_every_result_that_is_there_has_its_table_in_the_page(name: str) -> None:
    result = results.read(name)
    assert section(name, result) in README.read_text(encoding="utf-8"), "run `python -m benchmarks.report`"
