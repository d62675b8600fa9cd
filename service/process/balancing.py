"""Connections in, each taken by the worker process that holds the fewest.

    one listening socket ─┬─► worker 0   12 connections   takes the next one at once
                          └─► worker 1   13 connections   takes it when it has the fewest, or after a wait

A connection wakes all processes that wait at one socket, and the quickest takes it: mostly the same one, and
with keep-alive its clients stay with it while the others idle. So each worker writes the number of its
connections into a file that all of them map (workers.py), and leaves a new one to whoever has the fewest. The
counts change who takes a connection, never whether it is taken: where that worker does not come within
WAIT_FOR_LEAST_S, because it hangs or was killed, another one takes all that wait. One that is not ready, for
it ends soon or its model is broken, leaves the others STAND_BACK_S.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from uvicorn.config import STARTUP_FAILURE

from service.process.files import allocate
from service.process.workers import Slot

try:
    from uvloop import Loop as FastestLoop
except ImportError:  # Windows
    from asyncio import SelectorEventLoop as FastestLoop  # type: ignore[assignment]

log = logging.getLogger(__name__)

WAIT_FOR_LEAST_S = 0.01  # an event loop comes round within it, also under load
STAND_BACK_S = 5.0
POLL_S = 0.001  # how often a worker looks meanwhile whether the connection was taken
TOLERANCE = 8  # a worker may take one where it holds up to an eighth more than the one with the fewest
MAX_TAKEN_AT_ONCE = 64  # connections that are taken in place of a worker that does not come
MAX_SLOTS = 1024  # a page of memory
COUNTS_FILE = "connections"
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
RETRY_S = 1.0  # until accepting is tried again, as in asyncio


class ConnectionCounts:
    """The number of connections of each worker, seen by all; for now this one takes none. Raises OSError
    where the file cannot be had."""

    def __init__(self, slot: Slot) -> None:
        n_bytes = MAX_SLOTS * np.uint32().nbytes
        path = slot.folder / COUNTS_FILE
        path.touch()
        with path.open("r+b") as file:
            allocate(file.fileno(), n_bytes)
            self._counts = np.memmap(file, dtype=np.uint32, mode="r+", shape=(MAX_SLOTS,))
        self._slot = slot
        self.leave()

    def show(self, connections: int) -> None:
        """This worker takes connections, and holds so many."""
        self._counts[self._slot.number] = 1 + connections

    def prefer_others(self) -> None:
        """This worker takes connections where no other one does."""
        self._counts[self._slot.number] = np.iinfo(np.uint32).max

    def leave(self) -> None:
        """This worker takes none."""
        self._counts[self._slot.number] = 0

    def is_least(self) -> bool:
        """Whether no other worker that takes connections holds fewer, within TOLERANCE."""
        least = self.least()
        return int(self._counts[self._slot.number]) <= least + (least - 1) // TOLERANCE

    def others_take(self) -> bool:
        """Whether another worker takes connections and does not leave them to others itself. A worker whose
        folder was deleted is being replaced by some that it cannot see."""
        if not self._slot.is_there():
            return True
        self.forget_the_dead()
        counts = np.delete(self._counts, self._slot.number)
        return bool(np.any((counts > 0) & (counts < np.iinfo(np.uint32).max)))

    def least(self) -> int:
        """The count of the worker that holds the fewest."""
        return int(self._counts[self._counts > 0].min(initial=np.iinfo(np.uint32).max))

    def forget_the_dead(self) -> None:
        """Clear the counts of workers that were killed."""
        if not self._slot.is_there():
            return
        for number in np.flatnonzero(self._counts):
            if not self._slot.is_held(int(number)):
                self._counts[number] = 0


class Loop(FastestLoop):
    """For uvicorn's `loop`: uvloop, whose servers share the connections fairly with those of the other
    workers. In a process that has no slot they are uvloop's own."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = _counts_of_this_worker()
        self._acceptors: list[Acceptor] = []
        self.is_to_stand_back: Callable[[], bool] = lambda: False  # asked when a server begins

    async def create_server(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        """As the event loop's own. A given `sock` is shared; its protocols have to call their `on_lost`.
        Where it cannot listen the process ends, as uvicorn's does where it cannot bind."""
        sock = options.get("sock")
        try:
            if self._counts is None or sock is None or options.get("ssl"):
                return await super().create_server(protocol_factory, *arguments, **options)
            backlog = options.get("backlog", 100)
            acceptor = Acceptor(self, sock, protocol_factory, self._counts, backlog=backlog)
        except OSError as error:
            log.error("cannot listen: %s", error)
            raise SystemExit(STARTUP_FAILURE) from error
        self._acceptors.append(acceptor)
        self.stand_back(self.is_to_stand_back())
        return acceptor

    def stand_back(self, yes: bool) -> None:
        """Whether new connections are for the other workers from now on, while there are any."""
        for acceptor in self._acceptors:
            acceptor.stand_back(yes)

    def others_take(self) -> bool:
        """Whether other workers take the connections that this one does not."""
        return self._counts is not None and self._counts.others_take()


def _counts_of_this_worker() -> ConnectionCounts | None:
    slot = Slot.of_this_worker()
    if slot is None or slot.number >= MAX_SLOTS:
        return None
    try:
        return ConnectionCounts(slot)
    except OSError as error:
        log.warning("connections are not shared evenly among the workers: %s", error)
        return None


class Acceptor:
    """What uvicorn needs of an asyncio.Server; it listens on `sock` from now on.

    new_protocol: makes a protocol for each connection. Its `on_lost` is set to what it must call when the
    connection is lost; its `shutdown` is called where the connection is made after `close`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        new_protocol: Callable[[], Any],
        counts: ConnectionCounts,
        *,
        backlog: int,
    ) -> None:
        self.sockets = (sock,)
        self._loop = loop
        self._sock = sock
        self._new_protocol = new_protocol
        self._counts = counts
        self._held = 0
        self._stands_back = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._handing_over: set[asyncio.Task[Any]] = set()
        sock.setblocking(False)
        sock.listen(backlog)
        counts.show(0)
        self._watch()

    def is_serving(self) -> bool:
        return not self._is_closed

    def stand_back(self, yes: bool) -> None:
        if self._stands_back != yes:
            self._stands_back = yes
            self._count(0)

    def close(self) -> None:
        """Take those who have connected by now, unless others do, then nobody else."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._timer:
            self._timer.cancel()
        while not (self._stands_back and self._counts.others_take()) and self._accept():
            pass
        self._counts.leave()
        self._sock.close()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._handing_over, return_exceptions=True)

    def _watch(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        if self._counts.is_least():
            self._accept()
        else:
            until = self._loop.time() + (STAND_BACK_S if self._stands_back else WAIT_FOR_LEAST_S)
            self._pause(POLL_S, partial(self._poll, until, self._counts.least()))

    def _pause(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, then)

    def _poll(self, until: float, least: int) -> None:
        """Until the worker with the fewest has taken the connection, or the time is up. least: the fewest
        when the waiting began; where that has changed, connections are being taken, and the waiting begins
        anew."""
        if self._counts.is_least() or self._counts.least() != least:
            self._watch()
        elif self._loop.time() < until:
            self._timer = self._loop.call_later(POLL_S, self._poll, until, least)
        else:
            self._watch()
            if self._accept():  # the worker with the fewest did not come
                self._counts.forget_the_dead()
                for _ in range(MAX_TAKEN_AT_ONCE):
                    if self._counts.is_least() or not self._accept():
                        break

    def _recover(self) -> None:
        self._count(0)
        self._watch()

    def _accept(self) -> bool:
        """Whether there was a connection to take."""
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another worker was quicker
            return False
        except OSError as error:
            if error.errno not in OUT_OF_RESOURCES:
                raise
            log.error("no connection can be taken for now: %s", error)
            if not self._is_closed:
                self._counts.prefer_others()
                self._pause(RETRY_S, self._recover)
            return False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._count(1)
        task = self._loop.create_task(self._hand_over(connection))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)
        return True

    async def _hand_over(self, connection: socket.socket) -> None:
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
        if self._stands_back:
            self._counts.prefer_others()
        else:
            self._counts.show(self._held)
