"""A request to go on as a WebSocket in, its messages out, in bounded memory: uvicorn's protocol with limits.

    the request     MAX_HEAD_BYTES, 128 headers                   431
    a message       MAX_MESSAGE_BYTES, in MAX_FRAGMENTS parts     close code 1009; what follows is discarded
                                                                  for LINGER_S
    after the end   ABORT_S, until the client has read it         cut
    shutdown        the application is told, and ends it itself, with close code 1001

uvicorn itself keeps any number of parts, waits for ever for a client that does not read, ends what is open at
once, and answers nothing to a request that is refused.

Whoever listens needs sound by the second and gets it by the tenth: it says how many bytes are worth waking it
for (`gather`), and the messages that come until then reach it as one.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11

from service.http.protocol import END_STREAMS, MAX_HEAD_BYTES

log = logging.getLogger(__name__)
log.setLevel(
    logging.WARNING
)  # uvicorn tells each address with its query; the middleware has a line of its own

GATHERING = "viola.gathering"  # in the scope of a WebSocket: its StreamSocket
MAX_MESSAGE_BYTES = 8_000_000  # a minute of 48 kHz in mono takes 5.8 million
MAX_FRAGMENTS = 1_000
LINGER_S = 5.0
ABORT_S = 12.0  # uvicorn waits 10 s for the client's own close

# Labels in a query take more than the library's 8 kB; the whole head is bounded before it comes here.
http11.MAX_LINE_LENGTH = MAX_HEAD_BYTES

# For uvicorn's Config. Sound hardly gets smaller by deflating; that a client is there its sound tells.
OPTIONS: dict[str, Any] = {
    "ws": "service.http.websocket:StreamSocket",
    "ws_max_size": MAX_MESSAGE_BYTES,
    "ws_per_message_deflate": False,
    "ws_ping_interval": None,
}


class StreamSocket(WebSocketsSansIOProtocol):
    """on_lost: called when the connection is; process/balancing.py counts by it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = log
        self.on_lost: Callable[[], None] = lambda: None
        self._abort_timer: asyncio.TimerHandle | None = None
        self._gathered = bytearray()
        self._n_wanted = 0
        self._came_at = 0.0  # the last of what is gathered

    def gather(self, n_bytes: int) -> None:
        """From now on binary messages wait until there are so many bytes, or anything else comes."""
        self._n_wanted = n_bytes
        if len(self._gathered) >= n_bytes:
            self.release()

    def release(self) -> float | None:
        """What is gathered is the next message. The seconds since the last bytes; None: there is none."""
        if not self._gathered:
            return None
        data = bytes(self._gathered)
        self._gathered.clear()
        self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        self._pause()
        return time.monotonic() - self._came_at

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # uvicorn leaves the answer to a head that is refused unsent.
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.release()
        self.on_lost()
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self.handshake_complete and not self.close_sent and not self.disconnected:
            self.app_state.get(END_STREAMS, super().shutdown)()
        else:
            super().shutdown()

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.scope[GATHERING] = self  # type: ignore[literal-required]

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self.frames = []
            self.conn.fail(1009, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" or self.close_sent or not self._n_wanted:
            self.release()
            super().send_receive_event_to_app()
            return
        for part in self.frames:
            self._gathered += part
        self.frames = []
        self._came_at = time.monotonic()
        if len(self._gathered) >= self._n_wanted:
            self.release()

    def handle_close(self, event: Any) -> None:
        self.release()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        """What the client goes on sending is thrown away until it has read why: were the connection closed at
        once, the kernel would meet those bytes with a reset, and the close code would be lost with it."""
        if self.close_sent:
            return
        close = self.conn.close_sent
        assert close is not None
        self.release()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def on_task_complete(self, task: "asyncio.Task[None]") -> None:
        super().on_task_complete(task)
        if not self.disconnected:
            self._abort_timer = self.loop.call_later(ABORT_S, self.transport.abort)

    def _pause(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()
