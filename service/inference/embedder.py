"""An encoded clip in, its embedding out: a request through decode threads, batcher and pooling.

    decode threads                       worker thread         event loop
    source ─► waveform ─► log-mel ─► windows ─ batcher ─► model ─► outputs ─► Pool ─► Embedding
              └── a chunk of windows at a time ──┘

A short clip is one window and one chunk. One that comes alone never leaves its decode thread, which runs the
model too: on an idle server that is the shortest way. A long one is decoded chunk by chunk, the next one
while the last is in the queue: an hour holds no more of the queue, and of the memory, than two chunks, and
its windows take turns with everybody else's. One decode thread is always left for short clips: what takes
long (the chunks of a long clip, large answers) has the others. All models share one batcher and one worker,
because they share the cores.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from service.errors import BadRequest, InternalError, Overloaded, ViolaError
from service.inference.batcher import EMA_WEIGHT, Admission, Batcher
from service.inference.card import Card
from service.inference.events import event_windows
from service.inference.model import Model, Output
from service.inference.projection import BLOCK_ROWS, Project
from service.inference.tags import Scorer, passages_of, tag_pool
from service.inference.thread_pool import ThreadPool
from service.inference.threads import ThreadPlan
from service.inference.windows import Embedding, Piece, Pool, cut, embed_pieces
from service.process.metrics import Metrics
from service.settings import Settings
from service.sound.audio import AudioStream, Source, size_of
from service.sound.level import Levels
from service.sound.picture import Drawing, Picture
from service.sound.waveform import Waveform

log = logging.getLogger(__name__)
T = TypeVar("T")

# Decoded and queued at a time: 40 s of sound with the default model, about 0.1 s of work.
CHUNK_WINDOWS = 4

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
        """The header Server-Timing: milliseconds, in the order of the stages."""
        return ", ".join([f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in vars(self).items()])


@dataclass(frozen=True)
class EmbedOptions:
    """What is wanted beside the clip's vector: one per frame, one per window of window_s every hop_s, a
    picture of the log-mel in at most logmel_columns columns.

    head_of: the head or heads whose scores are wanted for the windows, in place of their vectors; a long clip
    then has passages, too (tags.py). events: without window_s the windows are those that events are looked
    for in.
    normalize, dimensions: of which vectors (projection.py).
    levels: also how loud the clip is.
    tag_numbers: what the tags of a window may take in the answer, in numbers, where labels may be long.
    """

    frames: bool = False
    window_s: float | None = None
    hop_s: float | None = None
    logmel_columns: int | None = None
    head_of: Callable[[Model], Scorer] | None = None
    events: bool = False
    levels: bool = False
    normalize: bool | None = None
    dimensions: int | None = None
    tag_numbers: float = 0.0

    def check(self, model: Model) -> None:
        """Raises BadRequest or UnknownHead where the model lacks what is asked for."""
        self.check_vectors(model)
        if self.head_of:
            self.head_of(model)

    def check_vectors(self, model: Model) -> None:
        """Raises BadRequest where the model cannot make such vectors."""
        model.project_of(normalize=self.normalize, dimensions=self.dimensions)


@dataclass(frozen=True)
class EmbeddedClip:
    """An embedded clip. duration_s: of the input; projected: its vector, where a head has read the
    embedding's own and another is asked for."""

    embedding: Embedding
    duration_s: float
    picture: Picture | None = None
    levels: Levels | None = None
    projected: NDArray[np.float32] | None = None

    @property
    def vector(self) -> NDArray[np.float32]:
        """(N,), as it is asked for."""
        return self.embedding.vector if self.projected is None else self.projected


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
    """Embeds clips with any loaded model. `start` it in the event loop, `drain` it at the end."""

    def __init__(self, settings: Settings, plan: ThreadPlan, metrics: Metrics) -> None:
        self._metrics = metrics
        self._inference_duration = cache(metrics.inference_duration.labels)  # the look-up takes a lock
        self._max_audio_s = settings.max_audio_s
        self._threads = ThreadPool(plan.decode, name="viola-decode", on_drop=metrics.dropped.inc)
        self._long_work_slots = asyncio.Semaphore(max(1, plan.decode - 1))
        self._n_opening = 0  # clips whose first chunk is not decoded yet
        self._n_drawing = 0  # clips too, but none that will come to the batcher
        self._mean_cost = 1.0  # of a clip: the mean of about the last ten
        self._max_waiting = MAX_WAITING_PER_THREAD * plan.decode
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
            is_more_coming=lambda: self._n_opening > 0,
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

    async def embed(
        self, model: Model, source: Source, options: EmbedOptions, timings: Timings
    ) -> EmbeddedClip:
        """One clip. Raises Overloaded, or the errors of audio.decode."""
        clip = _Clip(model, source, options, self._max_audio_s, _AnswerBudget(options))
        try:
            chunk = await self._open(clip, is_lone=True)
            if clip.inline_outputs is None:
                with self.batcher.admit(clip.cost(chunk)) as admission:
                    await self._finish(clip, chunk, admission)
                waited_s, ran_s = admission.waited_s, admission.ran_s
            else:
                await self._add(clip, chunk, clip.inline_outputs)
                waited_s, ran_s = 0.0, clip.inline_s
        finally:
            clip.stop_reading()
        self._record(waited_s, ran_s, [clip], timings)
        return await self._result(clip)

    async def embed_all(
        self, model: Model, sources: Sequence[Source], options: EmbedOptions, timings: Timings
    ) -> list[EmbeddedClip | ViolaError]:
        """Several clips, admitted as one request; for each its embedding or its error. Raises Overloaded, and
        BadRequest where their answers together would hold too much."""
        budget = _AnswerBudget(options)
        clips = [_Clip(model, source, options, self._max_audio_s, budget) for source in sources]
        try:
            chunks = await _all(_caught(self._open, clip) for clip in clips)
            budget.check()
            for chunk in chunks:
                if isinstance(chunk, Overloaded):
                    raise chunk
            good = [
                (clip, chunk) for clip, chunk in zip(clips, chunks, strict=True) if isinstance(chunk, list)
            ]
            with self.batcher.admit(sum(clip.cost(chunk) for clip, chunk in good)) as admission:
                ends = await _all(_caught(self._finish, clip, chunk, admission) for clip, chunk in good)
        finally:
            for clip in clips:
                clip.stop_reading()
        budget.check()
        self._record(admission.waited_s, admission.ran_s, [clip for clip, _ in good], timings)
        errors = {clip: end for (clip, _), end in zip(good, ends, strict=True) if isinstance(end, ViolaError)}
        errors |= {
            clip: chunk for clip, chunk in zip(clips, chunks, strict=True) if isinstance(chunk, ViolaError)
        }
        return [errors[clip] if clip in errors else await self._result(clip) for clip in clips]

    async def draw(self, model: Model, source: Source, *, columns: int) -> tuple[Picture, float]:
        """The picture of a clip's log-mel, and its seconds; block after block, so that a long one takes turns
        with other clips. Raises Overloaded, BadRequest of `drawing_of`, or the errors of audio.decode."""
        drawing = drawing_of(model.card, columns=columns)
        stream = AudioStream(source, sample_rate=model.card.sample_rate, max_audio_s=self._max_audio_s)
        blocks = iter(model.logmel_blocks(stream))

        def add_one() -> bool:
            block = next(blocks, None)
            if block is not None:
                drawing.add(block)
            return block is not None

        self._check_opening()
        self._n_drawing += 1
        try:
            while await self.in_thread(add_one, takes_long=True):
                pass
            return await self.in_thread(drawing.picture), stream.duration_s
        finally:
            self._n_drawing -= 1
            blocks = iter(())  # as `_Clip.stop_reading`

    async def in_thread(self, function: Callable[[], T], *, takes_long: bool = False) -> T:
        """The function's result, from a decode thread. A caller that is cancelled stays until a function that
        has begun has ended: it reads the caller's file."""
        if not takes_long:
            return await self._threads.run(function)
        async with self._long_work_slots:
            return await self._threads.run(function)

    def _check_opening(self) -> None:
        """Raises Overloaded when too many clips wait to be decoded, or for the model."""
        self.batcher.check_room(round((self._n_opening + 1) * self._mean_cost))
        if self._n_opening + self._n_drawing >= self._max_waiting:
            raise Overloaded(
                "too many clips wait to be decoded, try again later",
                retry_after_s=self.batcher.retry_after_s(),
            )

    async def _open(self, clip: "_Clip", is_lone: bool = False) -> list[Job]:
        """The first chunk, which for most clips is all. Raises Overloaded when too many clips wait.

        Those that are being decoded will take room too: without counting them, an overloaded server would
        decode clip after clip only to refuse it.
        """
        self._check_opening()
        self._n_opening += 1
        try:
            first = partial(self._first_chunk, clip) if is_lone else clip.next_chunk
            chunk = await self.in_thread(first, takes_long=clip.is_long)
            self._mean_cost += EMA_WEIGHT * (clip.cost(chunk) - self._mean_cost)
            return chunk
        finally:
            self._n_opening -= 1
            self.batcher.reconsider()

    def _first_chunk(self, clip: "_Clip") -> list[Job]:
        """In a decode thread: of a clip that is alone in its request. Where the request is alone too, and the
        clip is one window, that is run here as well."""
        chunk = clip.next_chunk()
        if clip.is_read and len(chunk) == 1 and self._n_opening == 1:
            started = time.perf_counter()
            clip.inline_outputs = self.batcher.run_inline(chunk)
            clip.inline_s = time.perf_counter() - started
        return chunk

    async def _finish(self, clip: "_Clip", chunk: list[Job], admission: Admission[Job, Output]) -> None:
        """Run chunk after chunk, decoding the next one meanwhile."""
        while chunk:
            following = None if clip.is_read else asyncio.ensure_future(self._next_chunk(clip))
            try:
                await self._add(clip, chunk, await admission.run(chunk))
                chunk = await following if following else []
            finally:
                if following:
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                    following = None  # it leads to its error, whose traceback leads here

    async def _add(self, clip: "_Clip", chunk: list[Job], outputs: list[Output]) -> None:
        if clip.needs_frames:  # pooling thousands of frames takes milliseconds
            await self.in_thread(partial(clip.add, chunk, outputs), takes_long=clip.is_long)
        else:
            clip.add(chunk, outputs)

    async def _next_chunk(self, clip: "_Clip") -> list[Job]:
        return await self.in_thread(clip.next_chunk, takes_long=True)

    async def _result(self, clip: "_Clip") -> EmbeddedClip:
        if clip.needs_frames or clip.is_drawn or clip.is_projected:
            takes_long = clip.is_long or (clip.is_projected and clip.needs_frames)
            return await self.in_thread(clip.result, takes_long=takes_long)
        return clip.result()

    def _run_batch(self, jobs: list[Job]) -> list[Output]:
        """In the worker thread: one group of jobs through its model."""
        model = jobs[0].model
        started = time.perf_counter()
        # Any: trimmed windows of a clip that asks for no frames share batches with those that do.
        frames = any(job.frames for job in jobs)
        outputs = embed_pieces(model.run, [job.piece for job in jobs], frames=frames)
        self._inference_duration(model.card.name).observe(time.perf_counter() - started)
        self._metrics.batch_size.observe(len(jobs))
        sound = sum(job.piece.logmel.shape[1] for job in jobs)
        self._metrics.batch_fill_ratio.observe(sound / (len(jobs) * cost_of(jobs[0])))
        return outputs

    def _record(self, waited_s: float, ran_s: float, clips: "list[_Clip]", timings: Timings) -> None:
        """Stage times into the request's timings and the metrics."""
        timings.queue += waited_s
        timings.inference += ran_s
        for clip in clips:
            self._metrics.decode_duration.observe(clip.timings.decode)
            self._metrics.logmel_duration.observe(clip.timings.logmel)
            self._metrics.audio_seconds.inc(clip.duration_s)
            timings.decode += clip.timings.decode
            timings.logmel += clip.timings.logmel


