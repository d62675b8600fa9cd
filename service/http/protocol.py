"""Connections in, requests out, for clients that are slow, endless or gone: uvicorn's protocol with limits.

    from                until                      limit                             beyond it
    connected           the head is complete       head_s, MAX_HEAD_BYTES            cut: "head"
    head                the body is complete       told in request_body.py           408
    an early answer     the body is complete       linger_s, linger_bytes            cut: "rest"
    answer              the client has read it     MIN_BYTES_PER_S in answer_s       cut: "answer"

uvicorn itself waits for a head for ever, for the rest of a body that was already refused, and for a client
that does not read. Its own timer (`timeout_keep_alive`) is for connections between two requests.

What is no HTTP is answered 400 in the shape of every other error, and counted.

A connection that ends with an early answer (413 while gigabytes are still coming) lingers, as RFC 9112 (9.6)
asks: were it closed at once, the kernel would meet the bytes that still arrive with a reset, and many clients
would lose the answer with it.

A request for a WebSocket, at a path that ends in /stream, is handed on (websocket.py). Nothing else is
upgraded: a request that offers to go on in another protocol (`Upgrade: h2c`) is answered in its own, as RFC
9110 (7.8) allows.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import MalformedHttp
from service.http.request_body import MIN_BYTES_PER_S
from service.process.send_queue import unread_bytes

CutReason = Literal["head", "rest", "answer"]

# In the state of the lifespan: the limits below, and `() -> None`, which tells all streams to end.
LIMITS, END_STREAMS = "viola.limits", "viola.end_streams"
UNREAD = "viola.unread"  # in the scope of a request whose answer was cut because nobody read it
WEBSOCKET_PATH = b"/stream"
MAX_HEAD_BYTES = 65_536  # in a row that are neither body nor a complete head
MAX_PIPELINED = 16  # requests sent ahead without waiting for answers; hardly any client sends one
FRAMING = frozenset({b"content-length", b"transfer-encoding"})  # where a body ends


_DETAIL = b"the request is no HTTP that can be parsed; the server closes the connection"
_BODY = b'{"error":"%s","detail":"%s"}' % (MalformedHttp.code.encode(), _DETAIL)
MALFORMED = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


@dataclass(frozen=True)
class Limits:
    """The limits above. on_cut: called with the reason for each connection that is cut;
    on_malformed: for each that is answered 400."""

    head_s: float = 20.0
    linger_s: float = 10.0
    linger_bytes: int = 16_000_000
    answer_s: float = 20.0
    on_cut: Callable[[CutReason], None] = lambda reason: None
    on_malformed: Callable[[], None] = lambda: None


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
        self._bytes_to_discard = 0
        self._unsent_bytes = 0
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Transport(transport, self.close_transport)))
        self._real_transport = transport
        self._start_read_timer(self.limits.head_s, "head")

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_lost()
        self._stop_read_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_body_wanted:
            self._bytes_to_discard -= len(data)
            if self._bytes_to_discard < 0:
                self._cut("rest")
            if self._is_lingering or self._bytes_to_discard < 0:
                return
        self._bytes_in_a_row += len(data)
        self._parse(data)
        if self._bytes_in_a_row:
            self._watch_head()

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests are sent ahead")  # uvicorn answers 400 and closes
        self._stop_read_timer()
        self._unset_keepalive_if_required()
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
            self._stop_read_timer()
            self._is_body_wanted = True
            self._start_keep_alive()
        self._is_in_head = True
        self._bytes_in_a_row = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_body_wanted and not self._is_in_head and self.cycle.response_complete:
            self._discard_rest_of_body()

    def close_transport(self) -> None:
        """At once, or where a body is still coming as soon as its sender stops."""
        transport = self._real_transport
        if self._is_in_head or transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                self._start_write_timer()
            return
        self._is_lingering = True
        self._discard_rest_of_body()
        if transport.can_write_eof():
            transport.write_eof()
        self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """`msg`, uvicorn's own words, are for the log."""
        self.limits.on_malformed()
        self.transport.write(MALFORMED)
        self.transport.close()

    def _start_keep_alive(self) -> None:
        """As uvicorn does after an answer: the body of an early one has just ended."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

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
                    if self._should_upgrade():
                        self._become_websocket(data)
                        return
                    self._begin_body_without_upgrade()
        except httptools.HttpParserError:
            reason = "Invalid HTTP request received."
            self.logger.warning(reason)
            self.send_400_response(reason)

    def _should_upgrade(self) -> bool:
        path = self.url.partition(b"?")[0]
        is_right = self.scope.get("method") == "GET" and path.endswith(WEBSOCKET_PATH)
        return is_right and not self.pipeline and super()._should_upgrade()

    def _become_websocket(self, data: bytes) -> None:
        """The connection is another protocol's from now on, which is given the head once more, and what has
        come behind it."""
        self._stop_read_timer()
        self.connections.discard(self)
        assert self.ws_protocol_class is not None
        protocol: Any = self.ws_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.on_lost = self.on_lost
        protocol.connection_made(self._real_transport)
        self._real_transport.set_protocol(protocol)
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/1.1\r\n"]
        head += [part for name, value in self.headers for part in (name, b": ", value, b"\r\n")]
        protocol.data_received(b"".join([*head, b"\r\n", data]))

    def shutdown(self) -> None:
        self.app_state.get(END_STREAMS, lambda: None)()
        super().shutdown()

    def _begin_body_without_upgrade(self) -> None:
        """The parser takes what follows an upgrade for another protocol. A new parser is fed a head without
        upgrade, which tells it where the body ends."""
        callbacks = _BodyCallbacks(self)
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
            self._start_read_timer(self.limits.head_s, "head")

    def _discard_rest_of_body(self) -> None:
        """Of a body that was answered before its end: it is read, up to the limits, and thrown away."""
        self._is_body_wanted = False
        self._bytes_to_discard = self.limits.linger_bytes
        self._start_read_timer(self.limits.linger_s, "rest")

    def _start_write_timer(self) -> None:
        """Look again in answer_s seconds, whether the client has read as much as it should."""
        if self._write_timer is None:
            self._unsent_bytes = _unsent_bytes(self._real_transport)
            self._write_timer = self.loop.call_later(self.limits.answer_s, self._check_what_was_read)

    def _check_what_was_read(self) -> None:
        self._write_timer = None
        read = self._unsent_bytes - _unsent_bytes(self._real_transport)
        if read < self.limits.answer_s * MIN_BYTES_PER_S:
            if self.cycle is not None:
                self.cycle.scope[UNREAD] = True  # type: ignore[literal-required]
            self._cut("answer")
        else:
            self._start_write_timer()

    def _start_read_timer(self, seconds: float, reason: CutReason) -> None:
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(seconds, self._cut, reason)

    def _stop_read_timer(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
            self._read_timer = None

    def _cut(self, reason: CutReason) -> None:
        if not self._real_transport.is_closing():
            self.limits.on_cut(reason)
        self._real_transport.abort()


class _BodyCallbacks:
    """A protocol's callbacks for a parser whose head the protocol has seen already: those of the body."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.is_in_head = False

    def __getattr__(self, name: str) -> Any:
        callback = getattr(self._protocol, name)
        if name in ("on_body", "on_message_complete"):
            return callback
        return lambda *arguments: None if self.is_in_head else callback(*arguments)


def _unsent_bytes(transport: asyncio.Transport) -> int:
    """What the client has not taken yet: in the transport's buffer, and in the system's own, which holds
    megabytes and asks for more only once a good part of them is gone."""
    return transport.get_write_buffer_size() + unread_bytes(transport.get_extra_info("socket"))


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
