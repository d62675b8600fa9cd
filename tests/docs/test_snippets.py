"""Every program and command that the documentation shows is run as it stands, or named here with its reason.

A fenced block with a title is a program of a guide, which another test of this folder runs by its name. One
without is run here, in a folder with the files that the pages speak of, beside a server; what a page has said
before, in words, is in SAID.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.harness.servers import running, viola

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
PAGES = [
    ROOT / "README.md",
    ROOT / "clients" / "python" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r'^```([\w+-]*)(?: title="([^"]+)")?[^\n]*\n(.*?)^```$', re.DOTALL | re.MULTILINE)
RUN = {"python", "sh", "console"}
PROGRAMS = RUN | {"bash", "js", "mjs", "ts", "sql"}
DATA = {"json", "yaml", "toml", "csv", "text", "nginx"}  # what is answered, configured or drawn

# (page, beginning of the block) of what is not run, and why.
TOO_LONG = (
    "takes hours: guides/train_your_own.md is the same with a tiny recipe, tests/training has every option"
)
NOT_RUN = {
    ("README.md", "git clone"): "sets up an environment; deploy/check-image.sh does so and serves",
    ("README.md", "ffmpeg -i rtsp"): "needs a camera; tests/docs/test_listen.py has ffmpeg read a file",
    (
        "README.md",
        ".venv/bin/python -m model_export import",
    ): "needs a file that is not shipped; docs/guides/import_weights.md is run where it is there",
    ("README.md", "docker build"): "needs a container engine; deploy/check-image.sh does the image's steps",
    ("README.md", "make .venv/ready"): TOO_LONG,
    ("docs/api.md", "arecord "): "needs a microphone; tests/service/test_app.py sends raw PCM",
    ("docs/guides/listen.md", "const stop"): "what it calls is run in a browser by tests/docs/test_listen.py",
    ("docs/guides/search.md", "CREATE EXTENSION"): "needs PostgreSQL with pgvector 0.7 or newer",
    (
        "docs/guides/import_weights.md",
        "python -m model_export import --encoder vggish",
    ): "needs files that are not shipped; tests/model_export/sources/test_published.py has random ones",
    (
        "docs/bring_your_own.md",
        "python -m model_export import",
    ): "needs a file that is not shipped; tests/model_export/test_yamnet.py takes it where it is there",
    (
        "docs/bring_your_own.md",
        "pip install '.[cpu,train,hf]'",
    ): "needs checkpoints that are not shipped; tests/model_export/sources/hf has random ones",
    ("docs/benchmarks.md", "pip install"): "packages that are not in this environment; tests/hear uses them",
    (
        "docs/benchmarks.md",
        "python -m hear.mteb",
    ): "downloads what MTEB tests; tests/hear has tasks of its own",
    ("docs/benchmarks.md", "mteb submit-results"): "writes to a repository of others",
    ("docs/benchmarks.md", "TASKS="): "downloads what X-ARES tests; tests/hear has a task of its own",
    ("docs/benchmarks.md", "python -m tests.hear"): "needs clips that are not shipped",
    ("docs/guides/import_weights.md", "curl -fL --remote-name-all"): "fetches files that are not shipped",
    ("docs/hear.md", "$ pip install --no-deps hearvalidator"): "tests/hear/test_hear.py runs the validator",
    ("docs/hear.md", "python -m heareval"): "needs a NumPy that Python 3.11 cannot install, as the page says",
    ("docs/protocols.md", "const url"): "tests/service/http/test_huggingface_api.py has Node run its fetch",
    ("docs/text_and_sound.md", "curl -F"): "needs a text tower; tests/docs/test_text_and_sound.py has one",
    (
        "docs/text_and_sound.md",
        "curl --json",
    ): "needs a text tower; tests/docs/test_text_and_sound.py has one",
    (
        "docs/text_and_sound.md",
        "import openai",
    ): "needs a text tower; tests/docs/test_text_and_sound.py has one",
    ("docs/training.md", ". .venv/bin/activate"): "enters the environment that this test runs in",
    ("docs/training.md", "python -m training pretrain"): TOO_LONG,
    ("docs/training.md", "python -m training distil"): TOO_LONG,
    (
        "docs/training.md",
        "python -m model_export import",
    ): "needs a file that is not shipped; tests/training/pretrain/test_distil_efficientat.py has random ones",
    ("docs/training.md", "python -m training fit-head"): TOO_LONG,
    ("docs/training.md", "python -m training evaluate"): TOO_LONG,
}

# What a page's Python has from the words around it.
SAID = {
    "docs/api.md": """
import base64, io, pathlib, httpx, numpy, openai
url, sound = "http://localhost:8000/embed", pathlib.Path("dog.ogg").read_bytes()
""",
    "clients/python/README.md": """
