"""Streams that ask to be listened to in; those that the server can keep up with out, and told when it ends.

A stream is admitted by what it will cost each second for as long as it lasts: all of them together take at
most SHARE of what the model has done lately. The rest is for requests.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

from service.errors import Overloaded
from service.inference.embedder import Embedder

EndReason = Literal["end", "client_left", "idle", "unread", "going_away", "error"]

# Lower than 1, so that those who are admitted keep their latency when clips are uploaded, too.
SHARE = 0.7
RETRY_AFTER_S = 10.0  # streams last long: sooner there is hardly ever room


class Streams:
    """Of one process. most: how many at a time."""

    def __init__(self, embedder: Embedder, *, most: int) -> None:
        self._batcher = embedder.batcher
        self._most = most
        self._cost_per_s = 0.0
        self._enders: set[Callable[[], None]] = set()
        self._is_going_away = False

    def __len__(self) -> int:
        return len(self._enders)

    @contextlib.contextmanager
    def admitted(self, cost_per_s: float, end: Callable[[], None]) -> Iterator[None]:
        """While the stream is listened to. cost_per_s: log-mel frames for each second of it; end: called when
        the server goes away. Raises Overloaded."""
        self._check_room(cost_per_s)
        self._enders.add(end)
        self._cost_per_s += cost_per_s
        try:
            yield
        finally:
            self._enders.discard(end)
            self._cost_per_s = self._cost_per_s - cost_per_s if self._enders else 0.0

    def refuse(self) -> None:
        """From now on none is admitted."""
        self._is_going_away = True

    def end_all(self) -> None:
        """The server goes away: every stream is told to end, and no other one is admitted."""
        self.refuse()
        for end in [*self._enders]:
            end()

    def _check_room(self, cost_per_s: float) -> None:
        if self._is_going_away:
            raise Overloaded("the server is shutting down", retry_after_s=1)
        possible = self._batcher.cost_per_s
        is_beyond = possible is not None and self._cost_per_s + cost_per_s > SHARE * possible
        if len(self) >= self._most or (is_beyond and self._enders):
            raise Overloaded(
                "the server listens to as many streams as it can keep up with, try again later",
                retry_after_s=RETRY_AFTER_S,
            )
