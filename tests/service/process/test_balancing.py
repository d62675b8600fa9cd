"""Workers that share a listening socket: who takes a connection."""

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from uvicorn.config import STARTUP_FAILURE

from service.process.balancing import WAIT_FOR_LEAST_S, Acceptor, ConnectionCounts, Loop
from service.process.workers import METRICS_DIR, Slot


class Answering(asyncio.Protocol):
    """Sends the name of its worker, and then what it is sent."""

    def __init__(self, worker: "Worker") -> None:
        self.on_lost: Callable[[], None] = lambda: None
        self._worker = worker

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._worker.transports.append(transport)
        transport.write(self._worker.name)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.on_lost()

    def shutdown(self) -> None:
        self._worker.told_to_end += 1
        self._transport.close()


class Worker:
    """An event loop in a thread that accepts at `sock`, in a slot of its own."""

    def __init__(self, folder: Path, sock: socket.socket, name: bytes) -> None:
        self.name = name
        self.told_to_end = 0
        self.transports: list[Any] = []
        self._slot = Slot.claim(folder)
        self.counts = ConnectionCounts(self._slot)
        self.loop = Loop()
        self._sock = sock.dup()
        self._thread = threading.Thread(target=self.loop.run_forever, name="worker", daemon=True)
        self._thread.start()
        self.acceptor: Acceptor = self.do(self._accept)

    def do(self, function: Callable[[], Any]) -> Any:
        """In its event loop."""

        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def end(self) -> None:
        self.do(self.acceptor.close)
        asyncio.run_coroutine_threadsafe(self.acceptor.wait_closed(), self.loop).result(10)
        self.do(lambda: [transport.abort() for transport in self.transports])
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        self._slot.lock.close()

    def _accept(self) -> Acceptor:
        return Acceptor(self.loop, self._sock, lambda: Answering(self), self.counts, backlog=100)


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def workers(tmp_path: Path, listening: socket.socket) -> Iterator[list[Worker]]:
    both = [Worker(tmp_path, listening, name) for name in (b"a", b"b")]
    yield both
    for worker in both:
        worker.end()


class Clients:
    """Connections to `listening`, closed at the end."""

    def __init__(self, listening: socket.socket, closing: contextlib.ExitStack) -> None:
        self._address = listening.getsockname()
        self._closing = closing

    def connect(self) -> socket.socket:
        return self._closing.enter_context(socket.create_connection(self._address, timeout=10))

    def takers(self, n: int) -> list[tuple[socket.socket, bytes]]:
        """So many connections, one after the other, each with who took it."""
        return [(client := self.connect(), client.recv(1)) for _ in range(n)]


@pytest.fixture
def clients(listening: socket.socket) -> Iterator[Clients]:
    with contextlib.ExitStack() as closing:
        yield Clients(listening, closing)


@pytest.mark.usefixtures("workers")
def test_workers_hold_equally_many(clients: Clients) -> None:
    takers = [taker for _, taker in clients.takers(40)]
    assert abs(takers.count(b"a") - takers.count(b"b")) <= 4  # of 40, where the quickest took 32 and more


@pytest.mark.usefixtures("workers")
def test_who_lost_its_connections_takes_the_next_ones(clients: Clients) -> None:
    for client, taker in clients.takers(20):
        if taker == b"b":
            client.close()
    time.sleep(0.2)
    assert [taker for _, taker in clients.takers(10)].count(b"b") >= 6


@pytest.mark.usefixtures("workers")
def test_a_burst_of_connections_is_taken_at_once(clients: Clients) -> None:
    started = time.monotonic()
    connected = [clients.connect() for _ in range(90)]
    takers = [client.recv(1) for client in connected]
    assert time.monotonic() - started < 0.5  # a connection at a time would take WAIT_FOR_LEAST_S for each
    assert min(takers.count(b"a"), takers.count(b"b")) >= 10


def test_one_that_is_not_ready_stands_back_for_longer_than_a_busy_loop_takes(
    workers: list[Worker], clients: Clients
) -> None:
    workers[0].do(lambda: workers[0].acceptor.stand_back(True))
    busy = threading.Event()
    workers[1].loop.call_soon_threadsafe(lambda: busy.wait(10 * WAIT_FOR_LEAST_S))
    assert {taker for _, taker in clients.takers(10)} == {b"b"}
    assert workers[0].do(workers[0].counts.others_take)
    assert not workers[1].do(workers[1].counts.others_take)
    workers[0].do(lambda: workers[0].acceptor.stand_back(False))
    assert [taker for _, taker in clients.takers(10)].count(b"a") >= 6
    for worker in workers:
        worker.do(partial(worker.acceptor.stand_back, True))
    assert len(clients.takers(4)) == 4  # where nobody is ready, somebody says so


