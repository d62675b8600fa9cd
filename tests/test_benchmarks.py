"""The benchmarks' own logic: that bursts count right, end in time, and that tables find their place."""

import os
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from benchmarks import uploads
from benchmarks.clients import burst
from benchmarks.report import with_section
from benchmarks.results import middle
from benchmarks.servers import Server, family, running

CLIP = b"not really sound"


class Echo(BaseHTTPRequestHandler):
    """Answers with the length of the body, in an answer that does not fit into one packet."""

    protocol_version = "HTTP/1.1"
    status: ClassVar[int] = 200
    seen: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(body)
        self.send_response(self.status)
        self.send_header("Content-Length", "300000")
        self.end_headers()
        self.wfile.write(b"x" * 300_000)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Silent(socketserver.BaseRequestHandler):
    """Hangs up on the first bytes."""

    def handle(self) -> None:
        self.request.recv(1)


@contextmanager
def listening(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def echo() -> type[Echo]:
    Echo.status = 200
    Echo.seen.clear()
    return Echo


def test_every_client_keeps_asking_until_the_budget_is_used_up(echo: type[Echo]) -> None:
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), echo)) as port:
        result = burst(port, uploads.raw("/", CLIP), clients=3, seconds=30, max_requests=20)
    assert len(result.latencies_s) == len(echo.seen) == 20
    assert result.per_s == 20 / result.seconds
    assert set(echo.seen) == {CLIP}
    assert not result.failures.total()


def test_a_burst_ends_in_time(echo: type[Echo]) -> None:
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), echo)) as port:
        began = time.perf_counter()
        result = burst(port, uploads.raw("/", CLIP), clients=2, seconds=0.2, cpu_s=time.perf_counter)
        assert time.perf_counter() - began < 5
    assert len(result.latencies_s) == len(echo.seen)
    assert 0.2 <= result.seconds <= result.cpu_s < 5


def test_errors_are_counted_and_are_no_answers(echo: type[Echo]) -> None:
    echo.status = 503
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), echo)) as port:
        result = burst(port, uploads.raw("/", CLIP), clients=1, seconds=30, max_requests=4)
    assert result.failures == {"503": 4}
    assert result.latencies_s == []


def test_a_server_that_hangs_up_is_a_failure_of_each_client() -> None:
    with listening(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent)) as port:
        result = burst(port, uploads.raw("/", CLIP), clients=2, seconds=5)
    assert result.failures == {"connection lost": 2}


def test_a_wrong_answer_is_seen_before_it_is_timed(echo: type[Echo]) -> None:
    with listening(ThreadingHTTPServer(("127.0.0.1", 0), echo)) as port:
        assert len(uploads.answer_to(port, uploads.multipart("/embed", CLIP))) == 300_000
        echo.status = 422
        with pytest.raises(RuntimeError, match="/embed answers 422"):
            uploads.answer_to(port, uploads.multipart("/embed", CLIP))
    assert echo.seen[0].startswith(b"--" + uploads.BOUNDARY.encode())
    assert CLIP in echo.seen[0]


def test_a_server_is_started_measured_and_stopped() -> None:
    server = Server(
        "python's", (sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"), ready="/"
    )
    with running(server) as up:
        assert up.cpu_s() > 0
        assert 1 < up.memory_mb() < 1000
        assert family(os.getpid()).count(up.pid) == 1
    assert family(os.getpid()).count(up.pid) == 0


def test_a_server_that_fails_to_start_says_where_its_log_is() -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with code 3; its log is .*broken\.log"),
        running(Server("broken", (sys.executable, "-c", "raise SystemExit(3)"))),
    ):
        pass


def test_a_table_replaces_what_is_between_its_markers() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin --><!-- y: end -->\n"
    assert with_section(page, "x", r"\1 new") == page.replace("old", r"\1 new")
    with pytest.raises(ValueError, match="<!-- z: begin -->"):
        with_section(page, "z", "")


def test_medians_come_with_their_quartiles() -> None:
    assert middle([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3, "low": 2, "high": 4}
    assert middle([7.0]) == {"median": 7, "low": 7, "high": 7}
