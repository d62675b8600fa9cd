"""Ctrl-C or SIGTERM in, the step in progress finished and its checkpoint written, then out.

    with until_interrupted() as asked:   # asked.signal: which one came, or None
        ... one step ...
        if asked.signal: save, then raise Interrupted

A second signal ends the run at once, as if nothing were caught.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Asked:
    """To stop: by which signal, or by none yet."""

    signal: int | None = None


class Interrupted(KeyboardInterrupt):
    """The run ended early by a signal; its checkpoint is written. str() says where it stands."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(sentence)
        self.signal = number


@contextmanager
def until_interrupted() -> Iterator[Asked]:
    """Signals can be caught in the main thread only: in another, what is yielded never asks."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: FrameType | None) -> None:
        asked.signal = number
        restore()

    before = {number: signal.signal(number, handle) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield asked
    finally:
        restore()