def test_one_that_stands_back_leaves_who_has_connected_to_the_others_when_it_ends(
    workers: list[Worker], clients: Clients
) -> None:
    """The other one is busy while they connect, and meanwhile this one ends."""
    busy = threading.Event()
    workers[1].loop.call_soon_threadsafe(lambda: busy.wait(10))
    workers[0].do(lambda: workers[0].acceptor.stand_back(True))
    connected = [clients.connect() for _ in range(5)]
    workers[0].do(workers[0].acceptor.close)
    busy.set()
    assert [client.recv(1) for client in connected] == [b"b"] * 5
    assert workers[0].told_to_end == 0


def test_one_that_hangs_loses_nobody(workers: list[Worker], clients: Clients) -> None:
    begun, release = threading.Event(), threading.Event()
    workers[1].loop.call_soon_threadsafe(lambda: (begun.set(), release.wait(10)))
    try:
        assert begun.wait(10)
        assert {taker for _, taker in clients.takers(5)} == {b"a"}
    finally:
        release.set()


def test_the_count_of_one_that_was_killed_is_forgotten(
    tmp_path: Path, workers: list[Worker], clients: Clients
) -> None:
    killed = Slot.claim(tmp_path)
    ConnectionCounts(killed).show(0)
    assert len(clients.takers(5)) == 5  # it holds its slot, and does not come
    assert not any(worker.counts.is_least() for worker in workers)
    killed.lock.close()  # as the kernel does when a process ends
    assert len(clients.takers(5)) == 5
    assert any(worker.counts.is_least() for worker in workers)


def test_after_the_end_of_one_the_other_takes_all(workers: list[Worker], clients: Clients) -> None:
    workers[0].do(workers[0].acceptor.close)
    assert {taker for _, taker in clients.takers(8)} == {b"b"}
    assert workers[1].counts.is_least()


def test_who_has_connected_before_the_end_is_taken_and_told(
    tmp_path: Path, listening: socket.socket, clients: Clients
) -> None:
    """The loop is busy while they connect, and then the first thing it does is to close."""
    worker = Worker(tmp_path, listening, b"a")
    connected: list[socket.socket] = []

    def connect_and_close() -> None:
        connected.extend(clients.connect() for _ in range(5))
        worker.acceptor.close()

    worker.do(connect_and_close)
    assert [client.recv(1) for client in connected] == [b"a"] * 5
    assert [client.recv(1) for client in connected] == [b""] * 5
    assert worker.told_to_end == 5
    assert not worker.acceptor.is_serving()
    worker.end()


def test_without_free_descriptors_it_waits_and_goes_on(
    tmp_path: Path,
    listening: socket.socket,
    clients: Clients,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full:
        """A listening socket of a process that may open no more files, once."""

        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock
            self._is_full = True

        def accept(self) -> Any:
            if self._is_full:
                self._is_full = False
                raise OSError(errno.EMFILE, "Too many open files")
            return self._sock.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    monkeypatch.setattr("service.process.balancing.RETRY_S", 5 * WAIT_FOR_LEAST_S)
    worker = Worker(tmp_path, listening, b"a")
    worker.acceptor._sock = Full(worker.acceptor._sock)  # type: ignore[assignment]
    assert clients.takers(1)[0][1] == b"a"
    assert "no connection can be taken for now: [Errno 24] Too many open files" in caplog.text
    worker.end()


def test_the_loop_of_a_worker_has_its_servers_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that of a process without a slot has uvloop's."""

    async def server_here() -> str:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            server = await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=sock, backlog=5)
            server.close()
            await server.wait_closed()
            return type(server).__name__

    with contextlib.closing(Loop()) as loop:
        assert loop.run_until_complete(server_here()) == "Server"
    monkeypatch.setenv(METRICS_DIR, str(tmp_path))
    Slot.of_this_worker.cache_clear()
    with contextlib.closing(Loop()) as loop:
        assert loop.run_until_complete(server_here()) == "Acceptor"
    slot = Slot.of_this_worker()
    assert slot
    slot.lock.close()
    Slot.of_this_worker.cache_clear()


def test_one_that_cannot_listen_ends_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers may bind the same port, and only one can listen; the supervisor of the other must not start
    workers for ever."""
    monkeypatch.setenv(METRICS_DIR, str(tmp_path))
    Slot.of_this_worker.cache_clear()
    with contextlib.closing(Loop()) as loop, socket.socket() as quick, socket.socket() as slow:
        for sock in (quick, slow):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        quick.bind(("127.0.0.1", 0))
        slow.bind(quick.getsockname())
        quick.listen()
        with pytest.raises(SystemExit) as ended:
            loop.run_until_complete(loop.create_server(asyncio.Protocol, sock=slow))
        assert ended.value.code == STARTUP_FAILURE
    slot = Slot.of_this_worker()
    assert slot
    slot.lock.close()
    Slot.of_this_worker.cache_clear()
