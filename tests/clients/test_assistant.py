"""The server for assistants, asked by the protocol's own client: over stdio, and in memory."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from benchmarks.harness.servers import ROOT, running, viola

mcp = pytest.importorskip("mcp")
CLIENT = ROOT / "clients" / "python"
sys.path.insert(0, str(CLIENT))

from viola_client import Client  # noqa: E402 - it is no package of this repository's environment
from viola_client.assistant import assistant_server  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures"
DOG = FIXTURES / "dog_bark_44k1_mono.ogg"
TOOLS = {"what_is_heard", "when_is_it_heard", "what_can_be_heard"}

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(viola(ROOT / "models" / "byola", "auto")) as up:
        yield f"http://127.0.0.1:{up.port}"


@pytest.fixture(scope="module")
def ask(url: str) -> Iterator[Ask]:
    """A tool and its arguments in, the structured answer out, or the error's sentence; in memory."""
    with Client(url) as client:
        server = assistant_server(client)

        def ask(tool: str, **arguments: Any) -> Any:
            head = {} if tool == "what_can_be_heard" else {"head": "esc50"}
            return asyncio.run(asked(server, tool, **head | arguments))

        yield ask


async def asked(server: Any, tool: str, **arguments: Any) -> Any:
    async with mcp.Client(server) as client:
        result = await client.call_tool(tool, arguments)
        return result.content[0].text if result.is_error else result.structured_content


@pytest.fixture(scope="module")
def barks_late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of almost nothing, then the dog."""
    bark, rate_hz = soundfile.read(DOG, dtype="float32")
    hiss = np.random.default_rng(0).normal(scale=1e-5, size=4 * rate_hz).astype(np.float32)
    path = tmp_path_factory.mktemp("sounds") / "late.wav"
    soundfile.write(path, np.concatenate([hiss, bark]), rate_hz)
    return path


def test_the_command_answers_over_stdio(url: str) -> None:
    parameters = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "viola_client", "mcp", "--server", url],
        env={"PYTHONPATH": str(CLIENT), "PATH": os.environ["PATH"]},
    )

    async def ask() -> tuple[set[str], Any]:
        async with mcp.Client(parameters) as client:
            tools = (await client.list_tools()).tools
            assert all(tool.description and tool.output_schema for tool in tools)
            return {tool.name for tool in tools}, await client.call_tool(
                "what_is_heard", {"sound": str(DOG), "head": "esc50"}
            )

    names, result = asyncio.run(ask())
    assert names == TOOLS
    assert not result.is_error
    assert result.structured_content["labels"][0]["label"] == "dog"


def test_what_is_heard_is_what_classify_says(ask: Ask, url: str) -> None:
    answer = ask("what_is_heard", sound=str(DOG), top_k=3)
    expected = httpx.post(f"{url}/classify?top_k=3&head=esc50", files={"file": DOG.read_bytes()}).json()
    assert answer["labels"] == expected["tags"]
    assert answer["duration_s"] == expected["duration_s"]
    assert (answer["model"], answer["head"]) == (expected["model"], expected["head"])


def test_when_it_is_heard_is_told_in_seconds(ask: Ask, barks_late: Path) -> None:
    answer = ask("when_is_it_heard", sound=str(barks_late), label="Dog")
    assert answer["happenings"]
    assert {each["label"] for each in answer["happenings"]} == {"dog"}
    # The windows in which events are looked for begin before the bark that they hold.
    assert answer["happenings"][0]["start_s"] >= 3
    assert all(each["end_s"] <= answer["duration_s"] for each in answer["happenings"])


def test_without_a_label_everything_is_told_in_order(ask: Ask, barks_late: Path) -> None:
    answer = ask("when_is_it_heard", sound=str(barks_late), begin=0.2)
    starts = [each["start_s"] for each in answer["happenings"]]
    assert starts == sorted(starts)
    assert "dog" in {each["label"] for each in answer["happenings"]}
    assert answer["more"] == 0


def test_the_labels_are_listed_by_head(ask: Ask, url: str) -> None:
    sets = {each["head"]: each["labels"] for each in ask("what_can_be_heard")["sets"]}
    heads = httpx.get(f"{url}/models/byola").json()["heads"]
    assert sets == {head["name"]: head["labels"] for head in heads}


def test_a_url_is_fetched(ask: Ask) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(FIXTURES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        try:
            where = f"http://127.0.0.1:{files.server_port}"
            answer = ask("what_is_heard", sound=f"{where}/{DOG.name}")
            missing = ask("what_is_heard", sound=f"{where}/none.wav")
        finally:
            files.shutdown()
            thread.join()
    assert answer["labels"][0]["label"] == "dog"
    assert "the URL answers 404" in missing


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("what_is_heard", {"sound": "/no/such.wav"}, "there is no file '/no/such.wav'"),
        ("what_is_heard", {"sound": "a\0b"}, "cannot be read"),
        ("what_is_heard", {"sound": "ftp://a/b.wav"}, "only http and https"),
        ("what_is_heard", {"sound": "http://127.0.0.1:9/a.wav"}, "the URL cannot be fetched"),
        ("what_is_heard", {"sound": str(FIXTURES / "invalid" / "text.wav")}, "the file is not audio"),
        ("what_is_heard", {"sound": str(DOG), "head": "birds"}, "no head `birds`"),
        ("when_is_it_heard", {"sound": str(DOG), "label": "dgo"}, "near it are `dog`"),
        ("when_is_it_heard", {"sound": str(DOG), "label": "qqq"}, "what_can_be_heard lists"),
        ("when_is_it_heard", {"sound": str(DOG), "label": "dog", "model": "no"}, "no model `no`"),
        ("when_is_it_heard", {"sound": str(DOG), "label": "dog", "head": "no"}, "no head `no`"),
        ("what_can_be_heard", {"model": "no"}, "there is `byola`"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_sentence(
    tool: str, arguments: dict[str, Any], sentence: str, ask: Ask
) -> None:
    answer = ask(tool, **arguments)
    assert isinstance(answer, str)
    assert sentence in answer
    assert len(answer) < 1000


def test_files_outside_the_folder_are_not_read(url: str, tmp_path: Path) -> None:
    (tmp_path / "inside.ogg").write_bytes(DOG.read_bytes())
    (tmp_path / "link.ogg").symlink_to(DOG)
    with Client(url) as client:
        server = assistant_server(client, folder=tmp_path)
        inside = asyncio.run(asked(server, "what_is_heard", sound=str(tmp_path / "inside.ogg"), head="esc50"))
        assert inside["labels"][0]["label"] == "dog"
        for outside in (DOG, tmp_path / "link.ogg", tmp_path / ".." / "x.wav"):
            answer = asyncio.run(asked(server, "what_is_heard", sound=str(outside)))
            assert answer.endswith("may be read")


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    from viola_client import Retries

    with Client("http://127.0.0.1:9", retries=Retries(attempts=1)) as client:
        answer = asyncio.run(asked(assistant_server(client), "what_is_heard", sound=str(DOG)))
    assert isinstance(answer, str)
    assert "127.0.0.1:9" in answer or "server" in answer
