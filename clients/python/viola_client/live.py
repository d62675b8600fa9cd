"""Sound that has no end in, tags and events out while it comes: what `Client.stream` and its twin share.

    sounds ─► bytes ─► WebSocket ─► messages ─► LiveWindow, Event
    the connection breaks, or the server ends ─► another one; times go on where the sound is

Needs the package websockets: `pip install 'viola-client[live]'`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from queue import Empty, Full, Queue
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

import numpy as np
from numpy.typing import ArrayLike

from viola_client.errors import BY_CODE, SoundError, Unreachable, ViolaError
from viola_client.results import Event, LiveWindow, Tag
from viola_client.retries import Retries

Format = Literal["s16le", "s16be", "f32le", "webm", "ogg"]
Piece = bytes | bytearray | memoryview | ArrayLike
Heard = LiveWindow | Event

BYTES_PER_SAMPLE = {"s16le": 2, "s16be": 2, "f32le": 4}
MAX_MESSAGE_BYTES = 1_000_000  # of what is sent; the server takes eight times as many
END = json.dumps({"type": "end"})
MAX_WAITING = 16  # pieces that are read before they are sent
LOOK_S = 0.2  # how often a thread that waits looks whether all is over
_Waiting = bytes | Exception | None  # a piece; behind the last one what has ended them


@dataclass
class Line:
    """One stream, over as many connections as it takes. offset_s: of the one that is open now; unsent: the
    piece that is to be sent next."""

    url: str
    headers: dict[str, str]
    format: Format
    rate: int | None
    channels: int
    on_lag: Callable[[float], None]
    offset_s: float = 0.0
    sent_s: float = 0.0
    unsent: bytes | None = None

    @property
    def may_begin_again(self) -> bool:
        """What begins with a header cannot be joined in its middle."""
        return self.format in BYTES_PER_SAMPLE

    def messages_of(self, piece: Piece) -> Iterator[bytes]:
        """A piece of sound as messages of a bounded size. Raises SoundError."""
        data = memoryview(self._bytes_of(piece))
        for start in range(0, len(data), MAX_MESSAGE_BYTES):
            yield bytes(data[start : start + MAX_MESSAGE_BYTES])

    def has_sent(self) -> None:
        """What was unsent until now."""
        if self.rate is not None and self.unsent is not None:
            per_s = BYTES_PER_SAMPLE[self.format] * self.channels * self.rate
            self.sent_s += len(self.unsent) / per_s
        self.unsent = None

    def begin_again(self) -> None:
        """Another connection: its second 0 is the next sound that is sent."""
        self.offset_s = self.sent_s

    def heard(self, text: str | bytes) -> Heard | None:
        """A message of the server; None where there is nothing to tell. Raises what it says is wrong."""
        message = json.loads(text)
        kind = message["type"]
        if kind == "tags":
            embedding = message.get("embedding")
            return LiveWindow(
                message["start_s"] + self.offset_s,
                message["end_s"] + self.offset_s,
                tuple(Tag(tag["label"], tag["score"]) for tag in message["tags"]),
                message.get("known"),
                None if embedding is None else np.array(embedding, dtype=np.float32),
            )
        if kind == "event":
            event = Event(message["label"], message["start_s"], message["end_s"], message["score"])
            return replace(event, start_s=event.start_s + self.offset_s, end_s=event.end_s + self.offset_s)
        if kind == "lag":
            self.on_lag(message["seconds"])
        if kind == "error":
            raise BY_CODE.get(message["error"], ViolaError)(message["detail"], code=message["error"])
        return None

    def _bytes_of(self, piece: Piece) -> bytes:
        if isinstance(piece, (bytes, bytearray, memoryview)):
            return bytes(piece)
        samples = np.asarray(piece)
        if self.format not in BYTES_PER_SAMPLE:
            raise SoundError(f"samples are no {self.format}: give the bytes that the recorder writes")
        if self.format == "f32le":
            return samples.astype("<f4").tobytes()
        if samples.dtype.kind == "f":
            samples = np.clip(np.round(samples * 32_768), -32_768, 32_767)
        elif samples.dtype != np.int16:
            raise SoundError(f"samples are {samples.dtype}: give floats in [-1, 1], or int16")
        return samples.astype("<i2" if self.format == "s16le" else ">i2").tobytes()


def line_of(
    base_url: str,
    *,
    api_key: str | None,
    rate: int | None,
    channels: int,
    format: Format,
    on_lag: Callable[[float], None] | None,
    options: dict[str, Any],
) -> Line:
    """options: the other parameters of the route; what is None is left out. Raises SoundError."""
    if (rate is None) == (format in BYTES_PER_SAMPLE):
        raise SoundError("raw samples need their rate, and webm and ogg tell it themselves")
    query = {name: _written(value) for name, value in options.items() if value is not None}
    query["format"] = format
    if rate is not None:
        query |= {"rate": str(rate), "channels": str(channels)}
    parts = urlsplit(base_url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = f"{parts.path.rstrip('/')}/stream"
    url = urlunsplit((scheme, parts.netloc, path, urlencode(query), ""))
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return Line(url, headers, format, rate, channels, on_lag or (lambda seconds: None))


def stream(line: Line, sounds: Iterable[Piece], retries: Retries) -> Iterator[Heard]:
    """What is heard in the sounds. They are read and sent by two threads, which end with it; a source that
    waits for its next sound is left waiting."""
    from websockets.exceptions import ConnectionClosed, InvalidHandshake
    from websockets.sync.client import connect

    is_over = threading.Event()
    waiting: Queue[_Waiting] = Queue(MAX_WAITING)
    reader = threading.Thread(target=_read, args=(line, sounds, waiting, is_over), daemon=True)
    reader.start()
    attempt = 0
    try:
        while True:
            try:
                with connect(line.url, additional_headers=line.headers, max_size=None) as socket:
                    line.begin_again()
                    failure: list[Exception] = []
                    is_closed = threading.Event()
                    sender = threading.Thread(
                        target=_send, args=(line, socket, waiting, is_closed, failure), daemon=True
                    )
                    sender.start()
                    try:
                        for text in socket:
                            if (heard := line.heard(text)) is not None:
                                attempt = 0
                                yield heard
                    finally:
                        is_closed.set()
                        socket.close()
                        sender.join()
                        if failure:
                            raise failure[0]
                    if socket.close_code == 1000:
                        return
                    broken: Exception = Unreachable(f"the stream was closed with {socket.close_code}")
            except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError) as error:
                broken = _broken(error)
            except ViolaError as error:
                broken = error
            attempt += 1
            time.sleep(_pause_s(line, retries, attempt, broken))
    finally:
        is_over.set()


async def stream_async(
    line: Line, sounds: AsyncIterable[Piece] | Iterable[Piece], retries: Retries
) -> AsyncIterator[Heard]:
    """The same, awaited."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake

    waiting: asyncio.Queue[_Waiting] = asyncio.Queue(MAX_WAITING)
    reader = asyncio.create_task(_read_async(line, sounds, waiting))
    attempt = 0
    try:
        while True:
            try:
                async with connect(line.url, additional_headers=line.headers, max_size=None) as socket:
                    line.begin_again()
                    failure: list[Exception] = []
                    sender = asyncio.create_task(_send_async(line, socket, waiting, failure))
                    try:
                        async for text in socket:
                            if (heard := line.heard(text)) is not None:
                                attempt = 0
                                yield heard
                    finally:
                        sender.cancel()
                        await asyncio.gather(sender, return_exceptions=True)
                        if failure:
                            raise failure[0]
                    if socket.close_code == 1000:
                        return
                    broken: Exception = Unreachable(f"the stream was closed with {socket.close_code}")
            except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError) as error:
                broken = _broken(error)
            except ViolaError as error:
                broken = error
            attempt += 1
            await asyncio.sleep(_pause_s(line, retries, attempt, broken))
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def _read(line: Line, sounds: Iterable[Piece], waiting: Queue[_Waiting], is_over: threading.Event) -> None:
    """In a thread: the sounds, and behind them None or what their source has raised."""
    last: _Waiting = None
    try:
        for piece in sounds:
            for message in line.messages_of(piece):
                if not _put(waiting, message, is_over):
                    return
    except Exception as error:
        last = error
    _put(waiting, last, is_over)


