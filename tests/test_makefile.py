"""`make serve` with a stand-in for Python: what it says, and when."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Makes "environments" whose programs only tell that they were called.
PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
for program in pip python; do
    printf '#!/bin/sh\\necho "%s is run"\\n' "$program" > "$3/bin/$program"
    chmod +x "$3/bin/$program"
done
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(checkout: Path, target: str, **variables: str) -> list[str]:
    if not shutil.which("make"):
        pytest.skip("there is no make")
    done = subprocess.run(
        ["make", "--silent", target, "PYTHON=./python"],
        cwd=checkout,
        env={"PATH": "/usr/bin:/bin"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_first_time_it_says_that_it_will_take_a_while_before_it_does(checkout: Path) -> None:
    said, installed, where, served = make(checkout, "serve")
    assert said.startswith("Setting up the server's environment in .venv-serve: ")
    assert installed == "pip is run"
    assert "http://localhost:8000" in where
    assert "VIOLA_PORT" in where
    assert served == "python is run"


def test_the_second_time_it_serves_at_once_on_the_port_that_was_set(checkout: Path) -> None:
    make(checkout, "serve")
    where, served = make(checkout, "serve", VIOLA_PORT="9000")
    assert "http://localhost:9000" in where
    assert served == "python is run"
