"""Sound without an end in, in pieces of bytes; the vector and the scores of each window out, as it ends.

    bytes ─► SoundStream ─► log-mel, each frame once ─► pieces ─► batcher ─► frames ─► Segments ─► LiveWindow
             └──────────────── a decode thread ───────────────┘   worker     └── a decode thread ──┘

Live equals upload: the windows are those that an upload of the same sound has with the same window_s and
hop_s, because frames and segments are the same (windows.py). Only where the sound is cut for the network
differs. An upload is cut into the longest windows; here nobody waits for more sound than a window needs:

    exact         segments     |               |               |
                  piece 0      [               c c]               a segment's frames, with `context` frames on
                  piece 1                  [c c               c c]  each side, so that each sees what it sees
                                                                  in the whole sound
    independent   the model's own windows side by side, each embedded once, as soon as it is full

Where a piece ends depends on the card, window_s and hop_s alone, never on how the bytes were cut into
messages. One piece of a stream is in the queue at a time, and no more bytes are taken until it is done: who
sends faster than real time waits, and takes turns with everybody else. While nobody else has anything to run,
the decode thread runs a piece itself: from bytes to a window in one turn.
"""

import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.inference.card import Card
from service.inference.embedder import Embedder, Job
from service.inference.heads import Head
from service.inference.model import Model, Output
from service.inference.windows import Piece, Segment, Segments, Window, frame_times_s
from service.sound.stream import SoundStream

Array = NDArray[np.float32]


@dataclass(frozen=True)
class LiveWindow:
    """vector: (D,) of the seconds [start_s, end_s) of the stream; scored: (C + 1,), of `score_and_know`, or
    None without a head."""

    start_s: float
    end_s: float
    vector: Array
    scored: Array | None


Deliver = Callable[[LiveWindow], Awaitable[None]]


class LiveSound:
    """One stream through one model; one call of `push` or `close` at a time."""

    def __init__(
        self,
        embedder: Embedder,
        model: Model,
        sound: SoundStream,
        *,
        window_s: float,
        hop_s: float,
        head: Head | None,
    ) -> None:
        self._embedder = embedder
        self._sound = sound
        run_inline = embedder.batcher.run_inline
        self._work = _Work(model, sound, run_inline, window_s=window_s, hop_s=hop_s, head=head)
        n_frames, _ = _usual_piece(model.card, hop_s)
        self._admission = embedder.batcher.admit_always(model.padded_length(n_frames))

    @property
    def duration_s(self) -> float:
        """The seconds of sound that were taken so far."""
        return self._sound.duration_s

    @property
    def missing_s(self) -> float:
        """Of sound, until the next piece is complete; never more than is missing."""
        return self._work.missing_s

    async def push(self, data: bytes, deliver: Deliver) -> None:
        """Delivers what these bytes complete. Raises AudioUnreadable, and what `deliver` raises."""
        await self._go(self._sound.push(data), deliver)

    async def close(self, deliver: Deliver) -> None:
        """Delivers the rest, once no more bytes come. Raises AudioUnreadable."""
        await self._go(self._sound.close(), deliver, is_last=True)

    def abandon(self) -> None:
        """Frees what the decoder holds; no step is running any more."""
        self._sound.abandon()

    async def _go(self, samples: Iterator[Array], deliver: Deliver, *, is_last: bool = False) -> None:
        """A piece at a time: decoded, run, pooled. Pooling shares a thread's turn with the next decoding, and
        with running where nobody else has something to run."""
        step: _Step | None = None
        while True:
            step = await self._embedder.in_thread(partial(self._work.step, step, samples, is_last=is_last))
            for window in step.windows:
                await deliver(window)
            if step.job is None:
                return
            with self._admission:
                (step.output,) = await self._admission.run([step.job])


@dataclass
class _Step:
    """windows: that were completed; job: the next piece, None where more sound is needed; output: of it."""

    windows: list[LiveWindow]
    job: Job | None
    output: Output | None = None


