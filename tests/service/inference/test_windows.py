from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.card import Card, Windows
from service.inference.model import Model, Output
from service.inference.windows import Pool, Window, cut, embed, embed_pieces, segment_times_s, split

EXACT = Windows(kind="exact", stride=4, context=1, frames=16)
ALONE = Windows(kind="independent", frames=10, min_frames=4)


def log_mel(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-8, 4, (16, n)).astype(np.float32)


def with_windows(model: Model, windows: Windows) -> Card:
    return model.card.model_copy(update={"windows": windows})


def one_pass(model: Model, logmel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole clip through the graph at once: its vector and its frames."""
    (output,) = model.run([logmel], frames=True)
    assert output.frames is not None
    return output.sum / output.count + output.max, output.frames


def test_a_short_clip_is_one_window() -> None:
    assert split(16, EXACT) == [Window(0, 16)]
    assert not split(16, EXACT)[0].is_trimmed


def test_a_long_clip_is_cut_as_drawn() -> None:
    # 4 output frames a window, one dropped at each inner edge: 0 1 2 | 3 4 | 5 6 | 7 and the rest.
    assert split(35, EXACT) == [
        Window(0, 16, drop_last=1),
        Window(8, 24, drop_first=1, drop_last=1),
        Window(16, 32, drop_first=1, drop_last=1),
        Window(24, 35, drop_first=1),
    ]


@given(
    n=st.integers(4, 3000),
    stride=st.sampled_from([1, 4, 8]),
    context=st.integers(0, 2),
    extra=st.integers(1, 50),
)
def test_windows_keep_each_output_frame_once_and_in_order(
    n: int, stride: int, context: int, extra: int
) -> None:
    windows = Windows(kind="exact", stride=stride, context=context, frames=stride * (2 * context + extra))
    kept: list[int] = []
    for window in split(n, windows):
        assert window.start % stride == 0
        assert 0 < window.stop - window.start <= windows.frames
        last = window.start // stride + (window.stop - window.start) // stride
        kept += range(window.start // stride + window.drop_first, last - window.drop_last)
    assert kept == list(range(n // stride))


def test_exact_windows_without_context_drop_a_rest_that_gives_nothing() -> None:
    examples = Windows(kind="exact", stride=4, frames=24, min_frames=12)  # two examples of 12
    assert split(48, examples) == [Window(0, 24), Window(24, 48)]
    assert split(59, examples) == [Window(0, 24), Window(24, 48)]
    assert split(60, examples)[2:] == [Window(48, 60)]
    assert split(11, examples) == [Window(0, 11)]


def test_independent_windows_stand_side_by_side_and_a_short_rest_is_dropped() -> None:
    assert split(20, ALONE) == [Window(0, 10), Window(10, 20)]
    assert split(24, ALONE)[2:] == [Window(20, 24)]
    assert split(23, ALONE)[2:] == []
    assert split(3, ALONE) == [Window(0, 3)]


@given(n=st.integers(4, 200), sizes=st.lists(st.integers(0, 60), max_size=10))
def test_a_log_mel_in_blocks_is_cut_like_the_whole(n: int, sizes: list[int]) -> None:
    logmel = log_mel(n)
    blocks = np.split(logmel, np.minimum(np.cumsum(sizes, dtype=int), n), axis=1)
    for windows in (EXACT, ALONE):
        pieces = list(cut(blocks, windows))
        assert [piece.window for piece in pieces] == split(n, windows)
        for piece in pieces:
            np.testing.assert_array_equal(piece.logmel, logmel[:, piece.window.start : piece.window.stop])
            assert piece.logmel.flags.c_contiguous


def test_cutting_holds_no_more_than_a_window() -> None:
    n_read = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal n_read
        while True:  # a clip without end
            n_read += 5
            yield log_mel(5)

    pieces = cut(blocks(), EXACT)
    for _ in range(50):
        window = next(pieces).window
        assert n_read <= window.stop + 5


@settings(max_examples=60, deadline=None)
@given(n=st.integers(4, 700), n_frames=st.integers(12, 300))
def test_a_clip_of_any_length_in_windows_agrees_with_one_pass(
    toy_model: Model, n: int, n_frames: int
) -> None:
    card = with_windows(toy_model, Windows(kind="exact", stride=4, context=1, frames=n_frames))
    logmel = log_mel(n, seed=n)
    vector, frames = one_pass(toy_model, logmel)
    embedding = embed(toy_model.run, card, [logmel], frames=True)
    np.testing.assert_allclose(embedding.vector, vector, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embedding.frames, frames, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embed(toy_model.run, card, [logmel]).vector, vector, rtol=1e-5, atol=1e-6)


def test_an_hour_in_blocks_agrees_with_one_pass_and_is_never_held(
    make_toy: Callable[..., Path], tmp_path: Path
) -> None:
    rate_hz = 2000  # at 16 kHz the log-mel of an hour takes too long for a test
    times = {"frame_period_ms": 320, "first_frame_centre_ms": 120}
    model = Model.load(make_toy(tmp_path / "toy", sample_rate=rate_hz, **times), device="cpu")
    second = np.random.default_rng(0).normal(scale=0.1, size=rate_hz).astype(np.float32)
    n_read = 0
    whole: list[np.ndarray] = []

    def samples() -> Iterator[np.ndarray]:
        nonlocal n_read
        for gain in np.random.default_rng(1).uniform(0, 2, size=3600).astype(np.float32):
            n_read += rate_hz
            yield gain * second

    def logmels() -> Iterator[np.ndarray]:
        for block in model.logmel_blocks(samples()):
            whole.append(block)  # for the one pass
            yield block

    pool, n_windows = Pool(model.card), 0
    for piece in cut(logmels(), model.card.windows):
        n_ahead = n_read - piece.window.stop * model.card.frontend.hop_length
        assert n_ahead < 2 * 200 * 160  # samples of two windows
        pool.add(piece.window, embed_pieces(model.run, [piece])[0])
        n_windows += 1
    vector, _ = one_pass(model, np.concatenate(whole, axis=1))
    assert n_windows == len(split(45_001, model.card.windows)) > 200
    np.testing.assert_allclose(pool.result().vector, vector, rtol=1e-4)


def test_without_the_context_windows_do_not_agree(toy_model: Model) -> None:
    """The test above can fail: the toy's receptive field does cross the windows' edges."""
    card = with_windows(toy_model, Windows(kind="exact", stride=4, context=0, frames=40))
    logmel = log_mel(200)
    frames = embed(toy_model.run, card, [logmel], frames=True).frames
    assert frames is not None
    assert np.abs(frames - one_pass(toy_model, logmel)[1]).max() > 1e-3


def test_frames_carry_the_times_of_their_centres(toy_model: Model) -> None:
    embedding = embed(toy_model.run, toy_model.card, [log_mel(1001)], frames=True)
    assert embedding.times_s is not None
    np.testing.assert_allclose(embedding.times_s, 0.015 + 0.04 * np.arange(250), rtol=1e-12)


def test_the_frame_of_an_independent_window_is_in_the_middle_of_that_window(toy_model: Model) -> None:
    """A full window of 100 log-mel frames lasts a second; the log-mel frame t is centred at 10 t ms."""
    whole = {"frame_period_ms": 1000, "first_frame_centre_ms": 495}
    windows = Windows(kind="independent", stride=4, frames=100, min_frames=4)
    card = with_windows(toy_model, windows).model_copy(update=whole)
    vector = np.zeros(16, dtype=np.float32)
    for n, expected in ((100, [0.495]), (40, [0.195]), (240, [0.495, 1.495, 2.195])):
        pool = Pool(card, frames=True)
        for window in split(n, windows):
            pool.add(window, Output(vector, vector, 1, vector[None]))
        np.testing.assert_allclose(pool.result().times_s, expected)


def test_independent_windows_are_averaged_by_their_length(toy_model: Model) -> None:
    card = with_windows(toy_model, Windows(kind="independent", stride=4, frames=100))
    logmel = log_mel(150)
    first, second = one_pass(toy_model, logmel[:, :100])[0], one_pass(toy_model, logmel[:, 100:])[0]
    vector = embed(toy_model.run, card, [logmel]).vector
    np.testing.assert_allclose(vector, (100 * first + 50 * second) / 150, rtol=1e-5)


def test_mean_pooling_has_no_maximum(toy_model: Model) -> None:
    card = toy_model.card.model_copy(update={"pooling": "mean"})
    logmel = log_mel(500)
    vector = embed(toy_model.run, card, [logmel]).vector
    np.testing.assert_allclose(vector, one_pass(toy_model, logmel)[1].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_batch_of_windows_holds_frames_only_if_they_are_asked_for(toy_model: Model) -> None:
    pieces = list(cut([log_mel(700)], toy_model.card.windows))
    assert len(pieces) > 2
    assert all(output.frames is None for output in embed_pieces(toy_model.run, pieces))
    assert all(output.frames is not None for output in embed_pieces(toy_model.run, pieces, frames=True))


def test_windows_without_frames_may_be_added_in_any_order(toy_model: Model) -> None:
    pieces = list(cut([log_mel(700)], toy_model.card.windows))
    outputs = embed_pieces(toy_model.run, pieces)
    pool, backwards = Pool(toy_model.card), Pool(toy_model.card)
    for piece, output in zip(pieces, outputs, strict=True):
        pool.add(piece.window, output)
    for piece, output in zip(pieces[::-1], outputs[::-1], strict=True):
        backwards.add(piece.window, output)
    np.testing.assert_allclose(backwards.result().vector, pool.result().vector, rtol=1e-6)


def test_segments_end_with_the_clip() -> None:
    assert segment_times_s(2.5, 1, 1) == [(0, 1), (1, 2), (2, 2.5)]
    assert segment_times_s(2, 1, 0.5) == [(0, 1), (0.5, 1.5), (1, 2)]
    assert segment_times_s(0.3, 1, 1) == [(0, 0.3)]
    assert segment_times_s(4.5, 1, 2.5) == [(0, 1), (2.5, 3.5)]  # a gap, and the clip ends within the next


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 900), window_s=st.floats(0.05, 3), hop_s=st.floats(0.05, 3))
def test_a_segment_pools_the_frames_whose_centres_it_holds(
    toy_model: Model, n: int, window_s: float, hop_s: float
) -> None:
    card = toy_model.card
    embedding = embed(toy_model.run, card, [log_mel(n)], frames=True, window_s=window_s, hop_s=hop_s)
    frames, times_s = embedding.frames, embedding.times_s
    assert frames is not None
    assert times_s is not None
    expected = segment_times_s(n * 160 / 16_000, window_s, hop_s)
    assert [(segment.start_s, segment.end_s) for segment in embedding.segments] == expected
    for segment in embedding.segments:
        first, last = np.searchsorted(times_s, [segment.start_s, segment.start_s + window_s])
        first = min(first, max(0, last - 1))  # none in it: the one before
        inside = frames[first : max(last, first + 1)]
        np.testing.assert_allclose(
            segment.vector, inside.mean(axis=0) + inside.max(axis=0), rtol=1e-4, atol=1e-5
        )


def test_one_segment_over_the_whole_clip_is_its_embedding(toy_model: Model) -> None:
    embedding = embed(toy_model.run, toy_model.card, [log_mel(700)], window_s=10)
    (segment,) = embedding.segments
    assert (segment.start_s, segment.end_s) == (0, 7)
    np.testing.assert_allclose(segment.vector, embedding.vector, rtol=1e-5)


def test_sums_of_an_hour_keep_their_precision(toy_model: Model) -> None:
    pool = Pool(toy_model.card)
    value = np.full(16, 0.1, dtype=np.float32)
    for k in range(100_000):
        pool.add(Window(k, k + 1), Output(value, value, 1))
    np.testing.assert_allclose(pool.result().vector, 0.2, rtol=1e-6)


@pytest.mark.parametrize("frames", [8, 11])
def test_a_window_that_keeps_nothing_is_refused(frames: int) -> None:
    with pytest.raises(ValueError, match="keeps none of its output frames"):
        Windows(kind="exact", stride=4, context=1, frames=frames)


@given(n=st.integers(6, 400), stride=st.integers(1, 4), reach=st.integers(0, 9), extra=st.integers(1, 20))
def test_patches_that_overlap_are_each_in_one_window(n: int, stride: int, reach: int, extra: int) -> None:
    """The windows of a graph that cuts a patch of stride + reach frames every stride frames give the patches
    of the whole clip, in order."""
    patch = stride + reach
    windows = Windows(
        kind="exact", stride=stride, reach=reach, frames=stride * extra + reach, min_frames=patch
    )
    cut_here = [
        start
        for window in split(n, windows)
        for start in range(window.start, window.stop - patch + 1, stride)
    ]
    assert cut_here == list(range(0, n - patch + 1, stride))
    assert all(window.stop - window.start <= windows.frames for window in split(n, windows)[:-1])
