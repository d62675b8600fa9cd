"""A bound socket in, requests answered at it by uvicorn until a signal comes, in this process or in a worker.

    starting   SIGTERM ends it at once: nothing was accepted yet
    serving    SIGTERM: what was accepted is finished; SIGHUP: the models are loaded anew
               a worker says once a second that its event loop turns, and why it is not ready, if it is not

The application takes part by what its lifespan yields: READINESS and RELOAD.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from multiprocessing.connection import Connection
from typing import Any

import uvicorn

from service.process import signals
from service.process.allocator import keep_freed_arrays
from service.process.balancing import Loop
from service.process.workers import end_with_the_supervisor

log = logging.getLogger(__name__)

# In the state of the lifespan: `() -> str | None`, why no request should be sent to this process, None if it
# is ready; and `async () -> object`, which loads what has changed and raises nothing.
READINESS, RELOAD = "viola.readiness", "viola.reload"

BEAT_S = 1.0
MAX_BEAT_BYTES = 2000  # of a reason: a pipe takes so many at once or not at all


class Server(uvicorn.Server):
    """uvicorn's, for a process that ends with exit code 0 when it is told to. beats: of a worker, the pipe to
    its supervisor."""

    def __init__(self, config: uvicorn.Config, beats: Connection | None = None) -> None:
        super().__init__(config)
        self._beats = beats
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """For good. uvicorn would raise the signal again at the end, for handlers that were there before."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        if signals.SIGHUP:
            signal.signal(signals.SIGHUP, self._hang_up)
        yield

    def handle_exit(self, number: int, frame: Any) -> None:
        if not self.started:
            signals.exit_now(number, frame)
        super().handle_exit(number, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if isinstance(self._loop, Loop):
            self._loop.is_to_stand_back = lambda: bool(self._why_not_ready())
        await super().startup(sockets)
        if self._beats:
            # Whoever reads "serving" below has been told.
            os.set_blocking(self._beats.fileno(), False)
            self._beat(self._beats)
            self._keep(self._go_on_beating(self._beats))
        for sock in sockets or ():
            log.info("serving on http://%s", _shown(sock))

    async def _go_on_beating(self, beats: Connection) -> None:
        """Until the loop ends."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._beat(beats)

    def _beat(self, beats: Connection) -> None:
        """Whoever stops reading holds up nobody."""
        reason = self._why_not_ready()
        if isinstance(self._loop, Loop):
            self._loop.stand_back(bool(reason))
        with contextlib.suppress(OSError):
            beats.send_bytes(reason.encode()[:MAX_BEAT_BYTES])

    def _why_not_ready(self) -> str:
        why: Callable[[], str | None] = self.lifespan.state.get(READINESS, lambda: None)
        return why() or ""

    def _hang_up(self, number: int, frame: Any) -> None:
        if signals.has_lost_its_terminal():
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.started:
            self._loop.call_soon_threadsafe(lambda: self._keep(self._reload()))

    async def _reload(self) -> None:
        reload: Callable[[], Awaitable[object]] | None = self.lifespan.state.get(RELOAD)
        if reload:
            log.info("SIGHUP: the folder of models is read again")
            await reload()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def work(config: uvicorn.Config, sockets: list[socket.socket], beats: Connection) -> None:
    """The whole life of a worker, in its own process."""
    signals.end_at_once()
    keep_freed_arrays()
    end_with_the_supervisor()
    config.configure_logging()
    Server(config, beats).run(sockets)


def bound_socket(host: str, port: int) -> socket.socket:
    """Bound, and not yet listening: clients are refused until somebody is ready. `::` means all addresses, of
    IPv4, too; a name its first address, of IPv4 if it has one. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
