"""Log-mel frames of any length in, one embedding out: cut into windows, embed each, pool.

    log-mel      ····|····|····|····|····|····|····|····|··      `stride` input frames per output frame
    window 0     [ 0    1    2    3 ]                            the whole output of the first window but
    window 1               [ 2    3    4    5 ]                  `context` frames at each inner edge is kept:
    window 2                         [ 4    5    6    7   ]      here context is 1, so 0 1 2 | 3 4 | 5 6 7

The receptive field of an "exact" encoder is finite: an output frame further than `context` from an edge sees
what it sees in the whole clip. Window starts are multiples of `stride`, so the kept frames are those of the
whole clip, each once, and their sum, maximum and count are too. Every window but the last is full; the last
one ends with the clip, including the input frames that fill no output frame. Of VGGish, whose windows are a
whole number of examples, what is left may be too short for one (`min_frames`) and is dropped.

An encoder of patches that overlap says by how much (`reach`): a window ends with its last patch, and the next
one begins with the patch after that.

    patches      [ 0     ]                                       stride 2, reach 2
                     [ 1     ]
    window 0     [ 0 . 1 .   ]
    window 1             [ 2 . 3 .   ]

"independent" encoders (a fixed window, or layers after the pooling) embed windows of `frames` side by side;
the clip's vector is their mean, weighted by their length. A last window shorter than `min_frames` is
dropped, unless it is the only one.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.inference.card import Card, Windows
from service.inference.model import Output

Array = NDArray[np.float32]

TIME_DIGITS = 9  # of a frame's centre in seconds


@dataclass(frozen=True)
class Window:
    """Input frames [start, stop) of a clip; of its output frames, so many are dropped at each edge."""

    start: int
    stop: int
    drop_first: int = 0
    drop_last: int = 0

    @property
    def is_trimmed(self) -> bool:
        """Its inner frames must be pooled here: the graph's own sum and maximum include the edges."""
        return self.drop_first > 0 or self.drop_last > 0


@dataclass(frozen=True)
class Piece:
    """What the model is given. logmel: (n_mels, window.stop - window.start) float32, contiguous."""

    window: Window
    logmel: Array


@dataclass(frozen=True)
class Segment:
    """One vector (D,), or what the pool's `of_segment` makes of it, for the seconds [start_s, end_s) of a
    clip."""

    start_s: float
    end_s: float
    vector: Array


@dataclass(frozen=True)
class Embedding:
    """vector: (D,) float32. If asked for: frames (n, D) with the times of their centres times_s (n,), one
    vector per segment, and one per passage, which is a segment of another length."""

    vector: Array
    frames: Array | None = None
    times_s: NDArray[np.float64] | None = None
    segments: list[Segment] = field(default_factory=list)
    passages: list[Segment] = field(default_factory=list)


OfSegment = Callable[[Array], Array]
Run = Callable[..., list[Output]]  # Model.run: (log-mels, *, frames: bool) -> outputs


def split(n_frames: int, windows: Windows) -> list[Window]:
    """The windows of a clip of `n_frames` log-mel frames, in order."""
    cutter = _Cutter(windows)
    return [*cutter.complete(n_frames), *cutter.rest(n_frames)]


def cut(logmels: Iterable[Array], windows: Windows) -> Iterator[Piece]:
    """Blocks (n_mels, any) of one clip's log-mel -> its pieces, while no more than a window is held."""
    cutter = _Cutter(windows)
    held: list[Array] = []
    held_from = n_frames = 0
    for block in logmels:
        held.append(block)
        n_frames += block.shape[1]
        for window in cutter.complete(n_frames):
            joined = _joined(held)
            yield _piece(window, joined, held_from)
            held, held_from = [joined[:, cutter.start - held_from :]], cutter.start
    for window in cutter.rest(n_frames):
        yield _piece(window, _joined(held), held_from)


def embed_pieces(run: Run, pieces: Sequence[Piece], *, frames: bool = False) -> list[Output]:
    """One batch through the model: for each piece the output over the frames that it keeps.

    The frames themselves are in the outputs only if asked for, so that hours of sound do not pile up.
    """
    outputs = run(
        [piece.logmel for piece in pieces], frames=frames or any(p.window.is_trimmed for p in pieces)
    )
    return [_kept(output, piece.window, frames) for piece, output in zip(pieces, outputs, strict=True)]


def embed(
    run: Run,
    card: Card,
    logmels: Iterable[Array],
    *,
    frames: bool = False,
    window_s: float | None = None,
    hop_s: float | None = None,
) -> Embedding:
    """A clip's log-mel, in blocks (n_mels, any) or as one -> its embedding, window after window."""
    pool = Pool(card, frames=frames, window_s=window_s, hop_s=hop_s)
    for piece in cut(logmels, card.windows):
        pool.add(piece.window, embed_pieces(run, [piece], frames=pool.needs_frames)[0])
    return pool.result()