class _Work:
    """What happens in threads, one call at a time. `missing_s` is for in between."""

    def __init__(
        self,
        model: Model,
        sound: SoundStream,
        run_inline: Callable[[list[Job]], list[Output] | None],
        *,
        window_s: float,
        hop_s: float,
        head: Head | None,
    ) -> None:
        self._model = model
        self._sound = sound
        self._run_inline = run_inline
        self._head = head
        is_exact = model.card.windows.kind == "exact"
        self._cutter = (
            _ExactCutter(model.card, window_s, hop_s) if is_exact else _IndependentCutter(model.card)
        )
        self._logmel = model.logmel_stream()
        self._held = np.empty((model.card.frontend.n_rows, 0), dtype=np.float32)
        self._held_from = 0  # the number of its first frame
        self._n_samples = 0
        self._segments = Segments(model.card, window_s, hop_s)
        self._is_closed = self._is_done = False

    @property
    def missing_s(self) -> float:
        n_frames = self._cutter.stop - self._held_from - self._held.shape[1]
        return self._logmel.n_missing(n_frames) / self._model.card.sample_rate

    def step(self, before: _Step | None, samples: Iterator[Array], *, is_last: bool) -> _Step:
        """Pool what the step before has left to be run, then decode up to the next piece. One piece is run
        here, where nobody else waits."""
        windows: list[LiveWindow] = []
        if before is not None:
            assert before.job is not None
            assert before.output is not None
            windows += self._pooled(before.job, before.output)
        job = self._next_job(samples, is_last=is_last)
        outputs = None if job is None else self._run_inline([job])
        if job is not None and outputs is not None:
            windows += self._pooled(job, outputs[0])
            job = self._next_job(samples, is_last=is_last)
        if job is None and is_last:
            windows += self._rest()
        return _Step(windows, job)

    def _next_job(self, samples: Iterator[Array], *, is_last: bool) -> Job | None:
        piece = self._next_piece(samples)
        if piece is None and is_last:
            piece = self._last_piece()
        return None if piece is None else Job(self._model, piece, frames=True)

    def _next_piece(self, samples: Iterator[Array]) -> Piece | None:
        """Takes samples until a piece is complete; None where there are not enough."""
        while not self._is_closed:
            n_missing = self._cutter.stop - self._held_from - self._held.shape[1]
            if self._logmel.n_ready >= n_missing:
                if n_missing > 0:
                    self._hold(self._logmel.take(n_missing))
                return self._piece(self._cutter.advance())
            block = next(samples, None)
            if block is None:
                return None
            self._n_samples += len(block)
            self._logmel.add(block)
        return None

    def _last_piece(self) -> Piece | None:
        """What the end of the sound leaves, piece by piece: its last frames are complete only now."""
        if self._is_done or self._n_samples == 0:
            return None
        if not self._is_closed:
            self._is_closed = True
            for block in self._logmel.close():
                self._hold(block)
        n_frames = self._held_from + self._held.shape[1]
        if n_frames > self._cutter.stop:
            return self._piece(self._cutter.advance())
        self._is_done = True
        window = self._cutter.rest(n_frames)
        return None if window is None else self._piece(window)

    def _hold(self, block: Array) -> None:
        self._held = np.concatenate([self._held, block], axis=1)

    def _piece(self, window: Window) -> Piece:
        part = self._held[:, window.start - self._held_from : window.stop - self._held_from]
        piece = Piece(window, np.ascontiguousarray(part))
        n_done = self._cutter.start - self._held_from
        if n_done > 0:
            self._held = self._held[:, n_done:].copy()
            self._held_from += n_done
        return piece

    def _pooled(self, job: Job, output: Output) -> list[LiveWindow]:
        assert output.frames is not None
        window = job.piece.window
        times_s = frame_times_s(self._model.card, window, len(output.frames))
        self._segments.add(times_s, output.frames, known_to_s=self._cutter.known_to_s)
        if self._is_closed:  # where the last ones end, the end of the sound tells: `_rest`
            return []
        return list(map(self._live_window, self._segments.complete()))

    def _rest(self) -> list[LiveWindow]:
        if self._n_samples == 0:
            return []
        return list(map(self._live_window, self._segments.result(self._sound.duration_s)))

    def _live_window(self, segment: Segment) -> LiveWindow:
        vector = segment.vector
        scored = None if self._head is None else self._head.score_and_know(vector[None])[0]
        return LiveWindow(segment.start_s, segment.end_s, vector, scored)


