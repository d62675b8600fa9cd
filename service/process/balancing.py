"""Connections in, each taken by the worker process that holds the fewest.

    one listening socket ─┬─► worker 0   12 connections   takes the next one at once
                          └─► worker 1   13 connections   takes it when it is the least, or after PATIENCE_S

A connection wakes all processes that wait at one socket, and the quickest takes it: mostly the same one, and
with keep-alive its clients stay with it while the others idle. The counts stand in a file that the workers
share (processes.py). They change who takes a connection, never whether it is taken: when the least does not
come within PATIENCE_S, because it hangs or was killed, another one takes whoever waits.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import uvloop
from uvicorn.config import STARTUP_FAILURE

from service.processes import Slot

log = logging.getLogger(__name__)

PATIENCE_S = 0.01  # within it an event loop comes round, also under load
LOOK_S = 0.001  # how often a worker looks meanwhile, whether it is its turn
LEAD = 8  # of so many connections one may be more than the least has
MOST_AT_ONCE = 64  # connections that are taken in place of a worker that does not come
MAX_SLOTS = 1024  # a page of memory
COUNTS = "connections"  # the file
FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
FULL_S = 1.0  # until accepting is tried again, as asyncio does


class Board:
    """The number of connections of each worker, seen by all; for now this one takes none. Raises OSError
    where the file cannot be had."""

    def __init__(self, slot: Slot) -> None:
        n_bytes = MAX_SLOTS * np.uint32().nbytes
        path = slot.folder / COUNTS
        path.touch()
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)  # a page without room on the disk would be fatal
            self._counts = np.memmap(file, dtype=np.uint32, mode="r+", shape=(MAX_SLOTS,))
        self._slot = slot
        self.leave()

    def show(self, connections: int) -> None:
        """This worker takes connections, and holds so many."""
        self._counts[self._slot.number] = 1 + connections

    def give_way(self) -> None:
        """This worker takes connections where no other one does."""
        self._counts[self._slot.number] = np.iinfo(np.uint32).max

    def leave(self) -> None:
        """This worker takes none."""
        self._counts[self._slot.number] = 0

    def is_least(self) -> bool:
        """Whether the other workers that take connections hold as many, about."""
        least = self.least()
        return int(self._counts[self._slot.number]) <= least + (least - 1) // LEAD

    def least(self) -> int:
        """What is shown of the worker that holds the fewest."""
        return int(self._counts[self._counts > 0].min(initial=np.iinfo(np.uint32).max))

    def forget_the_dead(self) -> None:
        """The counts of workers that were killed say nothing any more."""
        for number in np.flatnonzero(self._counts):
            if not self._slot.is_held(int(number)):
                self._counts[number] = 0


class Loop(uvloop.Loop):
    """For uvicorn's `loop`: uvloop, whose servers share the connections fairly with those of the other
    workers. In a process that has no slot it is uvloop's own."""

    def __init__(self) -> None:
        super().__init__()
        self._board = _board_of_this_worker()
        self._acceptors: list[Acceptor] = []

    async def create_server(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        """As the event loop's own. A given `sock` is shared; its protocols have to call their `on_lost`.
        Where it cannot listen the process ends, as uvicorn's does where it cannot bind."""
        sock = options.get("sock")
        if self._board is None or sock is None or options.get("ssl"):
            return await super().create_server(protocol_factory, *arguments, **options)
        backlog = options.get("backlog", 100)
        try:
            acceptor = Acceptor(self, sock, protocol_factory, self._board, backlog=backlog)
        except OSError as error:
            log.error("cannot listen: %s", error)
            raise SystemExit(STARTUP_FAILURE) from error
        self._acceptors.append(acceptor)
        return acceptor

    def give_way(self) -> None:
        """New connections are for the other workers from now on, while there are any."""
        for acceptor in self._acceptors:
            acceptor.give_way()


def _board_of_this_worker() -> Board | None:
    slot = Slot.of_this_worker()
    if slot is None or slot.number >= MAX_SLOTS:
        return None
    try:
        return Board(slot)
    except OSError as error:
        log.warning("connections are not shared evenly among the workers: %s", error)
        return None


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
        self._gives_way = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[Any]] = set()
        sock.setblocking(False)
        sock.listen(backlog)
        board.show(0)
        self._watch()

    def is_serving(self) -> bool:
        return not self._is_closed

    def give_way(self) -> None:
        self._gives_way = True
        self._count(0)

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
            until = self._loop.time() + PATIENCE_S
            self._pause(LOOK_S, partial(self._look_again, until, self._board.least()))

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, then)

    def _look_again(self, until: float, least: int) -> None:
        """least: when the waiting began. Where it has changed somebody comes, and the waiting begins anew."""
        if self._board.is_least() or self._board.least() != least:
            self._watch()
        elif self._loop.time() < until:
            self._timer = self._loop.call_later(LOOK_S, self._look_again, until, least)
        else:
            self._watch()
            if self._accept():  # the least did not come
                self._board.forget_the_dead()
                for _ in range(MOST_AT_ONCE):
                    if self._board.is_least() or not self._accept():
                        break

    def _recover(self) -> None:
        self._count(0)
        self._watch()

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
                self._board.give_way()
                self._pause(FULL_S, self._recover)
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
        except Exception as error:  # OSError: it has gone before it was here
            connection.close()
            self._count(-1)
            if not isinstance(error, OSError):
                raise
            return
        if self._is_closed:
            cast(Any, protocol).shutdown()

    def _count(self, change: int) -> None:
        self._held += change
        if self._is_closed:
            return
        if self._gives_way:
            self._board.give_way()
        else:
            self._board.show(self._held)
