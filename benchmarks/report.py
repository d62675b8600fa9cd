"""Results in, their tables in README.md out, between markers: no figure is typed by hand.

<!-- load: begin -->  …  <!-- load: end -->
"""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import load, overhead, training
from benchmarks.results import Result, read, say

README = Path(__file__).parent / "README.md"
TABLES: dict[str, Callable[[Result], str]] = {
    "overhead": overhead.table,
    "load": load.table,
    "training": training.table,
}


def main() -> None:
    page = README.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        result = read(name)
        if result is None:
            say(f"{name}: no result yet")
            continue
        page = with_section(page, name, f"{caption(result)}\n\n{table(result)}")
    README.write_text(page, encoding="utf-8")


def caption(result: Result) -> str:
    """Where, when and how the figures were measured."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return (
        f"*{result['machine']}; {result['date']}; commit {result['commit']}; {versions}; "
        f"`{result['command']}`*"
    )


def with_section(page: str, name: str, content: str) -> str:
    """The page with `content` between the markers of `name`. Raises ValueError when it has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return pattern.sub(lambda found: f"{begin}\n{content}\n{end}", page)


if __name__ == "__main__":
    main()
