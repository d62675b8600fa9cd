"""A request's body in, its bytes out, streamed and never past the limits: in memory, or in a temporary file.

    limit                  passed by                                                     answer
    max_body_bytes         Content-Length, or the chunk that passes it                   413
    timeout_s              fewer than MIN_BYTES_PER_S on average in so many seconds      408
    max_held_bytes         all bodies that are being read or worked on, and large        503
                           answers that are being sent, together

Bodies are kept in memory up to SPOOL_BYTES, longer ones in a temporary file, and so is every body while those
in memory take MEMORY_BYTES together: many uploads at once, or slow ones, do not fill the memory.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from starlette.requests import ClientDisconnect, Request

from service.errors import BodyTooLarge, Overloaded, UploadTimeout
from service.sound.pcm import Pcm

log = logging.getLogger(__name__)

SPOOL_BYTES = 1_000_000
MEMORY_BYTES = 128_000_000
MIN_BYTES_PER_S = 500  # 4 kbit/s: less than any codec here makes of speech
HELD_RETRY_AFTER_S = 5.0

BUDGET = "viola.budget"  # in the scope: the budget that the body came through; its answer counts there, too


@dataclass
class UploadBudget:
    """What a process takes in: the limits drawn above, and what it holds at this moment."""

    max_body_bytes: int
    timeout_s: float
    max_held_bytes: int
    held_bytes: int = 0
    bytes_in_memory: int = 0


async def stream_body(
    request: Request, budget: UploadBudget, write: Callable[[bytes], None], *, max_bytes: int | None = None
) -> None:
    """Every chunk of the body into `write`. Raises BodyTooLarge by Content-Length, or with the chunk that
    passes the limit (`max_bytes` where it is given); UploadTimeout where a client is slow; starlette's
    ClientDisconnect where it leaves."""
    request.scope[BUDGET] = budget
    max_bytes = budget.max_body_bytes if max_bytes is None else min(max_bytes, budget.max_body_bytes)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    timeout = _BodyTimeout(budget.timeout_s)
    length, length_to_extend = 0, budget.timeout_s * MIN_BYTES_PER_S
    try:
        while True:
            message = await request.receive()
            if timeout.has_expired:  # in the same moment as this chunk
                await asyncio.sleep(0)  # lets the cancellation happen here
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            length += len(chunk)
            if length > max_bytes:
                raise _too_large(max_bytes)
            if chunk:
                write(chunk)
            if not message.get("more_body", False):
                return
            if length >= length_to_extend:
                length_to_extend = length + budget.timeout_s * MIN_BYTES_PER_S
                timeout.extend()
    except asyncio.CancelledError as error:
        if not timeout.uncancel():
            raise
        raise UploadTimeout(
            f"the body came too slowly: {length} bytes so far, and fewer than {MIN_BYTES_PER_S} per second "
            f"in the last {budget.timeout_s:g} s; send it again, faster"
        ) from error
    finally:
        timeout.stop()


class _BodyTimeout:
    """Cancels the task after timeout_s seconds, unless it is extended: `asyncio.timeout` at half its cost."""

    def __init__(self, timeout_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timeout_s = timeout_s
        self.has_expired = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self._expire)

    def extend(self) -> None:
        """Once more timeout_s seconds, from now on."""
        self._timer.cancel()
        self._timer = self._loop.call_later(self._timeout_s, self._expire)

    def stop(self) -> None:
        self._timer.cancel()

    def uncancel(self) -> bool:
        """Take the cancellation back. True if it was this timeout's, and no other one is pending."""
        return self.has_expired and self._task.uncancel() == 0

    def _expire(self) -> None:
        self.has_expired = True
        self._task.cancel()


class SpooledBody:
    """Bytes that arrive in chunks: a list in memory, or a temporary file; they count as held until `close`.

    pcm: what they are, where they are raw samples; the header that they lack is put before them.
    """

    def __init__(self, budget: UploadBudget, pcm: Pcm | None = None) -> None:
        self.length = 0
        self.budget = budget
        self._pcm = pcm
        self._chunks: list[bytes] = [pcm.header()] if pcm else []
        self._file: BinaryIO | None = None
        self._in_memory = 0

    def write(self, chunk: bytes) -> None:
        """Raises Overloaded where the process holds as much as it may."""
        budget, n = self.budget, len(chunk)
        if budget.held_bytes + n > budget.max_held_bytes:
            raise no_room()
        budget.held_bytes += n
        self.length += n
        if self._file is None and self.length <= SPOOL_BYTES and budget.bytes_in_memory <= MEMORY_BYTES:
            self._chunks.append(chunk)
            budget.bytes_in_memory += n
            self._in_memory += n
        else:
            self._write_to_file(chunk)

    def source(self) -> bytes | BinaryIO:
        """All of it, once there is no more to write. Raises AudioUnreadable where raw samples end within one,
        and Overloaded where the disk is full."""
        if self._pcm and self.length:
            self._pcm.check(self.length)
        if self._file is not None:
            try:
                self._file.seek(0)  # which writes what is still in the file's buffer
            except OSError as error:
                raise _no_disk(error) from error
            return self._file
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def close(self) -> None:
        """Give back the room and the file; nothing happens the second time."""
        self.budget.held_bytes -= self.length
        self.budget.bytes_in_memory -= self._in_memory
        self.length = self._in_memory = 0
        self._chunks = []
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, once more
                self._file.close()

    # A request may end between its body and its clips, with an unknown model for instance.
    __del__ = close

    def _write_to_file(self, chunk: bytes) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
                self._file.writelines(self._chunks)
                self._chunks = []
                self.budget.bytes_in_memory -= self._in_memory
                self._in_memory = 0
            self._file.write(chunk)  # into the page cache: tens of microseconds, no reason to leave the loop
        except OSError as error:
            raise _no_disk(error) from error


def no_room(what: str = "uploads") -> Overloaded:
    """The refusal where the process holds as much as it may."""
    return Overloaded(
        f"the server has no room for more {what}, try again later", retry_after_s=HELD_RETRY_AFTER_S
    )


def _no_disk(error: OSError) -> Overloaded:
    log.warning("an upload is refused, because its temporary file cannot be written: %s", error)
    return no_room()


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is longer than the {max_bytes} bytes that are accepted; send a shorter clip, compress it, "
        "or send its bytes themselves where it is JSON now"
    )
