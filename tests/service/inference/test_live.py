"""Live equals upload: the windows of a stream are those of a file that holds the same sound."""

import asyncio
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import AudioUnreadable
from service.inference.embedder import Embedder, EmbedOptions, Job, Timings
from service.inference.live import LiveSound, LiveWindow, live_cost_per_s
from service.inference.model import Model
from service.inference.threads import plan
from service.inference.windows import Segment
from service.process.metrics import Metrics
from service.settings import Settings
from service.sound.pcm import RawPcm
from service.sound.stream import SoundStream, pieces_of
from tests.service.recordings import cut

BYOLA = Path("models/byola")
TOLERANCE = 1e-4  # of a vector's largest number: the project's promise for windows of any cut


@pytest.fixture(scope="module")
def independent(make_toy: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The toy, whose windows of half a second know nothing of each other."""
    windows = {"kind": "independent", "stride": 4, "frames": 50, "min_frames": 8}
    folder = tmp_path_factory.mktemp("models") / "toy"
    return Model.load(make_toy(folder, windows=windows, min_samples=1_280), device="cpu")


def clicks(seconds: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    """(n, channels) int16: noise in bursts, so that no two windows are alike."""
    random = np.random.default_rng(0)
    n = round(seconds * rate_hz)
    loud = np.repeat(random.uniform(0, 1, n // 1_000 + 1), 1_000)[:n, None]
    return (random.normal(size=(n, channels)) * loud * 6_000).astype("<i2")


def run(work: Callable[[Embedder], Any]) -> Any:
    """What it returns, with an embedder that runs."""

    async def with_embedder() -> Any:
        options = Settings(threads=2)
        embedder = Embedder(options, plan(options), Metrics())
        embedder.start()
        try:
            return await work(embedder)
        finally:
            await embedder.drain()

    return asyncio.run(with_embedder())


def streamed(
    model: Model, samples: np.ndarray, rate_hz: int, sizes: Sequence[int], window_s: float, hop_s: float
) -> list[LiveWindow]:
    windows: list[LiveWindow] = []

    async def deliver(window: LiveWindow) -> None:
        windows.append(window)

    async def work(embedder: Embedder) -> None:
        form = RawPcm("s16le", rate_hz, samples.shape[1])
        sound = SoundStream(pieces_of(form), sample_rate=model.card.sample_rate)
        head = next(iter(model.heads.values()))
        live = LiveSound(embedder, model, sound, window_s=window_s, hop_s=hop_s, head=head)
        for piece in cut(samples.tobytes(), sizes):
            await live.push(piece, deliver)
        await live.close(deliver)
        assert embedder.batcher.admitted_cost == 0

    run(work)
    return windows


def uploaded(model: Model, samples: np.ndarray, rate_hz: int, window_s: float, hop_s: float) -> list[Segment]:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype="PCM_16")
    options = EmbedOptions(window_s=window_s, hop_s=hop_s)
    clip = run(lambda embedder: embedder.embed(model, file.getvalue(), options, Timings()))
    segments: list[Segment] = clip.embedding.segments
    return segments


def assert_equal(model: Model, windows: Sequence[LiveWindow], segments: Sequence[Segment]) -> None:
    assert [(w.start_s, w.end_s) for w in windows] == [(s.start_s, s.end_s) for s in segments]
    head = next(iter(model.heads.values()))
    for window, segment in zip(windows, segments, strict=True):
        largest = np.abs(segment.vector).max()
        np.testing.assert_allclose(window.vector, segment.vector, atol=TOLERANCE * largest)
        expected = head.score_and_know(segment.vector[None])[0]
        assert window.scored is not None
        np.testing.assert_allclose(window.scored, expected, atol=TOLERANCE)


WINDOWS = [(1.0, 1.0), (1.0, 0.5), (2.5, 0.3), (0.3, 0.9), (0.05, 0.1)]


@pytest.mark.parametrize(("window_s", "hop_s"), WINDOWS)
def test_the_default_model_hears_live_what_it_hears_in_a_file(window_s: float, hop_s: float) -> None:
    model = Model.load(BYOLA, device="cpu", threads=1)
    samples = clicks(5.37, 44_100, 2)
    windows = streamed(model, samples, 44_100, [30_000], window_s, hop_s)
    assert_equal(model, windows, uploaded(model, samples, 44_100, window_s, hop_s))


@pytest.mark.parametrize(("window_s", "hop_s"), WINDOWS)
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_windows_of_either_kind_are_those_of_the_file(
    toy_model: Model, independent: Model, rate_hz: int, window_s: float, hop_s: float
) -> None:
    for model in (toy_model, independent):
        for seconds in (0.001, 0.3, 1.0, 2.5, 7.013):
            samples = clicks(seconds, rate_hz)
            windows = streamed(model, samples, rate_hz, [20_000], window_s, hop_s)
            assert_equal(model, windows, uploaded(model, samples, rate_hz, window_s, hop_s))


def test_a_window_longer_than_the_models_own_is_that_of_the_file(toy_model: Model) -> None:
    samples = clicks(13.2, 16_000)  # the toy's windows are of two seconds
    windows = streamed(toy_model, samples, 16_000, [50_000], 5.0, 4.0)
    assert_equal(toy_model, windows, uploaded(toy_model, samples, 16_000, 5.0, 4.0))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 50), st.integers(1, 480_000)), min_size=1, max_size=5))
@example([1])
def test_how_sound_is_cut_into_messages_changes_nothing(
    toy_model: Model, independent: Model, sizes: list[int]
) -> None:
    seconds = 0.4 if max(sizes) < 200 else 2.2  # each message is a thread's turn
    samples = clicks(seconds, 8_000)
    for model in (toy_model, independent):
        windows = streamed(model, samples, 8_000, sizes, 0.5, 0.2)
        whole = streamed(model, samples, 8_000, [1_000_000], 0.5, 0.2)
        assert [(w.start_s, w.end_s) for w in windows] == [(w.start_s, w.end_s) for w in whole]
        for window, same in zip(windows, whole, strict=True):
            np.testing.assert_array_equal(window.vector, same.vector)


def test_one_piece_of_a_stream_waits_at_a_time_however_fast_it_is_sent(
    toy_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes at once: the rest of them takes no room in the queue, where clips may come in between.
    Every other piece is run by a decode thread, while nobody else waits, and takes no room at all.
    """
    n_pieces: list[int] = []
    admitted: list[int] = []

    async def work(embedder: Embedder) -> None:
        run_batch = embedder.batcher._run_batch

        def noted(jobs: list[Job]) -> list[Any]:
            n_pieces.append(len(jobs))
            admitted.append(embedder.batcher.admitted_cost)
            return run_batch(jobs)

        monkeypatch.setattr(embedder.batcher, "_run_batch", noted)
        sound = SoundStream(pieces_of(RawPcm("s16le", 8_000, 1)), sample_rate=16_000)
        live = LiveSound(embedder, toy_model, sound, window_s=1, hop_s=1, head=None)
        found: list[LiveWindow] = []

        async def deliver(window: LiveWindow) -> None:
            found.append(window)

        await live.push(clicks(120, 8_000).tobytes(), deliver)
        await live.close(deliver)
        assert len(found) == 120

    run(work)
    assert len(n_pieces) >= 120
    assert set(n_pieces) == {1}
    assert set(admitted) == {0, toy_model.padded_length(108)}


def test_a_part_that_is_cut_out_with_its_surroundings_gives_the_same_windows() -> None:
    """At a multiple of the frame period (40 ms), and 200 ms on either side, which is more than a frame of the
    encoder sees."""
    model = Model.load(BYOLA, device="cpu", threads=1, precision="float32")
    samples = clicks(6, 16_000)
    windows = streamed(model, samples, 16_000, [32_000], 1.0, 0.5)
    (window,) = (w for w in windows if w.start_s == 2.0)
    part = samples[round(1.8 * 16_000) : round(3.2 * 16_000)]
    (segment,) = (s for s in uploaded(model, part, 16_000, 1.0, 0.2) if s.start_s == 0.2)
    largest = np.abs(segment.vector).max()
    np.testing.assert_allclose(window.vector, segment.vector, atol=TOLERANCE * largest)


def test_a_window_comes_as_soon_as_its_frames_have_seen_what_they_see(toy_model: Model) -> None:
    """Behind its end: one frame of context, 40 ms, and half of the FFT, 16 ms, in steps of a frame."""
    came: list[tuple[float, float]] = []
    samples = clicks(4, 16_000)

    async def work(embedder: Embedder) -> None:
        sound = SoundStream(pieces_of(RawPcm("s16le", 16_000, 1)), sample_rate=16_000)
        live = LiveSound(embedder, toy_model, sound, window_s=1.0, hop_s=0.5, head=None)

        async def deliver(window: LiveWindow) -> None:
            came.append((window.end_s, live.duration_s))

        for piece in cut(samples.tobytes(), [320]):  # 10 ms
            missing_s = live.missing_s
            before = len(came)
            await live.push(piece, deliver)
            assert len(came) == before or missing_s <= 0.01  # it promises no window too late

    run(work)
    assert len(came) == 6
    assert all(0 < came_at - end_s <= 0.11 for end_s, came_at in came)


def test_nothing_comes_of_nothing_and_half_a_sample_is_an_error(toy_model: Model) -> None:
    assert streamed(toy_model, clicks(0, 16_000), 16_000, [10], 1.0, 1.0) == []

    async def work(embedder: Embedder) -> None:
        sound = SoundStream(pieces_of(RawPcm("s16le", 16_000, 1)), sample_rate=16_000)
        live = LiveSound(embedder, toy_model, sound, window_s=1.0, hop_s=0.5, head=None)

        async def deliver(window: LiveWindow) -> None:
            raise AssertionError("of 100 samples there is no window yet")

        await live.push(bytes(201), deliver)
        with pytest.raises(AudioUnreadable):
            await live.close(deliver)

    run(work)


def test_what_a_stream_costs_is_what_its_pieces_cost(toy_model: Model, independent: Model) -> None:
    # 25 frames of 4, one of context on each side: 108, padded to 112.
    assert live_cost_per_s(toy_model, hop_s=1.0) == 112
    assert live_cost_per_s(toy_model, hop_s=0.2) == pytest.approx(5 * 32)  # 5 + 2 frames: 28, padded to 32
    assert live_cost_per_s(independent, hop_s=0.1) == 2 * independent.padded_length(50)
