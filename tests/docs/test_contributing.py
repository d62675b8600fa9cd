"""docs/contributing.md and what stands around it against the repository: files, rooms, hooks and forms."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
(TREE,) = re.findall(r"^```text\n(service/.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PACKAGES = ("service", "encoders", "training", "model_export", "hear", "benchmarks", "clients")
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]

NAME = re.compile(r"(?<![\w/.*<>{}-])[\w./-]*\w+\.py\b")
BELOW_A_PACKAGE = re.compile(
    rf"(?<![\w/.<>{{}}:*-])(?:{'|'.join((*PACKAGES, 'deploy', 'tests'))})/[\w./-]*[\w/]"
)
GUIDES_PROGRAM = re.compile(r'^```python title="([^"]+)"', re.MULTILINE)
# A file that EVAR asks for, shown in docs/hear.md, and one of X-ARES's package.
OF_OTHERS = {"evar/ar_viola.py", "tasks/esc50_task.py"}


def repository() -> list[str]:
    """Every file of the repository, new ones too, that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


FILES = repository()
ENDS = {"/".join(path.split("/")[first:]) for path in FILES for first in range(path.count("/") + 1)}
PROSE = [
    path
    for path in FILES
    if re.search(r"(\.(md|py|ya?ml|sh|toml)|Makefile|Dockerfile)$", path) and not path.startswith("tests/")
]


def tree() -> Iterator[str]:
    """The paths that the page's tree names. A folder ends with a slash; its files are indented below it."""
    folders: list[tuple[int, str]] = []
    for line in TREE.splitlines():
        name, indent = line.split()[0], len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        yield "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))


def test_the_tree_names_every_module_once_and_no_other() -> None:
    """A package's own file stands for its folder, which has a line of its own."""
    modules = [
        path
        for path in FILES
        if path.startswith(PACKAGES) and path.endswith(".py") and not path.endswith("__init__.py")
    ]
    assert sorted(path for path in tree() if path.endswith(".py")) == sorted(modules)


def test_whatever_else_the_tree_names_is_there() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_every_file_of_the_tree_has_its_line() -> None:
    assert [line for line in TREE.splitlines() if ".py" in line and len(line.split()) < 2] == []


@pytest.mark.parametrize("page", PROSE)
def test_every_file_that_is_named_is_there(page: str) -> None:
    """In pages, comments and docstrings; a module may be named without its folder."""
    text = (ROOT / page).read_text(encoding="utf-8")
    others = OF_OTHERS | set(GUIDES_PROGRAM.findall(text))
    named = {name.removeprefix("../") for name in NAME.findall(text)}
    assert named - ENDS - others == set()
    paths = {path for path in BELOW_A_PACKAGE.findall(text) if not path.endswith((".py", "-", "_"))}
    assert {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`make (test-[\w-]+)`", PAGE))))
def test_a_room_that_is_said_to_be_tested_has_tests(command: str) -> None:
    """`make test-service` runs tests/service."""
    assert list((ROOT / "tests" / command.removeprefix("test-")).rglob("test_*.py"))


def recipe(target: str) -> list[list[str]]:
    """The commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lines,) = re.findall(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", text, re.MULTILINE)
    return [shlex.split(line) for line in lines.splitlines()]


def hooks() -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return [hook | {"repo": repo["repo"]} for repo in config["repos"] for hook in repo["hooks"]]


def test_before_a_commit_the_same_runs_as_in_make_check() -> None:
    """`env` is for pre-commit, which starts a program and no shell."""
    entries = [shlex.split(hook["entry"]) for hook in hooks()]
    assert [entry[1:] if entry[0] == "env" else entry for entry in entries] == recipe("check")


def test_a_commit_fetches_nothing_and_leaves_no_file_out() -> None:
    for hook in hooks():
        assert (hook["repo"], hook["language"], hook["pass_filenames"]) == ("local", "system", False)
        assert not {"files", "types", "exclude", "stages"} & hook.keys()


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_for_issues_asks_for_something_and_names_each_answer_once(form: Path) -> None:
    asked = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert asked["name"]
    assert asked["description"]
    fields = [field for field in asked["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
