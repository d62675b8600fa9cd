"""A run and a card name the commit of the code, where there is one."""

import subprocess
from pathlib import Path

import pytest

from encoders.commit import commit_of


def test_the_commit_is_empty_where_there_is_none(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=Test", "-c", "user.email=test@example.org"]
    assert commit_of(tmp_path) == ""
    subprocess.run([*git, "init", "--quiet"], check=True, capture_output=True)
    assert commit_of(tmp_path) == ""
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "First"], check=True)
    assert len(commit_of(tmp_path)) == 40


def test_the_commit_is_empty_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(Path(__file__).parent) == ""