class _ExactCutter:
    """Where the pieces lie, in log-mel frames: the next one from `start` to `stop`.

    They end where a segment ends, or where the model's longest window does. known_to_s: before it no segment
    gets another frame.
    """

    def __init__(self, card: Card, window_s: float, hop_s: float) -> None:
        self._card = card
        self._windows = card.windows
        self._window_s, self._hop_s = window_s, hop_s
        self._segment = 0  # the first whose frames are not all in a piece
        self._n_done = 0  # output frames
        self.start = 0
        self.known_to_s = -math.inf
        self._n_next = self._next_end()

    @property
    def stop(self) -> int:
        return (self._n_next + self._windows.context) * self._windows.stride + self._windows.reach

    def advance(self) -> Window:
        """The piece, whose log-mel is there; from now on `start` and `stop` are those of the next one."""
        context, stride = self._windows.context, self._windows.stride
        window = Window(self.start, self.stop, self._n_done - self.start // stride, context)
        self._n_done = self._n_next
        self.start = max(0, self._n_done - context) * stride
        self.known_to_s = min(self._centre_s(self._n_done), _end_s(self._card, window.stop))
        while self._segment_end_s <= self.known_to_s:
            self._segment += 1
        self._n_next = self._next_end()
        return window

    def rest(self, n_frames: int) -> Window | None:
        """The last piece of a sound of so many log-mel frames; None where no frame is left."""
        stride = self._windows.stride
        n_whole = (n_frames - self._windows.reach) // stride
        is_too_short = n_frames - self.start < self._windows.min_frames or n_whole <= self._n_done
        if self._n_done > 0 and is_too_short:
            return None
        return Window(self.start, n_frames, self._n_done - self.start // stride, 0)

    @property
    def _segment_end_s(self) -> float:
        return self._segment * self._hop_s + self._window_s

    def _next_end(self) -> int:
        """The number of output frames with which the next segment is complete, or as many as fit."""
        n, most = self._n_done + 1, self._n_done + _longest_advance(self._card)
        n = max(n, math.floor((self._segment_end_s - self._centre_s(0)) / _frame_s(self._card)))
        while n < most and not self._completes_segment(n):
            n += 1
        return min(n, most)

    def _completes_segment(self, n: int) -> bool:
        end_s = self._segment_end_s
        stop = (n + self._windows.context) * self._windows.stride + self._windows.reach
        return self._centre_s(n) >= end_s and _end_s(self._card, stop) >= end_s

    def _centre_s(self, frame: int) -> float:
        return float(frame_times_s(self._card, Window(0, self._windows.frames, frame), 1)[0])


class _IndependentCutter:
    """The same for the model's own windows, side by side."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self.start = 0
        self.known_to_s = -math.inf

    @property
    def stop(self) -> int:
        return self.start + self._card.windows.frames

    def advance(self) -> Window:
        window = Window(self.start, self.stop)
        self.start = window.stop
        self.known_to_s = _end_s(self._card, window.stop)
        return window

    def rest(self, n_frames: int) -> Window | None:
        if self.start > 0 and n_frames - self.start < self._card.windows.min_frames:
            return None
        return Window(self.start, n_frames)


def live_cost_per_s(model: Model, *, hop_s: float) -> float:
    """Log-mel frames, padding and context included, that a second of a stream costs."""
    n, seconds = _usual_piece(model.card, hop_s)
    return model.padded_length(n) / seconds


def _usual_piece(card: Card, hop_s: float) -> tuple[int, float]:
    """The log-mel frames of a piece, and how many seconds of the stream it does."""
    windows = card.windows
    if windows.kind == "independent":
        return windows.frames, _end_s(card, windows.frames)
    frame_s = _frame_s(card)
    n_new = min(max(1, round(hop_s / frame_s)), _longest_advance(card))
    return (n_new + 2 * windows.context) * windows.stride + windows.reach, n_new * frame_s


def _longest_advance(card: Card) -> int:
    """Output frames that a full window of an exact model has between its edges."""
    windows = card.windows
    return (windows.frames - windows.reach) // windows.stride - 2 * windows.context


def _frame_s(card: Card) -> float:
    return card.frame_period_ms / 1000


def _end_s(card: Card, n_frames: int) -> float:
    """Where so many log-mel frames end."""
    return n_frames * card.frontend.hop_length / card.sample_rate
