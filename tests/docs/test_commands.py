"""Commands that pages show indented take too long to be run, or need what is not there; but the programs and
options that they name are those there are. tests/docs/test_snippets.py runs what stands in fences.
"""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.docs.links import FENCED

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md")),
    ROOT / "training" / "LOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
INDENTED = re.compile(r"^ {4,}(\S.*(?:\\\n.*)*)$", re.MULTILINE)
PYTHON_M = re.compile(r"\bpython -m ([\w.]+)((?: [a-z][\w-]*)?)(.*)", re.DOTALL)


def commands() -> list[tuple[Path, str]]:
    """Of every page, `\\` at the end of a line joined."""
    found = []
    for page in PAGES:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        found += [(page, re.sub(r"\\\n\s*", "", line)) for line in INDENTED.findall(text)]
    return found


OURS = [(page, line) for page, line in commands() if PYTHON_M.search(line)]


@cache
def help_of(module: str, command: str) -> str | None:
    """None where there is no such program or command."""
    words = [sys.executable, "-m", module, *command.split(), "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr if done.returncode == 0 else None


def test_there_are_some() -> None:
    assert len(OURS) > 10


@pytest.mark.parametrize(
    ("page", "line"), OURS, ids=[f"{page.relative_to(ROOT)}: {line[:60]}" for page, line in OURS]
)
def test_the_program_and_its_options_are_there(page: Path, line: str) -> None:
    for module, command, rest in PYTHON_M.findall(line):
        told = help_of(module, command)
        assert told is not None, f"there is no python -m {module}{command}"
        options = re.findall(r"(?<=\s)\[?(--[a-z][\w-]*)", rest)
        assert [option for option in options if option not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_deploy_that_is_named_is_there(page: Path) -> None:
    for name in re.findall(r"\bdeploy/[\w./-]*\w", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name
