"""Sockets that are slow, endless or gone, against a small application behind the protocol."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import uvicorn

from service.http.protocol import MAX_HEAD_BYTES, MAX_PIPELINED, Limits, Protocol
from service.http.request_body import BUDGET, UploadBudget
from service.http.responses import json_response
from tests.service.servers import in_thread

ANSWER = b"x" * 10
LONG_ANSWER = b"x" * 50_000_000
COUNTED = "x" * 50_000_000
budget = UploadBudget(10**9, timeout_s=1, max_held_bytes=70_000_000)
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


class Hasty(Protocol):
    """The same with limits that a test can wait for."""

    cut: ClassVar[list[str]] = []
    limits = Limits(head_s=0.3, linger_s=0.5, linger_bytes=5_000_000, answer_s=0.5, on_cut=cut.append)
    lost = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_lost = Hasty.count

    @classmethod
    def count(cls) -> None:
        cls.lost += 1


async def application(scope: Any, receive: Any, send: Any) -> None:
    """`/` and `/long` read the body and answer, `/echo` tells its length, `/early` answers without, `/refuse`
    also closes, `/counted` counts its long answer in `budget`."""
    if scope["type"] != "http":
        return
    path, n = scope["path"], 0
    if path == "/counted":
        await json_response(COUNTED)({**scope, BUDGET: budget}, receive, send)
        return
    more = path in ("/", "/long", "/echo")
    while more:
        message = await receive()
        n += len(message.get("body", b""))
        more = message.get("more_body", False)
    answer = LONG_ANSWER if path == "/long" else f"{n} ".encode() + ANSWER if path == "/echo" else ANSWER
    headers = [(b"content-length", str(len(answer)).encode())]
    if path == "/refuse":
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest) -> Iterator[uvicorn.Server]:
    with in_thread(application, lifespan="off", http=Hasty, loop=request.param) as server:
        yield server


@contextlib.contextmanager
def connected(server: uvicorn.Server, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    client = socket.socket()
    if receive_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(10)
    with client:
        client.connect(server.servers[0].sockets[0].getsockname())
        yield client


def answers(client: socket.socket, n: int = 1) -> bytes:
    """What comes until n answers are complete."""
    received = b""
    while received.count(ANSWER) < n:
        chunk = client.recv(10_000)
        assert chunk, f"the connection was closed after {received!r}"
        received += chunk
    return received


def upgrading(length: int, framing: str = "") -> bytes:
    """The head of a request as curl --http2 and Java's HttpClient send it."""
    framing = framing or f"Content-Length: {length}"
    upgrade = (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"
    )
    return f"POST /echo HTTP/1.1\r\nHost: test\r\n{upgrade}\r\n{framing}\r\n\r\n".encode()


