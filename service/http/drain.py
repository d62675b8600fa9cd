"""A signal to end in, a server that shuts down without losing a request out.

    SIGTERM ──────────────── delay ───────────────► the port is closed, what was accepted is finished, exit 0
       not ready; every answer ends its connection,
       so that its client connects again, to another server

A second signal, or SIGINT (Ctrl-C), spares the delay.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from service.http.protocol import Protocol

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# How long a connection that was just accepted may be silent when the port is closed. Its request is on the
# way: half a second is a round trip to anywhere, and a lost packet sent again.
FIRST_REQUEST_S = 0.5


class DrainingProtocol(Protocol):
    """For uvicorn's `http`: a connection that was accepted before the port was closed stays open until its
    request has come."""

    def shutdown(self) -> None:
        if self.cycle is None:
            self.loop.call_later(FIRST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()


@contextlib.contextmanager
def draining(begin: Callable[[], None], *, delay_s: float) -> Iterator[None]:
    """From the first signal on `begin` has been called; the handlers that were there before, uvicorn's, are
    called `delay_s` seconds later. In the event loop's thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a test's server; signals belong to the main thread
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    has_begun = False

    def drain(number: int, frame: Any) -> None:
        nonlocal has_begun
        is_patient = number == signal.SIGTERM and not has_begun
        has_begun = True
        begin()
        handler = before[signal.Signals(number)]
        if not callable(handler):
            return
        if is_patient and delay_s:
            end = partial(handler, number, frame)
            loop.call_soon_threadsafe(loop.call_later, delay_s, end)  # it wakes the loop, too
        else:
            handler(number, frame)

    for number in SIGNALS:
        signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
