"""/stream by both doors: what comes is what /classify says, whoever sends it, and nobody else notices."""

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.http.app import create_app
from service.http.stream_session import StreamSession, _Clock
from service.inference.live import LiveSound
from service.settings import Settings
from tests.service.http.live import embed, held_worker, noise, serving, wav
from tests.service.recordings import cut, recorded
from tests.service.servers import ServerProcess, in_thread, until, url_of

PCM = {"rate": 16_000}
CHROMIUM = os.environ.get("VIOLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def pcm(seconds: float, seed: int = 0) -> bytes:
    """s16le at 16 kHz: noise in bursts of half a second."""
    random = np.random.default_rng(seed)
    n = round(16_000 * seconds)
    loud = np.repeat(random.choice([0.01, 1.0], n // 8_000 + 1), 8_000)[:n]
    return bytes((random.normal(size=n) * loud * 6_000).astype("<i2").tobytes())


def as_wav(data: bytes) -> bytes:
    return wav(np.frombuffer(data, "<i2"), subtype="PCM_16")


def url(client: httpx.Client, **parameters: Any) -> str:
    base = str(client.base_url.copy_with(scheme="ws", path="/stream"))
    return f"{base}?{httpx.QueryParams(parameters)}"


def heard(
    client: httpx.Client, messages: Sequence[bytes | str], **parameters: Any
) -> tuple[list[dict[str, Any]], int]:
    """What a WebSocket says to these messages and {"type": "end"}, and its close code."""
    with connect(url(client, **parameters)) as line:
        with contextlib.suppress(ConnectionClosed):
            for message in messages:
                line.send(message)
            line.send('{"type": "end"}')
        return all_of(line)


def all_of(line: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    found = []
    try:
        while True:
            found.append(json.loads(line.recv(timeout=20)))
    except ConnectionClosed:
        assert line.close_code is not None
        return found, line.close_code


def posted(client: httpx.Client, content: bytes, **parameters: Any) -> list[dict[str, Any]]:
    answer = client.post("/stream", content=content, params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def of_type(messages: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Without their type."""
    return [{k: v for k, v in each.items() if k != "type"} for each in messages if each["type"] == kind]


def classified(client: httpx.Client, data: bytes, media_type: str, **parameters: Any) -> dict[str, Any]:
    answer = client.post("/classify", content=data, headers={"Content-Type": media_type}, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_both_doors_say_what_classify_says(client: httpx.Client) -> None:
    data = pcm(8.3)
    windows = {"head": "moods", "window_s": 1, "hop_s": 0.4}
    timeline = classified(client, as_wav(data), "audio/wav", **windows)["timeline"]
    calm = [tag["score"] for window in timeline for tag in window["tags"] if tag["label"] == "calm"]
    # A threshold between its scores, so that there are events and gaps.
    wanted = windows | {"begin": float(np.median(calm)), "end": float(np.median(calm)) / 1.05, "top_k": 2}
    wanted |= {"gap_s": 0.3, "shortest_s": 0}
    answer = classified(client, as_wav(data), "audio/wav", segments="true", **wanted)
    assert len(answer["timeline"]) == 20
    assert answer["segments"]
    by_socket, code = heard(client, cut(data, [1, 999, 64_000]), **PCM, **wanted)
    assert code == 1000
    for messages in (by_socket, posted(client, data, **PCM, **wanted)):
        assert messages[0] == {
            "type": "ready",
            "model": "toy",
            "head": "moods",
            "window_s": 1.0,
            "hop_s": 0.4,
        }
        assert messages[-1] == {"type": "end", "seconds": 8.3}
        tags = of_type(messages, "tags")
        assert [(t["start_s"], t["end_s"]) for t in tags] == [
            (t["start_s"], t["end_s"]) for t in answer["timeline"]
        ]
        for live, uploaded in zip(tags, answer["timeline"], strict=True):
            assert [t["label"] for t in live["tags"]] == [t["label"] for t in uploaded["tags"]]
            for one, other in zip(live["tags"], uploaded["tags"], strict=True):
                assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        events = sorted(of_type(messages, "event"), key=lambda event: (event["start_s"], event["label"]))
        expected = sorted(answer["segments"], key=lambda event: (event["start_s"], event["label"]))
        assert [{**e, "score": 0} for e in events] == [{**e, "score": 0} for e in expected]


def test_small_messages_are_gathered_until_a_piece_is_complete(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of a second each: a decode thread is asked once a window, and once for the end."""
    pushed: list[int] = []
    push = LiveSound.push

    async def counted(live: LiveSound, data: bytes, deliver: Any) -> None:
        pushed.append(len(data))
        await push(live, data, deliver)

    monkeypatch.setattr(LiveSound, "push", counted)
    data = pcm(6)
    messages, code = heard(client, cut(data, [3_200]), **PCM, head="moods", window_s=1)
    assert (len(of_type(messages, "tags")), code) == (6, 1000)
    assert sum(pushed) == len(data)
    assert len(pushed) <= 6 + 1


def test_the_embeddings_are_those_of_embed(client: httpx.Client) -> None:
    data = pcm(3)
    expected = embed(client, as_wav(data), window_s=1, hop_s=0.5)["windows"]["embeddings"]
    messages, _ = heard(client, [data], **PCM, window_s=1, hop_s=0.5, embeddings="true")
    found = [message["embedding"] for message in of_type(messages, "tags")]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("container", ["webm", "ogg"])
def test_what_a_browser_records_says_what_its_file_says(client: httpx.Client, container: Any) -> None:
    data = recorded(container, 3)
    kind = {"Content-Type": f"audio/{container}"}
    wanted = {"window_s": 1, "hop_s": 0.5}
    answer = classified(client, data, f"audio/{container}", **wanted)
    by_socket, code = heard(client, cut(data, [700]), format=container, **wanted)
    assert code == 1000
    lines = client.post("/stream", content=data, headers=kind, params=wanted).text.splitlines()
    by_request = of_type([json.loads(line) for line in lines], "tags")
    assert len(by_request) == len(answer["timeline"]) == 5
    for live, uploaded in zip(of_type(by_socket, "tags") + by_request, 2 * answer["timeline"], strict=True):
        for one, other in zip(live["tags"], uploaded["tags"], strict=True):
            assert one == {"label": other["label"], "score": pytest.approx(other["score"], abs=1e-3)}


RECORD = """async (mimeType) => {
    const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    const recorder = new MediaRecorder(microphone, { mimeType });
    const pieces = [];
    recorder.ondataavailable = ({ data }) => pieces.push(data);
    recorder.start(100);
    await new Promise((done) => setTimeout(done, 3000));
    const stopped = new Promise((done) => { recorder.onstop = done; });
    recorder.stop();
    await stopped;
    return await Promise.all(pieces.map(async (piece) => [...new Uint8Array(await piece.arrayBuffer())]));
}"""


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_what_a_real_browser_records_says_what_its_file_says(client: httpx.Client) -> None:
    """Chromium's MediaRecorder, which writes WebM alone, and its fake microphone, which beeps."""
    playwright_api = pytest.importorskip("playwright.sync_api")
    fake = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=fake)
        page = browser.new_page()
        page.goto(str(client.base_url.copy_with(path="/")))
        pieces = [bytes(piece) for piece in page.evaluate(RECORD, "audio/webm;codecs=opus")]
        browser.close()
    assert len(pieces) > 5
    wanted = {"window_s": 1, "hop_s": 0.5}
    answer = classified(client, b"".join(pieces), "audio/webm", **wanted)
    assert answer["duration_s"] > 1
    for messages in (pieces, [b"".join(pieces)], cut(b"".join(pieces), [333])):
        said, code = heard(client, messages, format="webm", **wanted)
        assert code == 1000
        tags = of_type(said, "tags")
        assert [(t["start_s"], t["end_s"]) for t in tags] == [
            (t["start_s"], t["end_s"]) for t in answer["timeline"]
        ]
        for live, uploaded in zip(tags, answer["timeline"], strict=True):
            for one, other in zip(live["tags"], uploaded["tags"], strict=True):
                assert one == {"label": other["label"], "score": pytest.approx(other["score"], abs=1e-3)}


@contextlib.contextmanager
def raw_post(client: httpx.Client, query: str, first: bytes = b"") -> Iterator[socket.socket]:
    """A request whose body goes on. first: what of it is sent with its head."""
    host, port = client.base_url.host, client.base_url.port
    assert port
    with socket.create_connection((host, port), timeout=20) as sock:
        head = f"POST /stream?{query} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        sock.sendall(head.encode() + first)
        yield sock


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_request_is_answered_while_its_body_still_comes(client: httpx.Client) -> None:
    with raw_post(client, "rate=16000&window_s=1&hop_s=1") as sock:
        lines = sock.makefile("rb")
        head = iter(lambda: lines.readline().strip(), b"")
        assert next(head) == b"HTTP/1.1 200 OK"
        list(head)

        def message() -> dict[str, Any]:
            n = int(lines.readline(), 16)
            line = lines.read(n + 2)
            found: dict[str, Any] = json.loads(line)
            return found

        assert message()["type"] == "ready"
        for second in range(3):
            sock.sendall(chunk(pcm(1 if second else 1.2)))
            assert message()["end_s"] == second + 1
        sock.sendall(b"0\r\n\r\n")
        last = message()
        while last["type"] != "end":
            last = message()
        assert last == {"type": "end", "seconds": pytest.approx(3.2)}


NAN = np.array([0.0, np.nan], "<f4").tobytes()
BAD = {
    "an unknown format": ({"format": "mp3"}, [], "bad_request", 1008),
    "no rate": ({}, [], "bad_request", 1008),
    "an odd rate": ({"rate": 7_999}, [], "bad_request", 1008),
    "too many channels": (PCM | {"channels": 9}, [], "bad_request", 1008),
    "an unknown parameter": (PCM | {"windows": 1}, [], "bad_request", 1008),
    "a hop without a window": (PCM | {"hop_s": 1}, [], "bad_request", 1008),
    "windows that pile up": (PCM | {"window_s": 60, "hop_s": 0.1}, [], "bad_request", 1008),
    "a rate of a container": ({"format": "webm", "rate": 48_000}, [], "bad_request", 1008),
    "an unknown model": (PCM | {"model": "none"}, [], "unknown_model", 1008),
    "an unknown head": (PCM | {"head": "none"}, [], "unknown_head", 1008),
    "half a sample": (PCM, [bytes(3)], "audio_unreadable", 1007),
    "no numbers": (PCM | {"format": "f32le"}, [NAN], "audio_unreadable", 1007),
    "text": (PCM, ["hello"], "bad_request", 1008),
    "JSON of another kind": (PCM, ['{"type": "begin"}'], "bad_request", 1008),
    "no object": (PCM, ['"end"'], "bad_request", 1008),
    "the middle of a WebM": ({"format": "webm"}, [recorded("webm", 1)[700:]], "audio_unreadable", 1007),
    "the middle of an Ogg": ({"format": "ogg"}, [recorded("ogg", 1)[700:]], "audio_unreadable", 1007),
    "no WebM at all": ({"format": "webm"}, [b"RIFF" * 100], "audio_unreadable", 1007),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_before_the_close(client: httpx.Client, name: str) -> None:
    parameters, messages, error, code = BAD[name]
    said, close_code = heard(client, messages, **parameters)
    assert (said[-1]["type"], said[-1]["error"], close_code) == ("error", error, code)
    assert len(said[-1]["detail"]) > 10
    content = b"".join(each for each in messages if isinstance(each, bytes))
    if len(content) == sum(map(len, messages)):  # the other door has no text messages
        answer = client.post("/stream", content=content, params=parameters)
        last = json.loads(answer.text.splitlines()[-1])
        assert last["error"] == error
        assert answer.status_code == (200 if messages else 404 if "unknown" in error else 422)


def test_raw_samples_may_be_told_by_their_media_type(client: httpx.Client) -> None:
    data = pcm(2)
    expected = posted(client, data, **PCM)
    big_endian = np.frombuffer(data, "<i2").astype(">i2").tobytes()
    l16 = {"Content-Type": "audio/l16;rate=16000"}
    answer = client.post("/stream", content=big_endian, headers=l16)
    assert [json.loads(line) for line in answer.text.splitlines()] == expected
    twice = client.post("/stream", content=big_endian, headers=l16, params=PCM)
    assert (twice.status_code, twice.json()["error"]) == (422, "bad_request")
    text = client.post("/stream", content=data, headers={"Content-Type": "text/plain"}, params=PCM)
    assert (text.status_code, text.json()["error"]) == (415, "unsupported_media_type")


def test_a_key_may_come_as_a_subprotocol(models_dir: Path) -> None:
    with serving(models_dir, api_keys=("se/cret",)) as (client, _):
        said, code = heard(client, [], **PCM)
        assert (said[0]["error"], code) == ("unauthorized", 1008)
        assert client.post("/stream", params=PCM).status_code == 401
        for offered in (["viola", "viola.key.se%2Fcret"], ["viola.key.se%2Fcret"]):
            with connect(url(client, **PCM), subprotocols=offered) as line:  # type: ignore[arg-type]
                assert line.subprotocol == offered[0]
                assert json.loads(line.recv())["type"] == "ready"
        headers = {"Authorization": "Bearer se/cret"}
        with connect(url(client, **PCM), additional_headers=headers) as line:
            assert json.loads(line.recv())["type"] == "ready"


def test_one_stream_too_many_is_refused_by_either_door(models_dir: Path) -> None:
    with serving(models_dir, max_streams=1) as (client, state):
        with connect(url(client, **PCM)) as line:
            assert json.loads(line.recv())["type"] == "ready"
            said, code = heard(client, [], **PCM)
            assert (said[0]["error"], said[0]["retry_after_s"], code) == ("overloaded", 10, 1013)
            answer = client.post("/stream", content=pcm(1), params=PCM)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
            assert answer.json()["detail"] == said[0]["detail"]
        until(lambda: len(state.streams) == 0)
        assert heard(client, [], **PCM)[1] == 1000


def test_streams_take_a_share_of_what_the_model_can_do(models_dir: Path) -> None:
    with serving(models_dir) as (client, state), connect(url(client, **PCM, window_s=1)) as line:
        assert json.loads(line.recv())["type"] == "ready"
        state.embedder.batcher._cost_per_s = 250.0  # a stream of the toy costs 112
        assert heard(client, [], **PCM, window_s=1)[0][0]["error"] == "overloaded"
        state.embedder.batcher._cost_per_s = 500.0
        assert heard(client, [], **PCM, window_s=1)[1] == 1000


@pytest.mark.parametrize("drops", [False, True])
def test_a_silent_line_ends_the_stream(models_dir: Path, drops: bool) -> None:
    with serving(models_dir, stream_idle_s=0.5) as (client, state):
        with raw_post(client, "rate=16000&window_s=1", chunk(pcm(1.5))) as sock:
            said = b""
            sock.settimeout(0.1)
            while b'"error"' not in said:
                with contextlib.suppress(TimeoutError):
                    part = sock.recv(10_000)
                    assert part, said
                    said += part
                if drops:  # a sample now and then is as good as nothing
                    sock.sendall(chunk(bytes(2)))
        assert b'"error":"upload_timeout"' in said
        assert said.count(b'"type":"tags"') == 2  # what there was is said first
        until(lambda: ends(client, "idle") == 1, 20)
        assert len(state.streams) == 0
        with connect(url(client, **PCM)) as line:
            said_by_socket, code = all_of(line)
        assert (said_by_socket[-1]["error"], code) == ("upload_timeout", 1008)


def ends(client: httpx.Client, reason: str) -> float:
    line = next(
        each
        for each in client.get("/metrics").text.splitlines()
        if each.startswith(f'viola_stream_ends_total{{reason="{reason}"}}')
    )
    return float(line.rsplit(" ", 1)[1])


def test_a_client_that_vanishes_leaves_nothing(models_dir: Path) -> None:
    with serving(models_dir) as (client, state):
        with connect(url(client, **PCM)) as line:
            line.send(pcm(1.1))
            line.recv()
            line.socket.shutdown(socket.SHUT_RDWR)  # no close frame
        until(lambda: ends(client, "client_left") == 1, 20)
        with raw_post(client, "rate=16000", chunk(pcm(1))) as sock:
            sock.recv(100)
        until(lambda: ends(client, "client_left") == 2, 20)
        assert len(state.streams) == 0


def test_a_client_that_never_reads_is_cut(models_dir: Path) -> None:
    app = create_app(
        Settings(models_dir=models_dir, model="toy", device="cpu", threads=2, answer_timeout_s=0.3)
    )
    with (
        in_thread(app) as server,
        httpx.Client(base_url=url_of(server), timeout=20) as client,
        socket.socket() as sock,
    ):
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.connect((client.base_url.host, client.base_url.port))
        query = "rate=8000&embeddings=true&window_s=0.1&hop_s=0.1"
        sent = 0
        address = url(client).replace("?", f"?{query}")
        with (
            contextlib.suppress(ConnectionClosed, OSError, TimeoutError),
            connect(address, sock=sock, max_queue=1, close_timeout=1) as line,
        ):
            for _ in range(3_000):
                line.send(bytes(16_000))
                sent += 1
        until(lambda: ends(client, "unread") == 1, 20)
        assert sent < 3_000
        assert len(app.state.server.streams) == 0


def test_a_sender_that_is_too_fast_waits(models_dir: Path) -> None:
    """Of what it sends a bounded part is taken while there is no worker; the rest stays with it."""
    with serving(models_dir) as (client, state):
        assert embed(client, wav(noise(1)))
        with raw_post(client, "rate=16000") as sock, held_worker(state):
            sock.setblocking(False)
            taken = 0
            with contextlib.suppress(BlockingIOError):
                while taken < 100_000_000:
                    taken += sock.send(chunk(bytes(64_000)))
            threading.Event().wait(0.2)
            assert taken < 30_000_000  # the buffers of both systems, and a little here
            assert client.get("/health/live").status_code == 200


def test_a_server_that_falls_behind_says_so(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.stream_session.LAG_S", 0.1)
    with serving(models_dir) as (client, state), connect(url(client, **PCM, window_s=1)) as line:
        line.send(pcm(1.3))
        assert [json.loads(line.recv())["type"] for _ in range(2)] == ["ready", "tags"]
        with held_worker(state):
            line.send(pcm(1))
            threading.Event().wait(1.5)  # the second has come, and half of one has passed since
        said = [json.loads(line.recv()) for _ in range(2)]
        assert [each["type"] for each in said] == ["tags", "lag"]
        assert 0.1 < said[1]["seconds"] < 20
        assert lags(client) >= 1


def lags(client: httpx.Client) -> float:
    (line,) = (
        each
        for each in client.get("/metrics").text.splitlines()
        if each.startswith('viola_stream_messages_total{type="lag"}')
    )
    return float(line.rsplit(" ", 1)[1])


def test_a_file_that_is_sent_faster_than_it_sounds_is_no_lag(client: httpx.Client) -> None:
    said, _ = heard(client, cut(pcm(30), [100_000]), **PCM, window_s=1)
    assert len(of_type(said, "tags")) == 30
    assert not of_type(said, "lag")


def test_lag_is_real_time_less_what_was_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("service.http.stream_session.time.monotonic", lambda: now)
    clock = _Clock()
    clock.received(now, waited_s=1.0)  # the sender was waited for: the server has kept up
    assert clock.lag_s(5.0) == 0
    now = 103.0  # three seconds on, of which one was listened to
    clock.received(now, waited_s=0.0)
    assert clock.lag_s(6.0) == 2
    assert clock.is_time_to_tell()
    now = 103.9
    assert not clock.is_time_to_tell()  # once a second at most
    now = 104.0
    assert clock.is_time_to_tell()
    assert clock.lag_s(20.0) == 0  # it was sent faster than it sounds
    clock.received(now, waited_s=1.0)
    assert clock.lag_s(20.0) == 0


def test_the_end_of_the_server_is_told(models_dir: Path) -> None:
    app = create_app(Settings(models_dir=models_dir, model="toy", device="cpu", threads=2))
    with (
        in_thread(app) as server,
        httpx.Client(base_url=url_of(server)) as client,
        connect(url(client, **PCM, window_s=1)) as line,
        raw_post(client, "rate=16000", chunk(pcm(1.4))) as sock,
    ):
        line.send(pcm(2.7))
        for _ in range(3):
            last = json.loads(line.recv(timeout=20))
        assert last["end_s"] == 2
        rest = b""
        while b'"tags"' not in rest:
            rest += sock.recv(10_000)
        server.should_exit = True
        said, code = all_of(line)
        assert code == 1001
        assert said[-1] == {"type": "end", "seconds": pytest.approx(2.7, abs=0.2)}
        while part := sock.recv(10_000):
            rest += part
        assert b'"type":"end"' in rest
        assert rest.endswith(b"0\r\n\r\n")


def test_hundreds_of_streams_come_and_go_without_a_trace(models_dir: Path) -> None:
    """`python -m benchmarks.churn` sends ten thousand, and looks at the memory."""
    settings = {"models_dir": models_dir, "model": "toy", "device": "cpu", "threads": 2}
    limits = {"max_streams": 1_000, "stream_idle_s": 1, "answer_timeout_s": 0.5}
    app = create_app(Settings(**settings, **limits))
    with in_thread(app) as server, contextlib.ExitStack() as until_the_end:
        # Else its system takes megabytes before anybody notices that a client does not read.
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        client = httpx.Client(base_url=url_of(server), headers={"Connection": "close"})
        state = app.state.server
        webm = recorded("webm", 1)
        come_and_go(client, webm, n=1)  # everything is there that is made once
        until(lambda: is_quiet(server, state), 20)
        before = held_by_this_process()
        deaf = [until_the_end.enter_context(never_read(client)) for _ in range(3)]
        silent = [until_the_end.enter_context(connect(url(client, **PCM))) for _ in range(3)]
        for n in range(30):
            come_and_go(client, webm, n)
        assert [all_of(line)[1] for line in silent] == [1008] * 3
        until(lambda: is_quiet(server, state), 20)
        for each in (*deaf, *silent):
            each.close()
        until(lambda: bool((held_by_this_process() <= before).all()), 60)
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, StreamSession)]
        told = sum(ends(client, reason) for reason in ("end", "client_left", "idle", "unread", "error"))
        assert told == 31 * 10 + 6
        assert ends(client, "unread") == 3
        assert state.embedder.batcher.admitted_cost == 0
        client.close()


def come_and_go(client: httpx.Client, webm: bytes, n: int) -> None:
    """Ten streams at a time, of both doors, each with another end."""
    with contextlib.ExitStack() as stack:
        lines = [
            stack.enter_context(connect(url(client, **(PCM if k % 2 else {"format": "webm"}))))
            for k in range(6)
        ]
        socks = [stack.enter_context(raw_post(client, "rate=16000", chunk(pcm(0.6)))) for _ in range(4)]
        for k, line in enumerate(lines):
            line.send(pcm(0.6) if k % 2 else webm[: 200 + 60 * n])
        for sock in socks:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        lines[0].socket.shutdown(socket.SHUT_RDWR)  # no close
        lines[1].send("no sound")
        lines[2].send('{"type": "end"}')
        lines[3].send(b"\0")
        lines[3].send('{"type": "end"}')
        socks[0].sendall(b"0\r\n\r\n")
        socks[1].sendall(chunk(pcm(1))[:-700])  # and is cut
        socks[2].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        for line in lines[1:4]:
            assert all_of(line)[1] in (1000, 1007, 1008)
        while socks[0].recv(100_000)[-5:] != b"0\r\n\r\n":
            pass


@contextlib.contextmanager
def never_read(client: httpx.Client) -> Iterator[socket.socket]:
    """A stream whose answer fills the buffers of both systems."""
    host, port = client.base_url.host, client.base_url.port
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.connect((host, port))
        query = "rate=8000&embeddings=true&window_s=0.1&hop_s=0.1"
        head = f"POST /stream?{query} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        sock.sendall(head.encode())
        sender = threading.Thread(target=send_until_cut, args=(sock,))
        sender.start()
        yield sock
        sender.join(20)
        assert not sender.is_alive()


def send_until_cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(chunk(bytes(160_000)))


def is_quiet(server: uvicorn.Server, state: Any) -> bool:
    """No stream, no connection and no task of one is left, and no thread that decodes."""
    threads = [each for each in threading.enumerate() if each.name == "viola-ffmpeg"]
    return not (len(state.streams) or server.server_state.connections or server.server_state.tasks or threads)


def held_by_this_process() -> NDArray[np.int64]:
    """Open files and threads."""
    return np.array([len([*Path("/proc/self/fd").iterdir()]), threading.active_count()])


def test_other_paths_stay_with_http(client: httpx.Client) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert client.get("/health/live", headers=upgrade).status_code == 200
    assert client.post("/stream", headers=upgrade, params=PCM, content=b"").status_code == 200
    assert client.get("/no/stream", headers=upgrade).status_code == 403
    assert client.get("/stream").status_code == 405


def test_a_message_of_too_many_parts_or_bytes_is_refused(client: httpx.Client) -> None:
    for parts in ((b"\0\0" for _ in range(2_000)), iter([bytes(9_000_000)])):
        with connect(url(client, **PCM)) as line:
            with contextlib.suppress(ConnectionClosed):
                line.send(parts)
            assert all_of(line)[1] == 1009


def test_workers_that_are_told_to_end_end_their_streams(models_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(models_dir, tmp_path, VIOLA_WORKERS="2", VIOLA_DRAIN_S="0") as server:
        server.wait_until_ready()
        address = server.url.replace("http", "ws") + "/stream?rate=16000&window_s=1"
        with connect(address) as one, connect(address) as other:
            for line in (one, other):
                line.send(pcm(1.3))
                assert json.loads(line.recv(timeout=60))["type"] == "ready"
                assert json.loads(line.recv(timeout=60))["end_s"] == 1
            server.process.terminate()
            for line in (one, other):
                said, code = all_of(line)
                assert (said[-1]["type"], code) == ("end", 1001)
        assert server.ends_with(0)
        log = server.log()
        assert "GET /stream 101" in log
        assert "rate=16000" not in log  # no query is written down


def test_a_server_that_drains_takes_no_new_stream_and_goes_on_with_the_others(
    models_dir: Path, tmp_path: Path
) -> None:
    with ServerProcess(models_dir, tmp_path, VIOLA_DRAIN_S="3") as server, contextlib.ExitStack() as stack:
        server.wait_until_ready()
        (line,) = open_streams(stack, server, 1)
        server.process.terminate()
        until(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503, seconds=20)
        with connect(server.url.replace("http", "ws") + "/stream?rate=16000") as late:
            said, code = all_of(late)
        assert (said[0]["error"], code) == ("overloaded", 1013)
        assert "shutting down" in said[0]["detail"]
        line.send(pcm(1))
        assert json.loads(line.recv(timeout=20))["end_s"] == 2  # as before
        said, code = all_of(line)
        assert (said[-1]["type"], code) == ("end", 1001)
        assert server.ends_with(0)


def test_a_failure_of_the_server_is_told_and_counted_as_one(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*arguments: object) -> None:
        raise ZeroDivisionError("of no sound")

    with serving(models_dir) as (client, state):
        with connect(url(client, **PCM)) as line:
            assert json.loads(line.recv())["type"] == "ready"
            monkeypatch.setattr(LiveSound, "push", fail)
            with contextlib.suppress(ConnectionClosed):
                line.send(pcm(2))
            said, code = all_of(line)
        assert [(each["error"], code) for each in said] == [("internal_error", 1011)]
        assert "ZeroDivisionError" not in said[-1]["detail"]  # that is for the log
        until(lambda: len(state.streams) == 0)
        assert ends(client, "error") == 1


def open_streams(stack: contextlib.ExitStack, server: ServerProcess, n: int) -> list[ClientConnection]:
    """Each has said its first second."""
    address = server.url.replace("http", "ws") + "/stream?rate=16000&window_s=1"
    lines = [stack.enter_context(connect(address)) for _ in range(n)]
    for line in lines:
        line.send(pcm(1.3))
        assert json.loads(line.recv(timeout=60))["type"] == "ready"
        assert json.loads(line.recv(timeout=60))["end_s"] == 1
    return lines


def test_a_worker_that_is_killed_or_restarted_takes_its_own_streams_with_it(
    models_dir: Path, tmp_path: Path
) -> None:
    with (
        ServerProcess(models_dir, tmp_path, VIOLA_WORKERS="2", VIOLA_DRAIN_S="0") as server,
        contextlib.ExitStack() as stack,
    ):
        server.wait_until_ready()
        until(lambda: server.metric("viola_ready") == 2, seconds=150)
        lines = open_streams(stack, server, 6)
        until(lambda: server.metric("viola_streams") == 6, seconds=20)
        workers = {int(path.read_text() or 0) for path in tmp_path.glob("viola-metrics-*/*.pid")} - {0}
        assert len(workers) == 2
        os.kill(min(workers), signal.SIGKILL)
        codes = []
        for line in lines:
            with contextlib.suppress(ConnectionClosed, OSError):
                line.send(pcm(1))
                line.send('{"type": "end"}')
            codes.append(all_of(line)[1])
        assert set(codes) == {1000, 1006}  # 1006: no close came
        until(lambda: server.metric("viola_ready") == 2, seconds=150)

        lines = open_streams(stack, server, 4)
        server.process.send_signal(signal.SIGHUP)
        for line in lines:
            said, code = all_of(line)
            assert (said[-1], code) == ({"type": "end", "seconds": pytest.approx(1.3)}, 1001)
            (again,) = open_streams(stack, server, 1)  # there is always a worker that takes it
            again.close()
        until(lambda: server.metric("viola_ready") == 2, seconds=150)
        until(lambda: server.metric("viola_streams") == 0, seconds=150)


def test_a_new_version_of_the_model_ends_no_stream(make_toy: Callable[..., Path], tmp_path: Path) -> None:
    """It goes on with the one that it began with."""
    models = tmp_path / "models"
    make_toy(models / "toy")
    with ServerProcess(models, tmp_path) as server, contextlib.ExitStack() as stack:
        server.wait_until_ready()
        (line,) = open_streams(stack, server, 1)
        shutil.rmtree(models / "toy")
        make_toy(models / "toy", version="2")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded: " in server.log(), seconds=150)
        line.send(pcm(1))
        line.send('{"type": "end"}')
        said, code = all_of(line)
        assert [each["start_s"] for each in of_type(said, "tags")] == [1.0, 2.0]
        assert (said[-1]["type"], code) == ("end", 1000)


def test_a_request_for_a_socket_with_too_many_headers_is_answered(client: httpx.Client) -> None:
    headers = {f"X-{i}": "1" for i in range(200)}
    with pytest.raises(InvalidStatus) as refused, connect(url(client, **PCM), additional_headers=headers):
        pass
    assert refused.value.response.status_code == 431
