"""The programs and commands of docs/text_and_sound.md, beside a small model that has a text tower."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_snippets import SNIPPETS, Snippet
from tests.service.http.live import serving
from tests.service.text_towers import write_text_toy

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
PAGE = "docs/text_and_sound.md"
HERE = [snippet for snippet in SNIPPETS if snippet.page == PAGE]
(SEARCH,) = (snippet for snippet in HERE if snippet.title == "search_by_words.py")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    write_text_toy(folder / "clap", name="clap")
    with serving(folder, model="clap") as (client, _):
        yield str(client.base_url).rstrip("/")


def run(command: list[str], folder: Path, url: str) -> str:
    environment = os.environ | {"VIOLA_URL": url, "PYTHONPATH": str(ROOT / "clients" / "python")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("snippet", [each for each in HERE if each.language == "sh"], ids=str)
def test_commands_answer(snippet: Snippet, tmp_path: Path, url: str) -> None:
    shutil.copy(FIXTURES / "dog_bark_44k1_mono.ogg", tmp_path / "dog.ogg")
    command = re.sub(r"\bcurl ", "curl -fsS ", snippet.text.replace("http://localhost:8000", url))
    answer = json.loads(run(["bash", "-euo", "pipefail", "-c", command], tmp_path, url))
    assert {"results", "tags"} & set(answer)


def test_sounds_are_found_by_words(tmp_path: Path, url: str) -> None:
    (tmp_path / "sounds").mkdir()
    for name in ("dog_bark_44k1_mono.ogg", "rain_44k1_mono.mp3"):
        shutil.copy(FIXTURES / name, tmp_path / "sounds")
    (tmp_path / "sounds" / "notes.txt").write_text("no sound")
    (tmp_path / "search_by_words.py").write_text(SEARCH.text)
    out = run([sys.executable, "search_by_words.py", "sounds", "a dog barks", "rain"], tmp_path, url)
    assert len(re.findall(r"^  -?\d\.\d{3}  \S+\.(?:ogg|mp3)$", out, re.MULTILINE)) == 4
    assert "notes" not in out


def test_openais_client_gets_vectors(tmp_path: Path, url: str) -> None:
    (snippet,) = (each for each in HERE if each.language == "python" and not each.title)
    text = snippet.text.replace("http://localhost:8000", url) + "\nprint(len(vectors.data))"
    assert run([sys.executable, "-c", text], tmp_path, url).strip() == "2"
