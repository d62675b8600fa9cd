"""Results in, their tables out, between markers in README.md and some pages of docs/, so that none is typed.

<!-- load: begin -->  …  <!-- load: end -->
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.harness.results import Result, read, say

README = Path(__file__).parent / "README.md"
ENCODERS = Path(__file__).parents[1] / "docs" / "encoders.md"
COMPARISON = Path(__file__).parents[1] / "docs" / "comparison.md"
DOORBELL = Path(__file__).parents[1] / "docs" / "guides" / "doorbell.md"

# Of an efficient tagger, by commands that have results of their own for the default model.
OTHER_MODEL = {"load_efficientat": "load", "overhead_efficientat": "overhead"}
# Each other one is a command of this folder, which writes results/NAME.json and has `table(result) -> str`.
NAMES = (
    *OTHER_MODEL,
    "overhead",
    "batching",
    "load",
    "fairness",
    "overload",
    "long_audio",
    "decode",
    "logmel",
    "hops",
    "operators",
    "live",
    "churn",
    "memory",
    "soak",
    "gpu",
    "training",
    "teach",
)


def main() -> None:
    fill(README, NAMES)
    fill(ENCODERS, ("encoders", "efficientat"))
    fill(COMPARISON, ("load",), form="summary")
    fill(DOORBELL, ("teach",), form="summary")


def fill(path: Path, names: Sequence[str], *, form: str = "table") -> None:
    """form: the function of each command that makes the text."""
    page = path.read_text(encoding="utf-8")
    for name in names:
        result = read(name)
        if result is None:
            say(f"{name}: no result yet")
        page = with_section(page, name, section(name, result, form))
    path.write_text(page, encoding="utf-8")


def section(name: str, result: Result | None, form: str = "table") -> str:
    """What stands between the markers. The command is imported only when there is something to show."""
    if result is None:
        return "*Not measured yet.*"
    text: Callable[[Result], str] = getattr(import_module(f"benchmarks.{OTHER_MODEL.get(name, name)}"), form)
    return f"{caption(result)}\n\n{text(result)}"


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