class Pool:
    """Gathers the outputs of one clip's windows (from `embed_pieces`) into its embedding.

    frames: keep every output frame; window_s, hop_s: one vector per `window_s` seconds, every `hop_s`
    (default: window_s). Either needs outputs with frames, added in order; without them the order is free.
    passages: (window_s, hop_s) of segments beside those. of_segment: (D,) -> what is kept of the vector of
    either, as soon as it is complete (default: all of it).
    """

    def __init__(
        self,
        card: Card,
        *,
        frames: bool = False,
        window_s: float | None = None,
        hop_s: float | None = None,
        passages: tuple[float, float] | None = None,
        of_segment: OfSegment | None = None,
    ) -> None:
        self._card = card
        self._keeps_frames = frames
        self._segments = Segments(card, window_s, hop_s or window_s, of_segment) if window_s else None
        self._passages = Segments(card, *passages, of_segment) if passages else None
        self._frames: list[Array] = []
        self._times_s: list[NDArray[np.float64]] = []
        self._total = _Total()
        # Of independent windows: the weighted sum of their vectors.
        self._vectors: NDArray[np.float64] | float = 0.0
        self._weight = 0
        self._stop = 0

    @property
    def needs_frames(self) -> bool:
        return self._keeps_frames or self._segments is not None or self._passages is not None

    def add(self, window: Window, output: Output) -> None:
        self._stop = max(self._stop, window.stop)
        if self._card.windows.kind == "exact":
            self._total.add(output)
        else:
            weight = window.stop - window.start
            self._vectors = self._vectors + weight * _vector(self._card, output).astype(np.float64)
            self._weight += weight
        if self.needs_frames:
            self._add_frames(window, output)

    def _add_frames(self, window: Window, output: Output) -> None:
        assert output.frames is not None, "outputs must come from embed_pieces(..., frames=True)"
        times_s = frame_times_s(self._card, window, len(output.frames))
        if self._keeps_frames:
            self._frames.append(output.frames)
            self._times_s.append(times_s)
        for segments in (self._segments, self._passages):
            if segments:
                segments.add(times_s, output.frames)

    def result(self, *, duration_s: float | None = None) -> Embedding:
        """The clip's embedding. `duration_s`: where its last segment ends (default: by its log-mel)."""
        if duration_s is None:
            duration_s = self._stop * self._card.frontend.hop_length / self._card.sample_rate
        return Embedding(
            vector=self._vector(),
            frames=np.concatenate(self._frames) if self._keeps_frames else None,
            times_s=np.concatenate(self._times_s) if self._keeps_frames else None,
            segments=self._segments.result(duration_s) if self._segments else [],
            passages=self._passages.result(duration_s) if self._passages else [],
        )

    def _vector(self) -> Array:
        if self._card.windows.kind == "exact":
            return _vector(self._card, self._total.output())
        return np.asarray(self._vectors / self._weight, dtype=np.float32)


def frame_times_s(card: Card, window: Window, n: int) -> NDArray[np.float64]:
    """(n,): the centres of the frames that a window keeps, in the seconds of its clip."""
    start_ms = window.start * card.frontend.hop_length * 1000 / card.sample_rate
    indices = window.drop_first + np.arange(n)
    first_ms = start_ms + card.first_frame_centre_ms
    if card.windows.kind == "independent":  # a frame may stand for all of a window, however short
        window_ms = (window.stop - window.start) * card.frontend.hop_length * 1000 / card.sample_rate
        first_ms -= max(0.0, card.frame_period_ms - window_ms) / 2
    # Rounded, so that a frame on a segment's border is on the same side of it however the clip was cut.
    return np.round((first_ms + card.frame_period_ms * indices) / 1000, TIME_DIGITS)


def segment_times_s(
    duration_s: float, window_s: float, hop_s: float, *, first: int = 0
) -> list[tuple[float, float]]:
    """Where segments begin and end: every hop_s, until one reaches the clip's end and ends there. first: the
    number of the first one that is wanted."""
    n = 1 + max(0, math.ceil((duration_s - window_s) / hop_s - 1e-9))
    starts = (k * hop_s for k in range(first, n))
    # With hop_s > window_s, the last start may lie in the gap behind the clip.
    return [
        (start, min(start + window_s, duration_s)) for start in starts if start < duration_s or start == 0
    ]


