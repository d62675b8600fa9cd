"""Connections in, each taken by the worker process that holds the fewest.

    one listening socket ─┬─► worker 0   12 connections   takes the next one at once
                          └─► worker 1   13 connections   leaves it to the others for PATIENCE_S

A connection wakes all processes that wait at one socket, and the quickest takes it: mostly the same one, and
with keep-alive its clients stay with it while the others idle. The counts stand in a file that the workers
share (processes.py). They change who is first, never whether a connection is taken: that of a process that
was killed makes the others wait PATIENCE_S for each connection, until its successor has its slot.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import uvloop

from service.processes import Slot

log = logging.getLogger(__name__)

PATIENCE_S = 0.01  # within it an event loop comes round, also under load
MAX_SLOTS = 1024  # a page of memory
COUNTS = "connections"  # the file
FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
FULL_S = 1.0  # until accepting is tried again, as asyncio does


class Board:
    """The number of connections of each worker, seen by all. Raises OSError where the file cannot be had."""

    def __init__(self, slot: Slot) -> None:
        path = slot.folder / COUNTS
        with path.open("ab") as file:
            file.truncate(MAX_SLOTS * np.uint32().nbytes)
        self._counts = np.memmap(path, dtype=np.uint32, mode="r+", shape=(MAX_SLOTS,))
        self._number = slot.number
        self.leave()

    def show(self, connections: int) -> None:
        """This worker takes connections, and holds so many."""
        self._counts[self._number] = 1 + connections

    def leave(self) -> None:
        """This worker takes none."""
        self._counts[self._number] = 0

    def is_least(self) -> bool:
        """Whether no other worker that takes connections holds fewer."""
        shown = self._counts[self._counts > 0]
        return not shown.size or bool(self._counts[self._number] <= shown.min())


class Loop(uvloop.Loop):
    """For uvicorn's `loop`: uvloop, whose servers share the connections with the other workers' fairly. In a
    process that has no slot it is uvloop's own."""

    async def create_server(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        """As the event loop's own. A given `sock` is shared; its protocols have to call their `on_lost`."""
        slot, sock = Slot.of_this_worker(), options.get("sock")
        if slot is None or sock is None or options.get("ssl") or slot.number >= MAX_SLOTS:
            return await super().create_server(protocol_factory, *arguments, **options)
        return Acceptor(self, sock, protocol_factory, Board(slot), backlog=options.get("backlog", 100))


class Acceptor:
    """What uvicorn needs of an asyncio.Server; it listens on `sock` from now on. new_protocol: what it makes
    is told as `on_lost` what to call when its connection is lost, and has `shutdown`, which is called where
    its connection is made after `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        new_protocol: Callable[[], Any],
        board: Board,
        *,
        backlog: int,
    ) -> None:
        self.sockets = (sock,)
        self._loop = loop
        self._sock = sock
        self._new_protocol = new_protocol
        self._board = board
        self._held = 0
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[Any]] = set()
        sock.setblocking(False)
        sock.listen(backlog)
        board.show(0)
        self._watch()

    def is_serving(self) -> bool:
        return not self._is_closed

    def close(self) -> None:
        """Take those who have connected by now, then nobody else."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._timer:
            self._timer.cancel()
        while self._accept():
            pass
        self._board.leave()
        self._sock.close()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._beginning, return_exceptions=True)

    def _watch(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock.fileno(), self._somebody_connects)

    def _somebody_connects(self) -> None:
        if self._board.is_least():
            self._accept()
        else:
            self._pause(PATIENCE_S, self._accept_late)

    def _pause(self, seconds: float, end: Callable[[], object]) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, end)

    def _accept_late(self) -> None:
        self._watch()
        self._accept()

    def _accept(self) -> bool:
        """Whether somebody was there."""
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another worker was quicker
            return False
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.error("no connection can be taken for now: %s", error)
            if not self._is_closed:
                self._pause(FULL_S, self._watch)
            return False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._count(1)
        task = self._loop.create_task(self._begin(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        return True

    async def _begin(self, connection: socket.socket) -> None:
        def counted() -> asyncio.BaseProtocol:
            protocol = self._new_protocol()
            protocol.on_lost = lambda: self._count(-1)
            return cast(asyncio.BaseProtocol, protocol)

        try:
            _, protocol = await self._loop.connect_accepted_socket(counted, connection)
        except OSError:  # it has gone before it was here
            connection.close()
            self._count(-1)
            return
        if self._is_closed:
            cast(Any, protocol).shutdown()

    def _count(self, change: int) -> None:
        self._held += change
        if not self._is_closed:
            self._board.show(self._held)
