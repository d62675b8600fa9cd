"""A timeline's scores in, events out: from when to when a label is heard, by a hysteresis.

    score     0.1  0.4  0.6  0.4  0.2  0.4  0.7  0.1      begin 0.5, end 0.3
    heard              [       ]            [  ]           from a score of `begin` on to one below `end`
    bridged            [                       ]           over a gap of no more than gap_s

What lasts shorter than shortest_s, bridged or not, is dropped. Windows that overlap share their time evenly:

    window k     [               ]
    window k + 1         [               ]
    windows of     ──────|───────|──────    the border lies half-way between their centres
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.inference.card import Card
from service.inference.heads import Head

WINDOW_S = 1.0
BEGIN = 0.5  # where the head has no threshold of its own
END_SHARE = 0.6  # of `begin`: where an event ends
SHORTEST_S = 0.5
GAP_S = 1.0
ROUNDING_S = 1e-6  # of times that are computed in two ways


@dataclass(frozen=True)
class Hysteresis:
    """begin: (C,), the score that begins an event of each label; end: (C,), the score under which it ends."""

    begin: NDArray[np.float32]
    end: NDArray[np.float32]
    shortest_s: float = SHORTEST_S
    gap_s: float = GAP_S


@dataclass(frozen=True)
class Event:
    """A label is heard from start_s to end_s; score: its highest meanwhile."""

    label: str
    start_s: float
    end_s: float
    score: float


def hysteresis_of(
    head: Head,
    *,
    begin: float | None = None,
    end: float | None = None,
    shortest_s: float = SHORTEST_S,
    gap_s: float = GAP_S,
) -> Hysteresis:
    """begin: for all labels, by default the head's own thresholds, or BEGIN; end: never above it."""
    C = len(head.labels)
    begins = np.array(head.thresholds, dtype=np.float32) if head.thresholds else np.full(C, BEGIN, np.float32)
    if begin is not None:
        begins = np.full(C, begin, np.float32)
    ends = END_SHARE * begins if end is None else np.minimum(begins, np.float32(end))
    return Hysteresis(begins, ends, shortest_s, gap_s)


def event_windows(card: Card) -> tuple[float, float]:
    """(window_s, hop_s) of the timeline where none is asked for; not below the time of one frame."""
    window_s = max(WINDOW_S, card.frame_period_ms / 1000)
    return window_s, window_s / 2


def events_of(
    labels: tuple[str, ...],
    times_s: NDArray[np.float64],
    scores: NDArray[np.float32],
    hysteresis: Hysteresis,
) -> list[Event]:
    """times_s: (n, 2), the windows of a timeline in order; scores: (n, C). Events by start, then by label."""
    following = EventTracker(labels, hysteresis)
    events: list[Event] = []
    for (start_s, end_s), row in zip(own_times_s(times_s).tolist(), scores, strict=True):
        events += following.add(start_s, end_s, row)
    columns = {label: column for column, label in enumerate(labels)}
    return sorted(events + following.close(), key=lambda event: (event.start_s, columns[event.label]))


class EventTracker:
    """Windows in as they come, events out as soon as they are over."""

    def __init__(self, labels: tuple[str, ...], hysteresis: Hysteresis) -> None:
        self._labels = labels
        self._hysteresis = hysteresis
        self._is_on = np.zeros(len(labels), dtype=bool)
        self._open: dict[int, Event] = {}  # by column: heard now, or a gap ago that may yet be bridged

    def add(self, start_s: float, end_s: float, scores: NDArray[np.float32]) -> list[Event]:
        """A window's own time (`own_times_s`) and scores (C,) -> the events that are over, by their start."""
        limits = self._hysteresis
        self._is_on = scores >= np.where(self._is_on, limits.end, limits.begin)
        over = [self._open.pop(k) for k in [*self._open] if not self._may_go_on(self._open[k], start_s)]
        for column in np.flatnonzero(self._is_on).tolist():
            score = float(scores[column])
            if before := self._open.get(column):
                event = Event(before.label, before.start_s, end_s, max(before.score, score))
            else:
                event = Event(self._labels[column], start_s, end_s, score)
            self._open[column] = event
        # What the next window, which begins no earlier than this one ends, could not go on with is over, too.
        over += [
            self._open.pop(k)
            for k in [*self._open]
            if not self._is_on[k] and not self._may_go_on(self._open[k], end_s)
        ]
        return self._long_enough(over)

    def close(self, end_s: float | None = None) -> list[Event]:
        """The rest, once the clip has ended. end_s: where the last window then ends."""
        over = [
            event if end_s is None or not self._is_on[k] else replace(event, end_s=end_s)
            for k, event in self._open.items()
        ]
        self._open.clear()
        return self._long_enough(over)

    def _may_go_on(self, event: Event, next_s: float) -> bool:
        return next_s - event.end_s <= self._hysteresis.gap_s + ROUNDING_S

    def _long_enough(self, events: list[Event]) -> list[Event]:
        shortest_s = self._hysteresis.shortest_s - ROUNDING_S
        kept = [event for event in events if event.end_s - event.start_s >= shortest_s]
        return sorted(kept, key=lambda event: event.start_s)


def own_times_s(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) -> (n, 2): where windows overlap, each has the time that is nearest to its centre; a last one
    that the clip's end has cut counts as if it were whole."""
    own_s = times_s.copy()
    if len(times_s) > 1:
        overlap_s = max(0.0, times_s[0, 1] - times_s[1, 0])
        own_s[1:, 0] += overlap_s / 2
        own_s[:-1, 1] -= overlap_s / 2
    return own_s