class _Cutter:
    """Where the windows lie, as the length of the clip becomes known."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self.start = 0
        if windows.kind == "exact":
            kept = (windows.frames - windows.reach) // windows.stride * windows.stride
            self._length = kept + windows.reach
            self._hop = kept - 2 * windows.context * windows.stride
        else:
            self._length = self._hop = windows.frames

    def complete(self, n_frames: int) -> Iterator[Window]:
        """The windows that are sure not to be the last, because the clip goes on behind them."""
        while n_frames > self.start + self._length:
            window = self._window(self.start + self._length, is_last=False)
            self.start += self._hop
            yield window

    def rest(self, n_frames: int) -> Iterator[Window]:
        """The last one, once the clip has ended."""
        if self.start > 0 and n_frames - self.start < self._windows.min_frames:
            return
        yield self._window(n_frames, is_last=True)

    def _window(self, stop: int, *, is_last: bool) -> Window:
        if self._windows.kind == "independent":
            return Window(self.start, stop)
        context = self._windows.context
        return Window(self.start, stop, context if self.start else 0, 0 if is_last else context)


class _Total:
    """Sum, maximum and number of frames (n, D), added bit by bit, in float64: an hour is 90 000 frames."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, output: Output) -> None:
        if self.count == 0:  # most clips end here
            self._sum, self._max = output.sum, output.max
        else:
            self._sum = np.add(self._sum, output.sum, dtype=np.float64)
            self._max = np.maximum(self._max, output.max)
        self.count += output.count

    def output(self) -> Output:
        return Output(self._sum, self._max, self.count)


class Segments:
    """Pools the frames whose centre lies in [k * hop_s, k * hop_s + window_s), for k = 0, 1, …

    A segment without a frame centre takes the frame before it, so that each has a vector.
    """

    def __init__(
        self, card: Card, window_s: float, hop_s: float, of_segment: OfSegment | None = None
    ) -> None:
        self._card = card
        self._window_s = window_s
        self._hop_s = hop_s
        self._of_segment = of_segment
        self._open: dict[int, _Total] = {}
        self._vectors: dict[int, Array] = {}
        self._next = 0
        self._n_taken = 0
        self._before: Array | None = None

    def add(self, times_s: NDArray[np.float64], frames: Array, *, known_to_s: float = -math.inf) -> None:
        """Frames (n, D) with ascending centres times_s (n,), none of them before those added earlier.

        known_to_s: the clip lasts at least so long, and no frame that follows has its centre before.
        """
        if len(frames) == 0:
            return
        if self._before is None:
            self._before = frames[0]
        while self._next * self._hop_s <= times_s[-1]:
            self._open[self._next] = _Total()
            self._next += 1
        for k, total in list(self._open.items()):
            end_s = k * self._hop_s + self._window_s
            first, last = np.searchsorted(times_s, [k * self._hop_s, end_s])
            if last > first:
                total.add(_output(frames[first:last]))
            if last < len(frames) or end_s <= known_to_s:  # no frame of it is missing
                self._close(k, frames[last - 1] if last else self._before)
        self._before = frames[-1]

    def _close(self, k: int, before: Array) -> None:
        total = self._open.pop(k)
        output = total.output() if total.count else _output(before[None])
        vector = _vector(self._card, output)
        self._vectors[k] = self._of_segment(vector) if self._of_segment else vector

    def complete(self) -> list[Segment]:
        """Those that are complete and were not taken before, in order; to be asked while the clip goes on."""
        taken = []
        while self._n_taken in self._vectors:
            start_s = self._n_taken * self._hop_s
            taken.append(Segment(start_s, start_s + self._window_s, self._vectors.pop(self._n_taken)))
            self._n_taken += 1
        return taken

    def result(self, duration_s: float) -> list[Segment]:
        """All that were not taken, once the clip has ended."""
        assert self._before is not None, "a clip has at least one frame"
        times_s = segment_times_s(duration_s, self._window_s, self._hop_s, first=self._n_taken)
        for k in range(self._next, self._n_taken + len(times_s)):
            self._open[k] = _Total()
        for k in list(self._open):
            self._close(k, self._before)
        return [
            Segment(start, end, self._vectors[k]) for k, (start, end) in enumerate(times_s, self._n_taken)
        ]


def _joined(blocks: list[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


def _piece(window: Window, logmel: Array, held_from: int) -> Piece:
    part = logmel[:, window.start - held_from : window.stop - held_from]
    return Piece(window, np.ascontiguousarray(part))


def _kept(output: Output, window: Window, frames: bool) -> Output:
    """The output over the frames that the window keeps."""
    if not window.is_trimmed:
        return output if frames else Output(output.sum, output.max, output.count)
    assert output.frames is not None
    kept = output.frames[window.drop_first : output.count - window.drop_last]
    return _output(kept, keep=frames)


def _output(frames: Array, *, keep: bool = False) -> Output:
    return Output(frames.sum(axis=0), frames.max(axis=0), len(frames), frames if keep else None)


def _vector(card: Card, output: Output) -> Array:
    """The vector (D,) of some frames: their mean, or mean + maximum."""
    mean = (output.sum / output.count).astype(np.float32)
    return mean + output.max if card.pooling == "mean+max" else mean
