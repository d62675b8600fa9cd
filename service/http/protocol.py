"""Connections in, requests out, for clients that are slow, endless or gone: uvicorn's protocol with limits.

    from                until                      limit                             beyond it
    connected           the head is complete       head_s, MAX_HEAD_BYTES            cut: "head"
    head                the body is complete       told by upload.pour               408
    an early answer     the body is complete       linger_s, linger_bytes            cut: "rest"
    answer              the client has read it     MIN_BYTES_PER_S in answer_s       cut: "answer"

uvicorn itself waits for ever for a head, for the rest of a body that was already refused, and for a client
that does not read. Its own timer (`timeout_keep_alive`) is for connections between two requests.

A connection that ends with an early answer (413 while gigabytes are still coming) lingers, as RFC 9112 (9.6)
asks: were it closed at once, the kernel would meet the bytes that still arrive with a reset, and many clients
would lose the answer with it.

Nothing is upgraded here: a request that offers to go on in another protocol (`Upgrade: h2c`) is answered in
its own, as RFC 9110 (7.8) allows.
"""

import asyncio
import fcntl
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.upload import MIN_BYTES_PER_S

Cut = Literal["head", "rest", "answer"]

LIMITS = "viola.limits"  # in the state of the lifespan
MAX_HEAD_BYTES = 65_536  # in a row that are neither body nor a complete head
MAX_PIPELINED = 16  # requests sent ahead without waiting for answers; hardly any client sends one
FRAMING = frozenset({b"content-length", b"transfer-encoding"})  # where a body ends


@dataclass(frozen=True)
class Limits:
    """The limits above. on_cut: told of each connection that is cut for which of them."""

    head_s: float = 20.0
    linger_s: float = 10.0
    linger_bytes: int = 16_000_000
    answer_s: float = 20.0
    on_cut: Callable[[Cut], None] = lambda reason: None


class Protocol(HttpToolsProtocol):
    """For `uvicorn.run(http=Protocol)`. The application's limits are those that its lifespan yields as
    LIMITS."""

    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.limits = self.app_state.get(LIMITS, self.limits)
        self.on_lost: Callable[[], None] = lambda: None
        self._is_in_head = True  # or before one
        self._is_body_wanted = True
        self._is_lingering = False
        self._bytes_in_a_row = 0
        self._bytes_to_drop = 0
        self._unsent_bytes = 0
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Transport(transport, self.close_transport)))
        self._real_transport = transport
        self._wait_at_most(self.limits.head_s, "head")

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_lost()
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_body_wanted:
            self._bytes_to_drop -= len(data)
            if self._bytes_to_drop < 0:
                self._cut("rest")
            if self._is_lingering or self._bytes_to_drop < 0:
                return
        self._bytes_in_a_row += len(data)
        self._parse(data)
        if self._bytes_in_a_row:
            self._watch_head()

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests are sent ahead")  # uvicorn answers 400 and closes
        self._stop_waiting()
        self._is_in_head = False
        self._bytes_in_a_row = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes_in_a_row = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # says the parser, and means the head; the body follows
            return
        if not self._is_body_wanted:
            self._wait_at_most(self.limits.head_s, "head")
            self._is_body_wanted = True
        self._is_in_head = True
        self._bytes_in_a_row = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_body_wanted and not self._is_in_head and self.cycle.response_complete:
            self._drop_the_rest()

    def close_transport(self) -> None:
        """At once, or where a body is still coming as soon as its sender stops."""
        transport = self._real_transport
        if self._is_in_head or transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                self._wait_for_reader()
            return
        self._is_lingering = True
        self._drop_the_rest()
        if transport.can_write_eof():
            transport.write_eof()
        self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _parse(self, data: bytes) -> None:
        """As uvicorn's data_received, but for upgrades, of which it warns and loses the body."""
        self._unset_keepalive_if_required()
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as stopped:
                    data = data[stopped.args[0] :]
                    self._begin_body_without_upgrade()
        except httptools.HttpParserError:
            reason = "Invalid HTTP request received."
            self.logger.warning(reason)
            self.send_400_response(reason)

    def _begin_body_without_upgrade(self) -> None:
        """The parser takes what follows an upgrade for another protocol. A new one is told where the body
        ends, in a head without upgrade that only it sees."""
        callbacks = _AfterHead(self)
        self.parser = httptools.HttpRequestParser(callbacks)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        framing = b"".join(name + b": " + value + b"\r\n" for name, value in self.headers if name in FRAMING)
        callbacks.is_in_head = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        callbacks.is_in_head = False

    def _watch_head(self) -> None:
        """After bytes that were neither body nor a complete head: more of a head, or of what stands between
        the chunks of a body and behind it."""
        if self._bytes_in_a_row > MAX_HEAD_BYTES:
            self._cut("head")
        elif self._is_in_head and self._read_timer is None:
            self._wait_at_most(self.limits.head_s, "head")

    def _drop_the_rest(self) -> None:
        """Of a body that was answered before its end."""
        self._is_body_wanted = False
        self._bytes_to_drop = self.limits.linger_bytes
        self._wait_at_most(self.limits.linger_s, "rest")

    def _wait_for_reader(self) -> None:
        """Look again in answer_s seconds, whether the client has read as much as it should."""
        if self._write_timer is None:
            self._unsent_bytes = _unsent_bytes(self._real_transport)
            self._write_timer = self.loop.call_later(self.limits.answer_s, self._check_reader)

    def _check_reader(self) -> None:
        self._write_timer = None
        read = self._unsent_bytes - _unsent_bytes(self._real_transport)
        if read < self.limits.answer_s * MIN_BYTES_PER_S:
            self._cut("answer")
        else:
            self._wait_for_reader()

    def _wait_at_most(self, seconds: float, reason: Cut) -> None:
        self._stop_waiting()
        self._read_timer = self.loop.call_later(seconds, self._cut, reason)

    def _stop_waiting(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
            self._read_timer = None

    def _cut(self, reason: Cut) -> None:
        if not self._real_transport.is_closing():
            self.limits.on_cut(reason)
        self._real_transport.abort()


class _AfterHead:
    """A protocol's callbacks for a parser that is fed a head of which the protocol knows already."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.is_in_head = False

    def __getattr__(self, name: str) -> Any:
        callback = getattr(self._protocol, name)
        if name in ("on_body", "on_message_complete"):
            return callback
        return lambda *arguments: None if self.is_in_head else callback(*arguments)


def _unsent_bytes(transport: asyncio.Transport) -> int:
    """What the client has not taken yet: in the transport's buffer, and where the system tells (Linux) in its
    own, which holds megabytes and asks for more only once a good part of them is gone."""
    unsent = transport.get_write_buffer_size()
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return unsent + int.from_bytes(answer, sys.byteorder)
    except (OSError, ValueError, AttributeError):
        return unsent


class _Transport:
    """A transport whose `close` is the protocol's; everything else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, close: Any) -> None:
        self._transport = transport
        self._is_closed = False
        self._close = close
        self.write = transport.write

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._close()

    def is_closing(self) -> bool:
        return self._is_closed or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
