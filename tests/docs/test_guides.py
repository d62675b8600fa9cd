"""The guides' programs, taken out of their pages and run against a live server."""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers import running, viola

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
FIXTURES = ROOT / "tests" / "fixtures"
DOG = FIXTURES / "dog_bark_44k1_mono.ogg"
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with running(viola(ROOT / "models" / "byola", "int8")) as server:
        url = f"http://127.0.0.1:{server.port}"
        yield os.environ | {"VIOLA_URL": url, "PYTHONPATH": str(ROOT / "clients" / "python")}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with every program of every guide."""
    for guide in GUIDES.glob("*.md"):
        for name, text in BLOCK.findall(guide.read_text(encoding="utf-8")):
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_uploads_are_tagged(programs: Path, environment: dict[str, str]) -> None:
    ask = f"""
import app, json
from fastapi.testclient import TestClient
with TestClient(app.app) as client:
    good = client.post("/uploads", files={{"file": ("dog.ogg", open({str(DOG)!r}, "rb"))}})
    bad = client.post("/uploads", files={{"file": ("a.txt", b"no sound")}})
    print(json.dumps([good.json(), bad.status_code, bad.json()]))
"""
    out = run([sys.executable, "-W", "ignore", "-c", ask], programs, environment)
    assert '"dog":' in out
    assert "422" in out


def test_the_nearest_sound_is_the_sound_itself(programs: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("qdrant_client")
    sounds = programs / "sounds"
    sounds.mkdir()
    for path in (DOG, FIXTURES / "rain_44k1_mono.mp3", FIXTURES / "invalid" / "text.wav"):
        shutil.copy(path, sounds)
    first, second = run(
        [sys.executable, "search.py", str(sounds), str(DOG)], programs, environment
    ).splitlines()
    assert first.startswith("1.000")
    assert first.endswith(DOG.name)
    assert "rain" in second


def test_a_sound_that_appears_gets_its_line(programs: Path, environment: dict[str, str]) -> None:
    incoming, table = programs / "incoming", programs / "tags.csv"
    incoming.mkdir()
    command = [sys.executable, "watch.py", str(incoming), str(table)]
    with subprocess.Popen(
        command, cwd=programs, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("watching")
            time.sleep(1)  # the watch itself begins a moment later
            shutil.copy(DOG, programs / "whole.ogg")
            (programs / "whole.ogg").rename(incoming / "dog.ogg")
            deadline = time.monotonic() + 60
            while not (table.exists() and table.read_text()):
                assert time.monotonic() < deadline, "no line was written"
                time.sleep(0.2)
        finally:
            process.terminate()
    with table.open(newline="") as file:
        name, label, score = next(csv.reader(file))
    assert (name, label) == ("dog.ogg", "dog")
    assert 0.5 < float(score) <= 1


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node")
def test_javascript_gets_tags_and_vectors(programs: Path, environment: dict[str, str]) -> None:
    assert run(["node", "tag.mjs", str(DOG)], programs, environment) == "dog 3072\n"
