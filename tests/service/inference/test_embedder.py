"""The way of a clip through decode threads, batcher and pooling, without HTTP."""

import asyncio
import contextlib
import gc
import io
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import pytest
import soundfile

from service.errors import AudioUnreadable, BadRequest, Overloaded, ViolaError
from service.inference import embedder as embedder_module
from service.inference import windows
from service.inference.embedder import EmbeddedClip, Embedder, EmbedOptions, Timings
from service.inference.model import Model
from service.inference.threads import plan
from service.process.metrics import Metrics
from service.settings import Settings
from service.sound.audio import Source

WINDOW = 200  # log-mel frames, 2 s: the toy's longest


def flac(seconds: float, seed: int = 0) -> bytes:
    samples = np.random.default_rng(seed).normal(scale=0.1, size=round(16_000 * seconds))
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="FLAC")
    return file.getvalue()


def with_embedder(story: Callable[[Embedder], Awaitable[None]], **settings: Any) -> Metrics:
    """Tell `story` with a running embedder, and drain it."""
    chosen, metrics = Settings(threads=2, **settings), Metrics()

    async def tell() -> None:
        embedder = Embedder(chosen, plan(chosen), metrics)
        embedder.start()
        await story(embedder)
        await embedder.drain()
        assert embedder.batcher.admitted_cost == 0

    asyncio.run(tell())
    return metrics