def _put(waiting: Queue[_Waiting], message: _Waiting, is_over: threading.Event) -> bool:
    while not is_over.is_set():
        with contextlib.suppress(Full):
            waiting.put(message, timeout=LOOK_S)
            return True
    return False


def _send(
    line: Line,
    socket: Any,
    waiting: Queue[_Waiting],
    is_closed: threading.Event,
    failure: list[Exception],
) -> None:
    """In a thread, for one connection: whatever waits. What has left on one that breaks is lost."""
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed, OSError):
        while not is_closed.is_set():
            if line.unsent is not None:
                socket.send(line.unsent)
                line.has_sent()
            try:
                message = waiting.get(timeout=LOOK_S)
            except Empty:
                continue
            if isinstance(message, bytes):
                line.unsent = message
                continue
            waiting.put(message)  # for the next connection, should this one break before its end
            if message is not None:
                failure.append(message)
                socket.close()
            else:
                socket.send(END)
            return


async def _read_async(
    line: Line, sounds: AsyncIterable[Piece] | Iterable[Piece], waiting: asyncio.Queue[_Waiting]
) -> None:
    last: _Waiting = None
    try:
        async for piece in _each(sounds):
            for message in line.messages_of(piece):
                await waiting.put(message)
    except Exception as error:
        last = error
    await waiting.put(last)


async def _each(sounds: AsyncIterable[Piece] | Iterable[Piece]) -> AsyncIterator[Piece]:
    if isinstance(sounds, AsyncIterable):
        async for piece in sounds:
            yield piece
    else:
        for piece in sounds:
            yield piece


async def _send_async(
    line: Line, socket: Any, waiting: asyncio.Queue[_Waiting], failure: list[Exception]
) -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(ConnectionClosed, OSError):
        while True:
            if line.unsent is not None:
                await socket.send(line.unsent)
                line.has_sent()
            message = await waiting.get()
            if not isinstance(message, bytes):
                break
            line.unsent = message
        waiting.put_nowait(message)
        if message is not None:
            failure.append(message)
            await socket.close()
        else:
            await socket.send(END)


def _broken(error: Exception) -> ViolaError:
    unreachable = Unreachable(f"the stream broke off: {error or type(error).__name__}")
    unreachable.__cause__ = error
    return unreachable


def _pause_s(line: Line, retries: Retries, attempt: int, error: Exception) -> float:
    """Seconds until the next connection. Raises the error where another one would not help."""
    may_help = isinstance(error, Unreachable) or getattr(error, "code", "") in (
        "overloaded", "model_unavailable", "internal_error"
    )  # fmt: skip
    has_begun = line.sent_s > 0 or line.format not in BYTES_PER_SAMPLE
    wait_s = retries.wait_s(attempt, 0, None)
    if not may_help or wait_s is None or (has_begun and not line.may_begin_again):
        raise error
    return wait_s


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