class _AnswerBudget:
    """The numbers that an answer may hold; all clips of a request take from it, in several threads."""

    def __init__(self, options: EmbedOptions) -> None:
        self._options = options
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
        if self._options.frames:
            ways.append("leave out frames")
        if self._options.window_s:
            ways.append("take a longer hop_s")
        if self._options.logmel_columns:
            ways.append("take fewer logmel_columns")
        raise BadRequest(f"the answer would hold more than {MAX_NUMBERS} numbers; {' or '.join(ways)}")


class _Clip:
    """One clip on its way: decoded in chunks by `next_chunk`, its outputs gathered by `add`.

    The two may run at the same time in two threads; neither runs twice at once.
    """

    def __init__(
        self, model: Model, source: Source, options: EmbedOptions, max_audio_s: float, budget: _AnswerBudget
    ) -> None:
        self.timings = Timings()
        # Of the only chunk, where its decode thread has run it: outputs, and the seconds that took.
        self.inline_outputs: list[Output] | None = None
        self.inline_s = 0.0
        self.is_read = False
        self.is_long = size_of(source) > LONG_BYTES
        self._model = model
        self._options = options
        self._budget = budget
        self._n_numbers = 0.0
        self._head = options.head_of(model) if options.head_of else None
        self._project = model.project_of(normalize=options.normalize, dimensions=options.dimensions)
        self._pool: Pool | None = None  # what it must gather depends on the first chunk
        self._stream = AudioStream(source, sample_rate=model.card.sample_rate, max_audio_s=max_audio_s)
        samples = _timed(self._stream, self.timings)
        self._levels = Levels(model.card.sample_rate) if options.levels else None
        blocks = model.logmel_blocks(self._levels.listen(samples) if self._levels else samples)
        self._drawing: Drawing | None = None
        if options.logmel_columns:
            self._drawing = drawing_of(model.card, columns=options.logmel_columns)
            blocks = _drawn(blocks, self._drawing)
        self._pieces = cut(blocks, model.card.windows)

    @property
    def needs_frames(self) -> bool:
        """Once the first chunk is there."""
        assert self._pool is not None
        return self._pool.needs_frames

    @property
    def is_drawn(self) -> bool:
        return self._drawing is not None

    @property
    def is_projected(self) -> bool:
        return self._project is not None

    @property
    def duration_s(self) -> float:
        return self._stream.duration_s

    def next_chunk(self) -> list[Job]:
        """In a decode thread: the next CHUNK_WINDOWS windows, fewer at the end, none behind it."""
        started, decoded_before = time.perf_counter(), self.timings.decode
        pieces = list(islice(self._pieces, CHUNK_WINDOWS))
        self.is_read = len(pieces) < CHUNK_WINDOWS
        self._take_from_budget()
        if self._pool is None:
            self._pool = self._new_pool()
        needs_frames = self._pool.needs_frames
        chunk = [Job(self._model, piece, needs_frames) for piece in pieces]
        self.timings.logmel += time.perf_counter() - started - (self.timings.decode - decoded_before)
        return chunk

    def cost(self, first_chunk: list[Job]) -> int:
        """The most that is in the queue at once, in log-mel frames: two chunks of a long clip."""
        return sum(map(cost_of, first_chunk)) * (1 if self.is_read else 2)

    def stop_reading(self) -> None:
        """Close the decoder, which reads the caller's file; no thread is in `next_chunk` any more."""
        self._pieces = iter(())

    def add(self, chunk: list[Job], outputs: list[Output]) -> None:
        assert self._pool is not None
        for job, output in zip(chunk, outputs, strict=True):
            self._pool.add(job.piece.window, output)

    def result(self) -> EmbeddedClip:
        assert self._pool is not None
        picture = self._drawing.picture() if self._drawing else None
        embedding, projected = self._pool.result(duration_s=self.duration_s), None
        if self._project and self._head:
            projected = self._project(embedding.vector[None])[0]
        elif self._project:
            embedding = _projected(embedding, self._model.card, self._project)
        return EmbeddedClip(embedding, self.duration_s, picture, self._levels, projected)

    def _new_pool(self) -> Pool:
        card, options = self._model.card, self._options
        if self._head is None:
            return Pool(card, frames=options.frames, window_s=options.window_s, hop_s=options.hop_s)
        whole_s = self.duration_s if self.is_read else None
        windows = options.window_s, options.hop_s
        if options.events and not options.window_s:
            windows = event_windows(card)
        return tag_pool(card, self._head, whole_s=whole_s, window_s=windows[0], hop_s=windows[1])

    def _take_from_budget(self) -> None:
        """What was read since the last time. Raises BadRequest as soon as the answer would hold too much."""
        card, options = self._model.card, self._options
        n_vectors = self.duration_s * 1000 / card.frame_period_ms if options.frames else 0.0
        n_windows = self.duration_s / (options.hop_s or options.window_s) if options.window_s else 0.0
        n_numbers = (n_vectors + n_windows) * card.embedding_size + n_windows * options.tag_numbers
        if self._head is not None:  # of passages, and windows that are not in the answer, scores are held
            hops_s = [passages_of(card)[1]]
            if options.events and not options.window_s:
                hops_s.append(event_windows(card)[1])
            n_numbers += sum(self.duration_s / hop_s for hop_s in hops_s) * len(self._head.labels)
        n_numbers += (options.logmel_columns or 0) * card.frontend.n_rows
        taken, self._n_numbers = self._n_numbers, n_numbers
        self._budget.take(self._n_numbers - taken)


