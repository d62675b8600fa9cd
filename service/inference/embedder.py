"""An upload in, its embedding out: the way of a request through decode threads, batcher and pooling.

    decode threads                       worker thread         event loop
    source ─► waveform ─► log-mel ─► windows ─ batcher ─► model ─► outputs ─► Pool ─► Embedding
              └── a share of SHARE windows at a time ──┘

A short clip is one window and one share. One that comes alone never leaves its decode thread, which runs the
model too: on an idle server that is the shortest way. A long one is decoded share by share, the next one
while the last is in the queue: an hour holds no more of the queue, and of the memory, than two shares, and
its windows take turns with everybody else's. One decode thread is always left for short clips: what takes
long (the shares of a long clip, large answers) has the others. All models share one batcher and one worker,
because they share the cores.
"""

import asyncio
import io
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from service.audio import AudioStream
from service.batcher import NEWEST, Batcher, Place
from service.crew import Crew
from service.errors import BadRequest, InternalError, Overloaded, ViolaError
from service.metrics import Metrics
from service.model import Model, Output
from service.picture import Drawing, Picture
from service.settings import Settings
from service.threads import ThreadPlan
from service.upload import Upload
from service.windows import Embedding, Piece, Pool, cut, embed_pieces

log = logging.getLogger(__name__)
T = TypeVar("T")

SHARE = 4  # windows decoded and queued at a time: 40 s of sound with the default model, about 0.1 s of work

# Clips that may wait for each decode thread. A short clip takes 0.3 ms, so that the last one waits 0.1 s.
MAX_WAITING_PER_THREAD = 256

# An encoded clip of more bytes takes long to decode: ten seconds of CD sound, two minutes of MP3.
LONG_BYTES = 2_000_000

# In one answer, as 220 MB of JSON or 80 MB of npy: an hour with one vector of 3072 per window of a second, or
# four minutes of frames. It bounds what a request may hold in memory.
MAX_NUMBERS = 20_000_000


@dataclass
class Timings:
    """Seconds per stage. In a batch those of its clips add up, so that they can exceed the clock's; read and
    encode are those of the request."""

    read: float = 0.0
    decode: float = 0.0
    logmel: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    encode: float = 0.0

    def server_timing(self) -> str:
        """The header Server-Timing: milliseconds, in the order of the way."""
        return ", ".join(f"{stage.name};dur={1000 * getattr(self, stage.name):.3f}" for stage in fields(self))


@dataclass(frozen=True)
class Ask:
    """What is wanted beside the clip's vector: one per frame, one per window of window_s every hop_s."""

    frames: bool = False
    window_s: float | None = None
    hop_s: float | None = None


@dataclass(frozen=True)
class Sound:
    """An embedded clip. duration_s: of the input."""

    embedding: Embedding
    duration_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """One window of one clip for the worker. frames: whether its frames are needed."""

    model: Model
    piece: Piece
    frames: bool


def cost_of(job: Job) -> int:
    """Log-mel frames computed for a job, padding included."""
    return job.model.padded_length(job.piece.logmel.shape[1])


def group_of(job: Job) -> tuple[int, int, bool]:
    """Jobs that can run as one batch without waste: same model, padded length and outputs of the graph."""
    return id(job.model), cost_of(job), job.frames or job.piece.window.is_trimmed


