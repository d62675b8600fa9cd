"""Bodies read in a stream, never past the limits, and never held longer than they are needed."""

import asyncio
import resource
import socket
import sys
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    BodyTooLarge,
    Overloaded,
    UploadTimeout,
    ViolaError,
)
from service.http import request_body
from service.http.request_body import SpooledBody
from service.http.upload import Upload, read_clip
from tests.service.http.bodies import Sender, budget, form, read, sender_of_form


def test_an_announced_length_over_the_limit_is_refused_before_reading() -> None:
    sender = Sender([b"x" * 11], content_type="audio/wav", content_length="11")
    with pytest.raises(BodyTooLarge, match="10 bytes"):
        read(sender, max_body_bytes=10)
    assert sender.sent == 0


@pytest.mark.parametrize("kind", ["audio/wav", "multipart/form-data; boundary=cut"])
def test_a_body_over_the_limit_is_refused_with_the_chunk_that_passes_it(kind: str) -> None:
    start = form(("file", "a", b""))[:-11] if "cut" in kind else b""
    sender = Sender([start, *[b"xxxx"] * 100], content_type=kind)
    with pytest.raises(BodyTooLarge):
        read(sender, max_body_bytes=len(start) + 10)
    assert sender.sent == 4


def test_a_body_at_the_limit_is_accepted() -> None:
    assert read(Sender([b"x" * 10], content_type="audio/wav", content_length="10"), 10).source == b"x" * 10


def test_a_client_that_leaves_while_sending_is_noticed() -> None:
    with pytest.raises(ClientDisconnect):
        read(Sender([b"RI"], leaves=True, content_type="audio/wav"))


class DripDrop:
    """A request whose body never ends: `chunk` every `pause_s` seconds."""

    def __init__(self, chunk: bytes, pause_s: float) -> None:
        self.sent = 0
        self._chunk, self._pause_s = chunk, pause_s
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
        self.request = Request(scope, self._receive)

    async def _receive(self) -> dict[str, Any]:
        await asyncio.sleep(self._pause_s)
        self.sent += len(self._chunk)
        return {"type": "http.request", "body": self._chunk, "more_body": True}


@pytest.mark.parametrize(("chunk", "pause_s"), [(b"x", 0.02), (b"x" * 10, 0.1), (b"", 60)])
def test_a_slow_body_is_refused_whether_it_drips_or_stops(chunk: bytes, pause_s: float) -> None:
    slow = DripDrop(chunk, pause_s)
    with pytest.raises(UploadTimeout, match=r"fewer than 500 per second in the last 0\.3 s; send it again"):
        asyncio.run(read_clip(slow.request, budget(timeout_s=0.3)))
    assert slow.sent < 0.3 * request_body.MIN_BYTES_PER_S


def test_a_long_body_may_take_long_as_long_as_it_comes_fast_enough() -> None:
    steady = DripDrop(b"x" * 100, 0.01)
    with pytest.raises(BodyTooLarge):  # after a second, with a limit of 0.2 s
        asyncio.run(read_clip(steady.request, budget(10_000, timeout_s=0.2)))
    assert steady.sent > 10_000


def test_all_bodies_together_may_hold_so_much() -> None:
    shared = budget(max_held_bytes=100)

    async def read_one(n_bytes: int) -> Upload:
        return await read_clip(Sender([b"x" * n_bytes], content_type="audio/wav").request, shared)

    first, second = asyncio.run(read_one(60)), asyncio.run(read_one(40))
    with pytest.raises(Overloaded, match="no room for more uploads"):
        asyncio.run(read_one(1))
    first.close()
    assert asyncio.run(read_one(60)).source == b"x" * 60
    second.close()
    second.close()  # twice is once
    assert shared.held_bytes == 0  # the third is forgotten: it has no name


@pytest.mark.parametrize(
    "sender",
    [
        Sender([b"x" * 2_000_000], content_type="audio/wav"),
        Sender([b"x" * 50], leaves=True, content_type="audio/wav"),
        sender_of_form(form(("file", "a", b"x"), ("file", "b", b"y"))),
        sender_of_form(form(("file", "a", b"x"), ("model", None, b"y"))),
        sender_of_form(form(("file", "a", b"x"))[:-10]),
        Sender([b"xyz"], content_type="audio/l16;rate=8000"),
    ],
)
def test_a_body_that_is_refused_holds_nothing(sender: Sender) -> None:
    empty = budget()
    with pytest.raises((ViolaError, ClientDisconnect)):
        asyncio.run(read_clip(sender.request, empty))
    assert empty.held_bytes == empty.bytes_in_memory == 0


@pytest.mark.parametrize("as_form", [False, True])
def test_a_long_body_goes_to_a_file(as_form: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "SPOOL_BYTES", 100)
    content = bytes(range(250))
    clip = read(
        sender_of_form(form(("file", "a", content)), 60)
        if as_form
        else Sender([content[:120], content[120:]], content_type="audio/wav")
    )
    assert not isinstance(clip.source, bytes)
    with clip.source as file:
        assert file.read() == content


def test_a_clip_in_memory_is_held_once_and_let_go() -> None:
    body = SpooledBody(budget())
    for _ in range(100):
        body.write(b"x" * 1000)
    joined = body.source()
    assert body.source() is joined  # the chunks are gone
    count = sys.getrefcount(joined)
    body.close()
    assert sys.getrefcount(joined) == count - 1


@pytest.mark.parametrize("n_bytes", [100, 3_000_000])
def test_a_full_disk_is_no_room_and_holds_nothing(
    n_bytes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_body, "SPOOL_BYTES", 50)
    shared = budget(10_000_000)
    chunks = [b"x" * (n_bytes // 10)] * 10
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # no file may be longer
    try:
        with pytest.raises(Overloaded, match="no room for more uploads"):
            asyncio.run(read_clip(Sender(chunks, content_type="audio/wav").request, shared))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert shared.held_bytes == shared.bytes_in_memory == 0
    assert "File too large" in caplog.text


def test_a_client_of_a_byte_a_second_is_told_408_and_let_go(serve: Any) -> None:
    with serve(upload_timeout_s=0.5) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"POST /embed HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\nRIFF")
            received = b""
            while chunk := client.recv(10_000):  # until the server closes
                received += chunk
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in received
        assert b'"error":"upload_timeout"' in received
        assert httpx.get(f"{url}/health/live").status_code == 200


def test_a_body_that_is_too_long_is_told_413_and_its_connection_ends(serve: Any) -> None:
    with serve(max_body_bytes=1000) as url, httpx.Client(base_url=url) as client:
        for body in (b"x" * 3_000_000, iter([b"x" * 1_000_000] * 3)):  # announced, and in chunks
            answer = client.post("/embed", content=body, headers={"Content-Type": "audio/wav"})
            assert answer.status_code == 413
            assert answer.headers["connection"] == "close"
            assert answer.json()["error"] == "body_too_large"
