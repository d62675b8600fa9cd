"""The commit that the code runs from, which runs and cards name so that they can be made again."""

import subprocess
from pathlib import Path


def commit_of(folder: Path) -> str:
    """The commit checked out in `folder`; empty outside a repository, before its first one, without git."""
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return ""
    return found.stdout.strip()