def _projected(embedding: Embedding, card: Card, project: Project) -> Embedding:
    """All its vectors. A window counts as a clip of its own, and so does a frame: where a clip's vector is
    its mean + its maximum, that of one frame is twice the frame."""
    frames = embedding.frames
    if frames is not None:
        if card.pooling == "mean+max":
            frames *= 2  # in place: nobody else reads them, and they may be 80 MB
        frames = project(frames)
    segments = []
    for start in range(0, len(embedding.segments), BLOCK_ROWS):
        some = embedding.segments[start : start + BLOCK_ROWS]
        rows = project(np.stack([segment.vector for segment in some]))
        segments += [replace(segment, vector=row) for segment, row in zip(some, rows, strict=True)]
    vector = project(embedding.vector[None])[0]
    return replace(embedding, vector=vector, frames=frames, segments=segments)


def drawing_of(card: Card, *, columns: int) -> Drawing:
    """An empty picture of a model's log-mel. Raises BadRequest for a model that has none."""
    if isinstance(card.frontend, Waveform):
        raise BadRequest(f"the model `{card.name}` takes samples, not a log-mel: there is no picture of it")
    return Drawing(card.frontend.n_mels, columns=columns)


def _timed(blocks: Iterable[NDArray[np.float32]], timings: Timings) -> Iterator[NDArray[np.float32]]:
    """The blocks, while the time that each takes is added to timings.decode. It knows nothing of the clip
    that holds it, so that a clip which is not read to its end leaves no cycle."""
    started = time.perf_counter()
    for block in blocks:
        timings.decode += time.perf_counter() - started
        yield block
        started = time.perf_counter()
    timings.decode += time.perf_counter() - started


def _drawn(blocks: Iterable[NDArray[np.float32]], drawing: Drawing) -> Iterator[NDArray[np.float32]]:
    """The blocks of a log-mel, each of which the picture gets too."""
    for block in blocks:
        drawing.add(block)
        yield block


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
