"""A request to every process of this server in, what each of them answered out.

    worker 0   POST /models/reload ─► does it itself ─► asks one after the other ─► all reports
    worker 1   1234.sock ◄──────────────────────────────┘
    worker 2   1235.sock ◄──────────────────────────────┘

A request over HTTP reaches one of several workers, whichever takes the connection. Each therefore listens on
a Unix socket in the folder that the workers of one server share (workers.py), which nobody else may enter.
A worker that is just starting has no socket yet, and needs none: it reads the folders as they are now.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.process.workers import Slot

log = logging.getLogger(__name__)

ANSWER_S = 300.0  # a model that is loaded, and on a GPU warmed at every length


class Broadcast:
    """act: what this worker does when another one asks it to, and its answer. slot: None for one alone."""

    def __init__(self, slot: Slot | None, act: Callable[[], Awaitable[bytes]]) -> None:
        self._slot = slot
        self._act = act
        self._listening: asyncio.Server | None = None

    async def open(self) -> None:
        if self._slot is None:
            return
        path = _socket_of(self._slot.folder, os.getpid())
        try:
            self._listening = await asyncio.start_unix_server(self._answer, path)
        except OSError as error:  # its path may be too long for a socket
            log.error("POST /models/reload on other workers will not reach this one: %s: %s", path, error)

    async def close(self) -> None:
        if self._slot is None or self._listening is None:
            return
        self._listening.close()
        _socket_of(self._slot.folder, os.getpid()).unlink(missing_ok=True)

    async def ask(self) -> list[bytes]:
        """The answers of all others, who act one after the other, so that the rest serve at full speed."""
        if self._slot is None:
            return []
        others = [pid for pid in self._slot.living() if pid != os.getpid()]
        answers = [await self._ask_one(pid, _socket_of(self._slot.folder, pid)) for pid in others]
        return [answer for answer in answers if answer]

    async def _ask_one(self, pid: int, path: Path) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    return await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            log.warning("the worker %d does not answer: %r", pid, error)
            return b""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await self._act())
            await writer.drain()
        except OSError as error:
            log.warning("the worker that asked has gone: %r", error)
        finally:
            writer.close()


def _socket_of(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.sock"