class Embedder:
    """Embeds uploads with any loaded model. `start` it in the event loop, `drain` it at the end."""

    def __init__(self, settings: Settings, plan: ThreadPlan, metrics: Metrics) -> None:
        self._metrics = metrics
        self._max_audio_s = settings.max_audio_s
        self._threads = Crew(plan.decode, name="viola-decode", on_drop=metrics.dropped.inc)
        self._turns_of_long_work = asyncio.Semaphore(max(1, plan.decode - 1))
        self._opening = 0
        self._drawing = 0  # clips too, but none that will come to the batcher
        self._usual_cost = 1.0  # of a clip: the mean of about the last ten
        self._max_opening = MAX_WAITING_PER_THREAD * plan.decode
        self.batcher: Batcher[Job, Output] = Batcher(
            self._run_batch,
            cost_of=cost_of,
            group_of=group_of,
            max_batch_cost=settings.max_batch_frames,
            max_batch_items=settings.max_batch_items,
            max_queue_cost=settings.max_queue_frames,
            max_queue_s=settings.max_queue_s,
            max_wait_s=settings.max_wait_ms / 1000,
            hold_s=settings.hold_ms / 1000,
            is_more_coming=lambda: self._opening > 0,
            on_wait=metrics.queue_wait.observe,
            on_drop=metrics.dropped.inc,
        )
        metrics.watch_queue(lambda: self.batcher.admitted_cost)

    def start(self) -> None:
        self._threads.start()
        self.batcher.start()

    async def drain(self) -> None:
        await self.batcher.drain()
        self._threads.close()

    async def embed(self, model: Model, upload: Upload, ask: Ask, timings: Timings) -> Sound:
        """One clip. Raises Overloaded, or the errors of audio.decode."""
        clip = _Clip(model, upload, ask, self._max_audio_s, _Budget(ask))
        try:
            share = await self._open(clip, is_lone=True)
            if clip.early_outputs is None:
                with self.batcher.admit(clip.cost(share)) as place:
                    await self._finish(clip, share, place)
                waited_s, ran_s = place.waited_s, place.ran_s
            else:
                await self._add(clip, share, clip.early_outputs)
                self.batcher.on_wait(0.0)
                waited_s, ran_s = 0.0, clip.ran_early_s
        finally:
            clip.stop_reading()
        self._note(waited_s, ran_s, [clip], timings)
        return await self._result(clip)

    async def embed_all(
        self, model: Model, uploads: Sequence[Upload], ask: Ask, timings: Timings
    ) -> list[Sound | ViolaError]:
        """Several clips, admitted as one request; for each its embedding or its error. Raises Overloaded, and
        BadRequest where their answers together would hold too much."""
        budget = _Budget(ask)
        clips = [_Clip(model, upload, ask, self._max_audio_s, budget) for upload in uploads]
        try:
            shares = await _all(_caught(self._open, clip) for clip in clips)
            budget.check()
            for share in shares:
                if isinstance(share, Overloaded):
                    raise share
            good = [
                (clip, share) for clip, share in zip(clips, shares, strict=True) if isinstance(share, list)
            ]
            with self.batcher.admit(sum(clip.cost(share) for clip, share in good)) as place:
                ends = await _all(_caught(self._finish, clip, share, place) for clip, share in good)
        finally:
            for clip in clips:
                clip.stop_reading()
        budget.check()
        self._note(place.waited_s, place.ran_s, [clip for clip, _ in good], timings)
        errors = {clip: end for (clip, _), end in zip(good, ends, strict=True) if isinstance(end, ViolaError)}
        errors |= {
            clip: share for clip, share in zip(clips, shares, strict=True) if isinstance(share, ViolaError)
        }
        return [errors[clip] if clip in errors else await self._result(clip) for clip in clips]

    async def draw(self, model: Model, upload: Upload, *, columns: int) -> tuple[Picture, float]:
        """The picture of a clip's log-mel, and its seconds; block after block, so that a long one takes turns
        with other clips. Raises Overloaded, or the errors of audio.decode."""
        stream = AudioStream(upload.source, sample_rate=model.card.sample_rate, max_audio_s=self._max_audio_s)
        blocks = iter(model.logmel_blocks(stream))
        drawing = Drawing(model.card.frontend.n_mels, columns=columns)

        def add_one() -> bool:
            block = next(blocks, None)
            if block is not None:
                drawing.add(block)
            return block is not None

        self._check_opening()
        self._drawing += 1
        try:
            while await self.in_thread(add_one, takes_long=True):
                pass
            return await self.in_thread(drawing.picture), stream.duration_s
        finally:
            self._drawing -= 1
            blocks = iter(())  # as `_Clip.stop_reading`

    async def in_thread(self, function: Callable[[], T], *, takes_long: bool = False) -> T:
        """The function's result, from a decode thread. A caller that is cancelled stays until a function that
        has begun has ended: it reads the caller's file."""
        if not takes_long:
            return await self._threads.run(function)
        async with self._turns_of_long_work:
            return await self._threads.run(function)

    def _check_opening(self) -> None:
        """Raises Overloaded when too many clips wait to be decoded, or for the model."""
        self.batcher.check_room(round((self._opening + 1) * self._usual_cost))
        if self._opening + self._drawing >= self._max_opening:
            raise Overloaded(
                "too many clips wait to be decoded, try again later",
                retry_after_s=self.batcher.retry_after_s(),
            )

    async def _open(self, clip: "_Clip", is_lone: bool = False) -> list[Job]:
        """The first share, which for most clips is all. Raises Overloaded when too many clips wait.

        Those that are being decoded will take room too: without counting them, an overloaded server would
        decode clip after clip only to refuse it.
        """
        self._check_opening()
        self._opening += 1
        try:
            first = partial(self._first_share, clip) if is_lone else clip.next_share
            share = await self.in_thread(first, takes_long=clip.is_long)
            self._usual_cost += NEWEST * (clip.cost(share) - self._usual_cost)
            return share
        finally:
            self._opening -= 1
            self.batcher.reconsider()

    def _first_share(self, clip: "_Clip") -> list[Job]:
        """In a decode thread: of a clip that is alone in its request. Where the request is alone too, its one
        window has been run when it ends."""
        share = clip.next_share()
        if clip.is_read and len(share) == 1 and self._opening == 1:
            started = time.perf_counter()
            clip.early_outputs = self.batcher.run_here(share)
            clip.ran_early_s = time.perf_counter() - started
        return share

    async def _finish(self, clip: "_Clip", share: list[Job], place: Place[Job, Output]) -> None:
        """Run share after share, decoding the next one meanwhile."""
        while share:
            following = None if clip.is_read else asyncio.ensure_future(self._next_share(clip))
            try:
                await self._add(clip, share, await place.run(share))
                share = await following if following else []
            finally:
                if following:
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                    following = None  # it leads to its error, whose traceback leads here

    async def _add(self, clip: "_Clip", share: list[Job], outputs: list[Output]) -> None:
        if clip.needs_frames:  # pooling thousands of frames takes milliseconds
            await self.in_thread(partial(clip.add, share, outputs), takes_long=clip.is_long)
        else:
            clip.add(share, outputs)

    async def _next_share(self, clip: "_Clip") -> list[Job]:
        return await self.in_thread(clip.next_share, takes_long=True)

    async def _result(self, clip: "_Clip") -> Sound:
        if not clip.needs_frames:
            return clip.result()
        return await self.in_thread(clip.result, takes_long=clip.is_long)

    def _run_batch(self, jobs: list[Job]) -> list[Output]:
        """In the worker thread: one group of jobs through its model."""
        model = jobs[0].model
        started = time.perf_counter()
        # Any: trimmed windows of a clip that asks for no frames share batches with those that do.
        frames = any(job.frames for job in jobs)
        outputs = embed_pieces(model.run, [job.piece for job in jobs], frames=frames)
        self._metrics.inference_duration.labels(model.card.name).observe(time.perf_counter() - started)
        self._metrics.batch_size.observe(len(jobs))
        sound = sum(job.piece.logmel.shape[1] for job in jobs)
        self._metrics.batch_fill_ratio.observe(sound / (len(jobs) * cost_of(jobs[0])))
        return outputs

    def _note(self, waited_s: float, ran_s: float, clips: "list[_Clip]", timings: Timings) -> None:
        """Stage times into the request's timings and the metrics."""
        timings.queue += waited_s
        timings.inference += ran_s
        for clip in clips:
            self._metrics.decode_duration.observe(clip.timings.decode)
            self._metrics.logmel_duration.observe(clip.timings.logmel)
            self._metrics.audio_seconds.inc(clip.duration_s)
            timings.decode += clip.timings.decode
            timings.logmel += clip.timings.logmel