def post(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode()


def seconds_until_closed(client: socket.socket, drip: bytes = b"") -> float:
    """With `drip`, one of its bytes is sent every 20 ms until then."""
    started = time.monotonic()
    client.settimeout(0.02 if drip else 10)
    for byte in drip or b" ":
        with contextlib.suppress(TimeoutError):
            try:
                if drip:
                    client.send(bytes([byte]))
                while client.recv(65_536):
                    pass
            except ConnectionError:
                pass
            return time.monotonic() - started
    raise AssertionError("the connection was not closed")


def send_until_cut(client: socket.socket, chunk: bytes, most_bytes: int) -> int:
    """Bytes that were taken before the connection was cut."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most_bytes:
            sent += client.send(chunk)
    return sent


def test_a_request_is_answered_and_the_connection_stays_open(server: uvicorn.Server) -> None:
    with connected(server) as client:
        before = Hasty.lost
        for _ in range(3):
            client.sendall(post("/", 5) + b"hello")
            answers(client)
            # What is limited is a head, not the time between two requests.
            time.sleep(Hasty.limits.head_s * 1.5)
        assert Hasty.lost == before
    until = time.monotonic() + 5
    while Hasty.lost == before and time.monotonic() < until:
        time.sleep(0.005)
    assert Hasty.lost == before + 1  # told once that it has gone


def test_what_is_no_http_is_answered_in_the_shape_of_every_error_and_counted() -> None:
    counted: list[int] = []

    class Counting(Hasty):
        limits = Limits(head_s=0.3, on_malformed=lambda: counted.append(1))

    with in_thread(application, lifespan="off", http=Counting) as server:
        for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTQ/1.1\r\n\r\n", post("/echo", -1)):
            with connected(server) as client:
                client.sendall(sent)
                received = b""
                while chunk := client.recv(10_000):
                    received += chunk
            head, _, body = received.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json")
            assert json.loads(body)["error"] == "malformed_http"
    assert len(counted) == 3


def test_after_an_early_answer_the_connection_is_kept_as_after_any_other() -> None:
    with (
        in_thread(application, lifespan="off", http=Hasty, timeout_keep_alive=60) as server,
        connected(server) as client,
    ):
        client.sendall(post("/early", 5))
        answers(client)
        client.sendall(b"12345")  # the body, after its answer
        time.sleep(3 * Hasty.limits.head_s)
        client.sendall(post("/echo", 3) + b"abc")
        assert b"3 " in answers(client)


@pytest.mark.parametrize("path", ["/echo", "/early"])
def test_an_idle_connection_is_closed_after_its_time(path: str) -> None:
    with (
        in_thread(application, lifespan="off", http=Hasty, timeout_keep_alive=0.1) as server,
        connected(server) as client,
    ):
        client.sendall(post(path, 3))
        if path == "/early":
            answers(client)
            client.sendall(b"abc")
        else:
            client.sendall(b"abc")
            answers(client)
        assert client.recv(10) == b""


def test_a_silent_connection_is_cut(server: uvicorn.Server) -> None:
    Hasty.cut.clear()
    with connected(server) as client:
        assert 0.2 < seconds_until_closed(client) < 3
    assert Hasty.cut == ["head"]


def test_a_head_of_a_byte_at_a_time_is_cut(server: uvicorn.Server) -> None:
    with connected(server) as client:
        assert 0.2 < seconds_until_closed(client, drip=GET * 10) < 3


def test_empty_lines_are_no_progress(server: uvicorn.Server) -> None:
    with connected(server) as client:
        assert 0.2 < seconds_until_closed(client, drip=b"\r\n" * 200) < 3


def test_the_head_of_a_second_request_has_no_longer(server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(GET)
        answers(client)
        assert 0.2 < seconds_until_closed(client, drip=GET * 10) < 3


def test_an_endless_head_is_cut(server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nX-Endless: ")
        assert send_until_cut(client, b"x" * 10_000, 50_000_000) < 20_000_000


def test_endless_trailers_are_cut(server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        assert send_until_cut(client, b"X-More: y\r\n" * 1000, 50_000_000) < 20_000_000


def test_a_body_is_no_head(server: uvicorn.Server) -> None:
    length = 30 * MAX_HEAD_BYTES
    with connected(server) as client:
        client.sendall(post("/", length) + b"\n" * length)
        answers(client)


def test_a_body_in_small_chunks_is_no_head(server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"1\r\nx\r\n" * MAX_HEAD_BYTES + b"0\r\n\r\n")
        answers(client)


def test_a_body_that_was_answered_early_is_read_past_and_the_connection_lives_on(
    server: uvicorn.Server,
) -> None:
    with connected(server) as client:
        client.sendall(post("/early", 1_000_000) + b"x" * 1_000_000 + GET)
        assert answers(client, 2).count(b"200 OK") == 2


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(
    ("framing", "body"),
    [("", b"x" * 1000), ("Transfer-Encoding: chunked", b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")],
)
def test_a_request_that_offers_to_upgrade_keeps_its_body_and_the_connection(
    server: uvicorn.Server, caplog: pytest.LogCaptureFixture, framing: str, body: bytes, parts: int
) -> None:
    head = upgrading(1000, framing)
    cuts = {1: [], 2: [len(head)], 3: [len(head) - 30, len(head) + 20]}[parts]
    request = head + body
    with connected(server) as client:
        for _ in range(3):
            for start, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
                client.sendall(request[start:end])
                time.sleep(0.02)
            assert answers(client).endswith(b"1000 " + ANSWER)
        client.sendall(GET)
        assert b"200 OK" in answers(client)
        client.sendall(request + request + GET)  # ahead of their answers
        assert answers(client, 3).count(b"1000 " + ANSWER) == 2
    assert caplog.text == ""


def test_an_offer_to_upgrade_without_a_body_is_answered(
    server: uvicorn.Server, caplog: pytest.LogCaptureFixture
) -> None:
    offer = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with connected(server) as client:
        for _ in range(2):
            client.sendall(offer + GET)
            assert answers(client, 2).count(b"200 OK") == 2
    assert caplog.text == ""


@pytest.mark.parametrize("path", ["/early", "/refuse"])
def test_gigabytes_that_nobody_wants_are_not_read(server: uvicorn.Server, path: str) -> None:
    with connected(server) as client:
        client.sendall(post(path, 10**12))
        answers(client)
        assert send_until_cut(client, b"x" * 100_000, 10**9) < 50_000_000


@pytest.mark.parametrize("path", ["/early", "/refuse"])
def test_a_slow_body_that_nobody_wants_is_cut(server: uvicorn.Server, path: str) -> None:
    with connected(server) as client:
        client.sendall(post(path, 10**6))
        answers(client)
        assert seconds_until_closed(client, drip=b"x" * 200) < 3


def test_an_answer_that_closes_reaches_a_client_that_sends_all_before_it_reads(
    server: uvicorn.Server,
) -> None:
    with connected(server) as client:
        client.sendall(post("/refuse", 4_000_000) + b"x" * 4_000_000)
        received = b""
        while chunk := client.recv(10_000):
            received += chunk
    assert b"connection: close" in received
    assert received.endswith(ANSWER)


def test_an_answer_that_closes_ends_a_connection_at_once_where_the_body_was_read(
    server: uvicorn.Server,
) -> None:
    with connected(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert seconds_until_closed(client) < 0.25


def test_a_client_that_does_not_read_its_answer_is_cut(server: uvicorn.Server) -> None:
    Hasty.cut.clear()
    with connected(server, receive_bytes=4096) as client:
        client.sendall(GET.replace(b"/ ", b"/long "))
        time.sleep(3 * Hasty.limits.answer_s)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := client.recv(1_000_000):
                received += len(chunk)
        assert received < len(LONG_ANSWER)
    assert Hasty.cut == ["answer"]


def test_a_client_that_reads_its_answer_in_pieces_gets_it_whole(server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(GET.replace(b"/ ", b"/long "))
        received = 0
        while received < len(LONG_ANSWER):
            received += len(client.recv(3_000_000))
            time.sleep(0.05)


def test_a_client_that_reads_slowly_is_not_cut(server: uvicorn.Server) -> None:
    """What it reads comes out of the system's buffers; the server's own stays as full as it is."""
    with connected(server, receive_bytes=100_000) as client:
        client.sendall(GET.replace(b"/ ", b"/long "))
        until = time.monotonic() + 5 * Hasty.limits.answer_s
        received = 0
        while time.monotonic() < until:
            received += len(client.recv(20_000))
            time.sleep(0.05)
        assert received < 3_000_000
        while received < len(LONG_ANSWER):
            chunk = client.recv(1_000_000)
            assert chunk
            received += len(chunk)


def test_a_long_answer_is_held_until_it_was_read_or_its_client_is_gone(server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(GET.replace(b"/ ", b"/counted "))
        received = len(client.recv(100))
        assert budget.held_bytes == len(COUNTED) + 2
        while received < len(COUNTED) + 2:
            received += len(client.recv(1_000_000))
        wait_until_nothing_is_held()
    with connected(server, receive_bytes=100_000) as idler:
        idler.sendall(GET.replace(b"/ ", b"/counted "))
        idler.recv(100)
        assert budget.held_bytes == len(COUNTED) + 2
        wait_until_nothing_is_held()  # the idler is cut


def wait_until_nothing_is_held() -> None:
    until = time.monotonic() + 5
    while budget.held_bytes:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_few_requests_may_be_sent_ahead_and_thousands_may_not(server: uvicorn.Server) -> None:
    with connected(server) as client:
        client.sendall(GET * MAX_PIPELINED)
        answers(client, MAX_PIPELINED)
    with connected(server) as client, contextlib.suppress(ConnectionError):
        client.sendall(GET * 1000)
        received = b""
        while chunk := client.recv(100_000):
            received += chunk
        assert b"400 Bad Request" in received
        assert received.count(b"200 OK") <= MAX_PIPELINED + 1
