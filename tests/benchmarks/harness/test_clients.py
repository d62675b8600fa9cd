"""Bursts count right and end in time."""

import socketserver
import time
from http.server import ThreadingHTTPServer

from benchmarks.harness import uploads
from benchmarks.harness.clients import burst

from .conftest import CLIP, Echo, listening


class Silent(socketserver.BaseRequestHandler):
    """Hangs up on the first bytes."""

    def handle(self) -> None:
        self.request.recv(1)


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