class _Budget:
    """The numbers that an answer may hold; all clips of a request take from it, in several threads."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._left = float(MAX_NUMBERS)
        self._lock = threading.Lock()

    def take(self, numbers: float) -> None:
        """Raises BadRequest, as `check` does from then on."""
        with self._lock:
            self._left -= numbers
        self.check()

    def check(self) -> None:
        """Raises BadRequest where too much was taken."""
        if self._left >= 0:
            return
        ways = ["send less sound"]
        if self._ask.frames:
            ways.append("leave out frames")
        if self._ask.window_s:
            ways.append("take a longer hop_s")
        raise BadRequest(f"the answer would hold more than {MAX_NUMBERS} numbers; {' or '.join(ways)}")


class _Clip:
    """One upload on its way: decoded in shares by `next_share`, its outputs gathered by `add`.

    The two may run at the same time in two threads; neither runs twice at once.
    """

    def __init__(self, model: Model, upload: Upload, ask: Ask, max_audio_s: float, budget: _Budget) -> None:
        self.timings = Timings()
        self.early_outputs: list[Output] | None = None  # of the first and only share
        self.ran_early_s = 0.0
        self.is_read = False
        self.is_long = _n_bytes(upload) > LONG_BYTES
        self._model = model
        self._ask = ask
        self._budget = budget
        self._n_numbers = 0.0
        self._pool = Pool(model.card, frames=ask.frames, window_s=ask.window_s, hop_s=ask.hop_s)
        self._stream = AudioStream(upload.source, sample_rate=model.card.sample_rate, max_audio_s=max_audio_s)
        self._pieces = cut(model.logmel_blocks(_timed(self._stream, self.timings)), model.card.windows)

    @property
    def needs_frames(self) -> bool:
        return self._pool.needs_frames

    @property
    def duration_s(self) -> float:
        return self._stream.duration_s

    def next_share(self) -> list[Job]:
        """In a decode thread: the next SHARE windows, fewer at the end, none behind it."""
        started, decoded_before = time.perf_counter(), self.timings.decode
        share = [Job(self._model, piece, self.needs_frames) for piece in islice(self._pieces, SHARE)]
        self.is_read = len(share) < SHARE
        self._take_from_budget()
        self.timings.logmel += time.perf_counter() - started - (self.timings.decode - decoded_before)
        return share

    def cost(self, first_share: list[Job]) -> int:
        """The most that is in the queue at once, in log-mel frames: two shares of a long clip."""
        return sum(map(cost_of, first_share)) * (1 if self.is_read else 2)

    def stop_reading(self) -> None:
        """Close the decoder, which reads the caller's file; no thread is in `next_share` any more."""
        self._pieces = iter(())

    def add(self, share: list[Job], outputs: list[Output]) -> None:
        for job, output in zip(share, outputs, strict=True):
            self._pool.add(job.piece.window, output)

    def result(self) -> Sound:
        return Sound(self._pool.result(duration_s=self.duration_s), self.duration_s)

    def _take_from_budget(self) -> None:
        """What was read since the last time. Raises BadRequest as soon as the answer would hold too much."""
        card, ask = self._model.card, self._ask
        n_vectors = self.duration_s * 1000 / card.frame_period_ms if ask.frames else 0.0
        if ask.window_s:
            n_vectors += self.duration_s / (ask.hop_s or ask.window_s)
        taken, self._n_numbers = self._n_numbers, n_vectors * card.embedding_size
        self._budget.take(self._n_numbers - taken)


