"""A request's bytes in, a burst of answers out: keep-alive HTTP/1.1 clients on one event loop.

A client library would take more of a small machine's cores than the server under test. These clients write
the same bytes again and again and look at nothing of an answer but its status and its length.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import uvloop

HOST = "127.0.0.1"
CONNECT_S = 10.0
LAST_ANSWERS_S = 60.0  # after the end of a burst, for the answers that are still to come

END_OF_HEAD = b"\r\n\r\n"
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Burst:
    """What the clients of one burst saw, from its start to the last answer.

    The answers that are outstanding when the sending ends belong to it: the server works on them as before,
    and a rate without them would depend on where in a batch the end falls.
    """

    latencies_s: list[float] = field(default_factory=list)  # of the good answers
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_s: float = 0.0  # of the server

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Per good answer."""
        return 1000 * self.cpu_s / max(1, len(self.latencies_s))


def burst(
    port: int,
    request: bytes,
    *,
    clients: int,
    seconds: float,
    max_requests: int = 1_000_000,
    cpu_s: Callable[[], float] = lambda: 0.0,
) -> Burst:
    """`clients` connections send `request` for `seconds`, each again when its last one is answered.

    cpu_s: the seconds of CPU that the server has used so far. Raises OSError when nobody listens.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_burst(port, request, clients, seconds, max_requests, cpu_s))


async def _burst(
    port: int, request: bytes, clients: int, seconds: float, max_requests: int, cpu_s: Callable[[], float]
) -> Burst:
    result, budget = Burst(), iter(range(max_requests))
    connections = [await _connect(port, request, result, budget) for _ in range(clients)]
    cpu_before = cpu_s()
    started = time.perf_counter()
    for client in connections:
        client.start(started + seconds)
    ends = [client.done for client in connections]
    _, silent = await asyncio.wait(ends, timeout=seconds + LAST_ANSWERS_S)
    result.seconds = time.perf_counter() - started
    result.cpu_s = cpu_s() - cpu_before
    result.failures += Counter({"no answer": len(silent)})
    for client in connections:
        client.close()
    return result


async def _connect(port: int, request: bytes, result: Burst, budget: Iterator[int]) -> "_Client":
    loop = asyncio.get_running_loop()
    connecting = loop.create_connection(lambda: _Client(request, result, budget), HOST, port)
    _, client = await asyncio.wait_for(connecting, CONNECT_S)
    return client


class _Client(asyncio.Protocol):
    """One connection. It ends at `stop_at`, with the budget that all share, or when the server hangs up."""

    def __init__(self, request: bytes, result: Burst, budget: Iterator[int]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._result = result
        self._budget = budget
        self._stop_at = self._sent_at = 0.0
        self._head = b""
        self._missing = 0  # bytes of the body that are still to come, once the head is complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are no subclass

    def start(self, stop_at: float) -> None:
        self._stop_at = stop_at
        self._send()

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        if END_OF_HEAD in self._head:
            self._missing -= len(data)
        else:
            self._head += data
            if END_OF_HEAD not in self._head:
                return
            self._head, _, body = self._head.partition(END_OF_HEAD)
            self._head += END_OF_HEAD
            self._missing = self._content_length() - len(body)
        if self._missing <= 0:
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._result.failures["connection lost"] += 1
            self.done.set_result(None)

    def _content_length(self) -> int:
        found = CONTENT_LENGTH.search(self._head)
        return int(found[1]) if found else 0

    def _send(self) -> None:
        if next(self._budget, None) is None:
            self.done.set_result(None)
            return
        self._head = b""
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def _answered(self) -> None:
        now = time.perf_counter()
        status = self._head.split(b" ", 2)[1].decode()
        if status == "200":
            self._result.latencies_s.append(now - self._sent_at)
        else:
            self._result.failures[status] += 1
        if now < self._stop_at:
            self._send()
        else:
            self.done.set_result(None)