from viola_client import Client
paths, store, viola = ["dog.wav", "notes.txt"], print, Client("http://localhost:8000")
microphone = [bytes(16_000)] * 4
silence = [0.0] * 16_000
""",
    "docs/hear.md": "",
}

# Awaits at the top level, as the pages do.
RUNNER = """
import ast, asyncio, sys
code = compile(sys.stdin.read(), "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
waiting = eval(code, {"__name__": "__main__"})
if waiting is not None:
    asyncio.run(waiting)
"""


@dataclass(frozen=True)
class Snippet:
    page: str
    language: str
    title: str
    text: str

    def is_like(self, page: str, beginning: str) -> bool:
        return self.page == page and self.text.startswith(beginning)

    def __str__(self) -> str:
        return f"{self.page}: {self.title or self.text.splitlines()[0][:40]}"


def snippets() -> list[Snippet]:
    return [
        Snippet(str(page.relative_to(ROOT)), *found)
        for page in PAGES
        for found in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


SNIPPETS = [snippet for snippet in snippets() if snippet.language in PROGRAMS]
TITLED = [snippet for snippet in SNIPPETS if snippet.title]
HERE = [
    snippet
    for snippet in SNIPPETS
    if not snippet.title and not any(snippet.is_like(*not_run) for not_run in NOT_RUN)
]


@pytest.fixture(scope="module", autouse=True)
def _the_shipped_model_stays() -> Iterator[None]:
    """Whatever the pages tell their reader to do."""

    def seen() -> dict[Path, tuple[int, int]]:
        files = [path for path in (ROOT / "models").rglob("*") if path.is_file()]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = seen()
    yield
    assert seen() == before


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = viola(ROOT / "models" / "byola", "int8")
    taught = {"VIOLA_DATA_DIR": str(tmp_path_factory.mktemp("taught"))}
    with running(replace(server, environment=server.environment | taught)) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what the pages speak of; this Python lies in the environments that they name."""
    shutil.copy(FIXTURES / "dog_bark_44k1_mono.ogg", tmp_path / "dog.ogg")
    shutil.copy(FIXTURES / "keyword_yes_16k_mono_pcm16.wav", tmp_path / "dog.wav")
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "my_sounds").mkdir()
    shutil.copy(tmp_path / "dog.ogg", tmp_path / "my_sounds")
    for name in ("models", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in (".venv", ".venv-serve"):
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    return tmp_path


def run(command: list[str], desk: Path, url: str, text: str = "") -> str:
    environment = os.environ | {
        "PATH": f"{desk / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}",
        "VIOLA_URL": url,
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, input=text, cwd=desk, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_shell(script: str, desk: Path, url: str) -> str:
    return run(["bash", "-euo", "pipefail", "-c", script.replace("http://localhost:8000", url)], desk, url)


def words(text: str) -> set[str]:
    """The names in an answer; its numbers are the machine's."""
    return set(re.findall(r'"[a-z]\w*"', text))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("snippet", [each for each in HERE if each.language == "python"], ids=str)
def test_python_runs(snippet: Snippet, desk: Path, url: str) -> None:
    text = SAID.get(snippet.page, "") + snippet.text
    run([sys.executable, "-c", RUNNER], desk, url, text.replace("http://localhost:8000", url))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("snippet", [each for each in HERE if each.language == "sh"], ids=str)
def test_commands_run(snippet: Snippet, desk: Path, url: str) -> None:
    out = run_shell(re.sub(r"\bcurl ", "curl -fsS ", snippet.text), desk, url)
    assert out or any(path.suffix == ".npz" for path in desk.iterdir())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("snippet", [each for each in HERE if each.language == "console"], ids=str)
def test_commands_print_what_is_shown(snippet: Snippet, desk: Path, url: str) -> None:
    for command, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", snippet.text, re.MULTILINE):
        out = run_shell(re.sub(r"\bcurl ", "curl -fsS ", command), desk, url)
        assert words(shown)
        assert words(shown) <= words(out)


def test_every_program_with_a_name_is_run_by_it() -> None:
    """By a test, or by another program of its guide."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    imported = {"app.py": "import app,"}
    for snippet in TITLED:
        others = "".join(each.text for each in TITLED if each.page == snippet.page and each != snippet)
        named = imported.get(snippet.title, f'"{snippet.title}"')
        assert named in tests or snippet.title in others, f"{snippet} is run by no test"


def test_every_program_without_a_name_is_run_here_or_said_to_be_not() -> None:
    assert [str(each) for each in HERE if each.language not in RUN] == []


@pytest.mark.parametrize("not_run", NOT_RUN, ids=" ".join)
def test_what_is_said_to_be_not_run_is_still_shown(not_run: tuple[str, str]) -> None:
    assert any(snippet.is_like(*not_run) for snippet in SNIPPETS)


def test_every_fenced_block_says_its_language() -> None:
    assert [str(each) for each in snippets() if each.language not in PROGRAMS | DATA] == []