def _timed(blocks: Iterable[NDArray[np.float32]], timings: Timings) -> Iterator[NDArray[np.float32]]:
    """The blocks, while the time that each takes is added to timings.decode. It knows nothing of the clip
    that holds it, so that a clip which is not read to its end leaves no cycle."""
    started = time.perf_counter()
    for block in blocks:
        timings.decode += time.perf_counter() - started
        yield block
        started = time.perf_counter()
    timings.decode += time.perf_counter() - started


def _n_bytes(upload: Upload) -> int:
    """Of the encoded clip. A file is left at its end; its decoder goes back to the beginning."""
    return len(upload.source) if isinstance(upload.source, bytes) else upload.source.seek(0, io.SEEK_END)


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results. When this is cancelled they all are, and it ends after the last of them."""
    # Not a TaskGroup, which would leave its errors in cycles. With return_exceptions because without it the
    # first one that is cancelled would end the wait for the others.
    return cast(list[T], await asyncio.gather(*works, return_exceptions=True))


async def _caught(work: Callable[..., Awaitable[T]], *arguments: Any) -> T | ViolaError:
    """Its result, or its error as a value: one bad clip of a batch must not end the others."""
    try:
        return await work(*arguments)
    except ViolaError as error:
        return error
    except Exception:
        log.exception("a clip of a batch failed")
        return InternalError("the server failed on this file; its log tells why")