def embed(embedder: Embedder, model: Model, clip: Source, *, as_batch: bool = False) -> Awaitable[object]:
    """By itself, or as the one clip of a batch."""
    if as_batch:
        return embedder.embed_all(model, [clip], EmbedOptions(), Timings())
    return embedder.embed(model, clip, EmbedOptions(), Timings())


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.0, 7.9, 8.1, 30.0])
@pytest.mark.parametrize(
    "options",
    [EmbedOptions(), EmbedOptions(frames=True), EmbedOptions(window_s=1.0, hop_s=0.5)],
    ids=["clip", "frames", "windows"],
)
def test_chunks_through_the_batcher_give_what_one_window_after_the_other_gives(
    seconds: float, options: EmbedOptions, toy_model: Model
) -> None:
    content = flac(seconds)

    async def story(embedder: Embedder) -> None:
        sound = await embedder.embed(toy_model, content, options, Timings())
        samples = soundfile.read(io.BytesIO(content), dtype="float32")[0]
        expected = windows.embed(
            toy_model.run,
            toy_model.card,
            [toy_model.logmel(samples)],
            frames=options.frames,
            window_s=options.window_s,
            hop_s=options.hop_s,
        )
        assert sound.duration_s == seconds
        np.testing.assert_allclose(sound.embedding.vector, expected.vector, rtol=1e-5, atol=1e-5)
        if expected.frames is not None and expected.times_s is not None:
            np.testing.assert_allclose(sound.embedding.frames, expected.frames, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(sound.embedding.times_s, expected.times_s)
        if options.window_s and options.hop_s:
            times_s = windows.segment_times_s(seconds, options.window_s, options.hop_s)
            assert [(each.start_s, each.end_s) for each in sound.embedding.segments] == times_s
        # embed does not know the duration: the frame centred on the clip's end may give it one segment more.
        for segment, same in zip(sound.embedding.segments, expected.segments, strict=False):
            np.testing.assert_allclose(segment.vector, same.vector, rtol=1e-5, atol=1e-5)

    with_embedder(story)


def test_a_long_clip_holds_two_chunks_of_the_queue_and_a_short_one_what_it_is(toy_model: Model) -> None:
    async def story(embedder: Embedder) -> None:
        costs: list[int] = []
        admit = embedder.batcher.admit

        def note(cost: int) -> Any:
            costs.append(cost)
            return admit(cost)

        embedder.batcher.admit = note
        await embedder.embed_all(toy_model, [flac(1.0)], EmbedOptions(), Timings())
        assert costs == [104]  # 101 frames, padded
        costs.clear()
        await embedder.embed(toy_model, flac(60.0), EmbedOptions(), Timings())
        assert costs == [2 * embedder_module.CHUNK_WINDOWS * WINDOW]

    with_embedder(story)


def test_a_clip_that_will_find_no_room_is_refused_before_it_is_decoded(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, decoded = threading.Event(), []

    def wait_and_read(clip: Any) -> Any:
        gate.wait(5)
        decoded.append(clip)
        return next_chunk(clip)

    next_chunk = embedder_module._Clip.next_chunk
    monkeypatch.setattr(embedder_module._Clip, "next_chunk", wait_and_read)

    async def story(embedder: Embedder) -> None:
        def one() -> "asyncio.Task[Any]":
            return asyncio.ensure_future(embedder.embed(toy_model, flac(1.0), EmbedOptions(), Timings()))

        gate.set()
        for _ in range(40):  # 104 frames each: that is what it will expect of a clip
            await one()
        gate.clear()
        decoded.clear()
        with embedder.batcher.admit(104):
            there = [one(), one()]
            await asyncio.sleep(0.01)
            with pytest.raises(Overloaded):  # 104 are admitted, and two times 104 on their way to 350
                await one()
            assert decoded == []
            gate.set()
            await asyncio.gather(*there)

    with_embedder(story, max_queue_frames=350)


def test_a_clip_that_breaks_off_late_fails_and_leaves_nothing_in_the_queue(toy_model: Model) -> None:
    content = flac(60.0)

    async def story(embedder: Embedder) -> None:
        with pytest.raises(AudioUnreadable):
            await embedder.embed(toy_model, content[: len(content) * 2 // 3], EmbedOptions(), Timings())

    with_embedder(story)


def test_a_clip_of_a_batch_that_breaks_off_late_fails_alone(toy_model: Model) -> None:
    long, short = flac(60.0), flac(0.5)

    async def story(embedder: Embedder) -> None:
        clips = [short, long[: len(long) * 2 // 3], b"text", long]
        results = await embedder.embed_all(toy_model, clips, EmbedOptions(), Timings())
        assert [isinstance(each, ViolaError) for each in results] == [False, True, True, False]

    with_embedder(story)


async def n_refused(works: Iterable[Awaitable[object]]) -> int:
    """How many of those that begin at the same time are refused as too many."""
    answers = await asyncio.gather(*works, return_exceptions=True)
    return sum(isinstance(each, Overloaded) for each in answers)


def test_too_many_clips_that_wait_to_be_decoded_are_refused(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "MAX_WAITING_PER_THREAD", 2)
    clips = [flac(0.2) for _ in range(9)]

    async def story(embedder: Embedder) -> None:
        # Two threads, and two clips may wait for each.
        assert await n_refused(embed(embedder, toy_model, clip) for clip in clips) == 5

    with_embedder(story)


def test_an_answer_that_would_be_too_large_is_refused_early(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "MAX_NUMBERS", 16 * 100)

    async def story(embedder: Embedder) -> None:
        for options in (EmbedOptions(frames=True), EmbedOptions(window_s=1.0, hop_s=0.02)):
            with pytest.raises(BadRequest, match="more than 1600 numbers"):
                await embedder.embed(toy_model, flac(5.0), options, Timings())
            await embedder.embed(toy_model, flac(1.0), options, Timings())

    with_embedder(story)


def test_a_picture_counts_in_the_size_of_the_answer(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_mels = toy_model.card.frontend.n_mels
    monkeypatch.setattr(embedder_module, "MAX_NUMBERS", 100 * n_mels)

    async def story(embedder: Embedder) -> None:
        await embedder.embed(toy_model, flac(5.0), EmbedOptions(logmel_columns=100), Timings())
        with pytest.raises(BadRequest, match="fewer logmel_columns"):
            await embedder.embed(toy_model, flac(5.0), EmbedOptions(logmel_columns=101), Timings())

    with_embedder(story)


@pytest.mark.parametrize("seconds", [0.3, 30.0])
def test_the_picture_beside_an_embedding_is_the_one_drawn_alone(seconds: float, toy_model: Model) -> None:
    content = flac(seconds)

    async def story(embedder: Embedder) -> None:
        options = EmbedOptions(window_s=1.0, logmel_columns=200)
        both = await embedder.embed(toy_model, content, options, Timings())
        alone, _ = await embedder.draw(toy_model, content, columns=200)
        assert both.picture
        np.testing.assert_array_equal(both.picture.pixels, alone.pixels)
        assert (both.picture.low, both.picture.high) == (alone.low, alone.high)

    with_embedder(story)


def test_the_clips_of_a_batch_share_one_limit_of_the_answer(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "MAX_NUMBERS", 16 * 25 * 3)  # three seconds of frames
    short, long = flac(1.0), flac(20.0)

    async def story(embedder: Embedder) -> None:
        fits = await embedder.embed_all(toy_model, [short] * 3, EmbedOptions(frames=True), Timings())
        assert not any(isinstance(each, ViolaError) for each in fits)
        for clips in ([short] * 4, [short, long]):
            with pytest.raises(BadRequest, match=r"send less sound or leave out frames$"):
                await embedder.embed_all(toy_model, clips, EmbedOptions(frames=True), Timings())
        await embedder.embed_all(toy_model, [long] * 2, EmbedOptions(), Timings())

    with_embedder(story)


def test_a_batch_of_mixed_lengths_is_run_length_by_length(toy_model: Model) -> None:
    clips = [flac(0.5 + i % 2) for i in range(32)]

    async def story(embedder: Embedder) -> None:
        await embedder.embed_all(toy_model, clips, EmbedOptions(), Timings())

    page = with_embedder(story).page().decode()
    assert "viola_batch_size_sum 32.0" in page
    # 16 of 56 frames are within a quarter of the 4096 that a batch may hold; of 160 frames 6, 6 and 4 are.
    assert "viola_batch_size_count 4.0" in page
    assert "viola_queue_wait_seconds_count 32.0" in page


@pytest.mark.parametrize("seconds", [1.0, 20.0])
@pytest.mark.parametrize("as_batch", [False, True])
def test_a_caller_who_leaves_stays_until_nobody_reads_its_file(
    seconds: float,
    as_batch: bool,
    toy_model: Model,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story(embedder: Embedder) -> None:
        for delay_s in (0.0, 0.002, 0.01):
            with SlowFile(flac(seconds)) as file:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await embed(embedder, toy_model, file, as_batch=as_batch)
                assert not file.is_read

    with_embedder(story)
    gc.collect()
    assert "closed file" not in capfd.readouterr().err
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("as_batch", [False, True])
@pytest.mark.parametrize("end", ["no sound", "breaks off late", "cancelled"])
def test_a_clip_that_comes_to_nothing_leaves_nothing_for_the_garbage_collector(
    end: str, as_batch: bool, toy_model: Model
) -> None:
    long = flac(60.0)
    content = {"no sound": b"text", "breaks off late": long[: len(long) * 2 // 3], "cancelled": long}[end]

    async def story(embedder: Embedder) -> None:
        left = []
        for _ in range(3):
            file = SlowFile(content)
            left.append(weakref.ref(file))
            with contextlib.suppress(TimeoutError, ViolaError):
                async with asyncio.timeout(0.01 if end == "cancelled" else 10):
                    await embed(embedder, toy_model, file, as_batch=as_batch)
            del file
        for _ in range(200):  # until the threads have laid down what they have had in hand
            if not any(ref() for ref in left):
                break
            await asyncio.sleep(0.01)
        assert [ref() for ref in left] == [None] * 3

    gc.disable()
    try:
        with_embedder(story)
    finally:
        gc.enable()


def test_too_many_pictures_that_wait_to_be_drawn_are_refused(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "MAX_WAITING_PER_THREAD", 2)
    clips = [flac(0.2) for _ in range(9)]

    async def story(embedder: Embedder) -> None:
        assert await n_refused(embedder.draw(toy_model, clip, columns=10) for clip in clips) == 5
        _, duration_s = await embedder.draw(toy_model, clips[0], columns=10)  # all of them have left
        assert duration_s == 0.2

    with_embedder(story)


class SlowFile(io.BytesIO):
    """Each read takes a millisecond, during which `is_read`."""

    is_read = False

    def read(self, size: int | None = -1, /) -> bytes:
        self.is_read = True
        time.sleep(0.001)
        self.is_read = False
        return super().read(size)


def test_a_clip_that_is_alone_is_run_by_the_thread_that_decoded_it(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    run = Model.run

    def noted(self: Model, *arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name.rpartition("-")[0])
        return run(self, *arguments, **options)

    monkeypatch.setattr(Model, "run", noted)

    async def vector_of(embedder: Embedder, seconds: float) -> np.ndarray:
        sound = await embedder.embed(toy_model, flac(seconds), EmbedOptions(), Timings())
        return sound.embedding.vector

    async def story(embedder: Embedder) -> None:
        alone = await vector_of(embedder, 1.0)
        assert threads == ["viola-decode"]
        together = await asyncio.gather(*(vector_of(embedder, 1.0) for _ in range(4)))
        assert threads[1:].count("viola-model") >= 1
        for vector in together:
            np.testing.assert_allclose(vector, alone, rtol=1e-5, atol=1e-6)
        threads.clear()
        await vector_of(embedder, 5.0)  # three windows
        assert set(threads) == {"viola-model"}

    with_embedder(story)


def test_stages_are_timed_and_counted(toy_model: Model) -> None:
    timings = Timings()

    async def story(embedder: Embedder) -> None:
        await embedder.embed(toy_model, flac(1.5), EmbedOptions(), timings)

    page = with_embedder(story).page().decode()
    assert min(timings.decode, timings.logmel, timings.inference) > 0
    assert timings.queue == 0  # it was alone
    assert timings.server_timing().startswith("read;dur=0.000, decode;dur=")
    assert "viola_audio_seconds_total 1.5" in page
    for stage in ("decode_duration", "logmel_duration", "queue_wait"):
        assert f"viola_{stage}_seconds_count 1.0" in page
    assert "viola_batch_fill_ratio_count 1.0" in page
    assert 'viola_batch_fill_ratio_bucket{le="0.9"} 0.0' in page  # 151 frames, padded to 160


def test_a_clip_for_a_head_has_passages_where_it_is_long_and_none_where_it_is_short(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EmbedOptions(head_of=lambda model: model.heads["pets"])

    async def story(embedder: Embedder) -> None:
        short, long = [await embedder.embed(toy_model, flac(s), options, Timings()) for s in (5.0, 12.0)]
        (again,) = await embedder.embed_all(toy_model, [flac(12.0)], options, Timings())
        plain = await embedder.embed(toy_model, flac(5.0), EmbedOptions(), Timings())
        assert short.embedding.passages == []
        np.testing.assert_array_equal(short.embedding.vector, plain.embedding.vector)
        for clip in (long, again):
            assert isinstance(clip, EmbeddedClip)
            assert [segment.vector.shape for segment in clip.embedding.passages] == [(4,)] * 4
        monkeypatch.setattr(embedder_module, "MAX_NUMBERS", 12)  # of the 14.4 scores of 12 s
        with pytest.raises(BadRequest, match=r"send less sound$"):
            await embedder.embed(toy_model, flac(12.0), options, Timings())

    with_embedder(story)
