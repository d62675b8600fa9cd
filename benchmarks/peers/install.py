"""The peers' environments: `python -m benchmarks.peers.install [NAME …]` makes .venv-peers/NAME for each.

NAME is a folder here with a requirements.txt, all of them by default. An environment whose requirements have
not changed since is left alone. Takes 1 to 2 minutes and 0.5 to 0.8 GB each.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.results import ROOT, say

FOLDER = Path(__file__).parent
ENVIRONMENTS = ROOT / ".venv-peers"
NAMES = tuple(sorted(path.parent.name for path in FOLDER.glob("*/requirements.txt")))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.install", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    names = parser.parse_args().names
    for name in names or NAMES:
        if name not in NAMES:
            parser.error(f"there is no peer {name!r}; there are {', '.join(NAMES)}")
        install(name)


def install(name: str) -> None:
    """Makes the environment unless it is there. Raises CalledProcessError with pip's own words above it."""
    if is_installed(name):
        say(f"{name}: its environment is there")
        return
    say(f"{name}: installing into {environment(name)} …")
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment(name)], check=True)
    subprocess.run([python_of(name), "-m", "pip", "install", "--quiet", "-r", requirements(name)], check=True)
    _marker(name).write_text(requirements(name).read_text())


def is_installed(name: str) -> bool:
    """With the requirements of today: what was installed is written down in the environment."""
    marker = _marker(name)
    return marker.is_file() and marker.read_text() == requirements(name).read_text()


def version_of(name: str, package: str) -> str:
    """As pinned."""
    pins = (line.partition("==") for line in requirements(name).read_text().splitlines())
    return next(version for found, _, version in pins if found == package)


def environment(name: str) -> Path:
    return ENVIRONMENTS / name


def python_of(name: str) -> Path:
    return environment(name) / "bin" / "python"


def requirements(name: str) -> Path:
    return FOLDER / name / "requirements.txt"


def _marker(name: str) -> Path:
    return environment(name) / "installed.txt"


if __name__ == "__main__":
    main()
