"""From a timeline's scores to when a label is heard."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.inference.events import (
    Event,
    Hysteresis,
    event_windows,
    events_of,
    hysteresis_of,
    own_times_s,
)
from service.inference.heads import Head
from service.inference.model import Model
from service.inference.tags import clip_scores, tag_pool
from service.inference.windows import cut, embed_pieces, segment_times_s
from service.sound.audio import decode

FIXTURES = Path("tests/fixtures")


def seconds(*scores: float) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """One label in windows of a second, side by side."""
    starts = np.arange(len(scores), dtype=np.float64)
    return np.stack([starts, starts + 1], axis=1), np.array(scores, dtype=np.float32)[:, None]


def found(*scores: float, gap_s: float = 0, shortest_s: float = 0) -> list[tuple[float, float, float]]:
    """Begun at 0.5, ended below 0.25."""
    hysteresis = Hysteresis(np.array([0.5], np.float32), np.array([0.25], np.float32), shortest_s, gap_s)
    return [(e.start_s, e.end_s, e.score) for e in events_of(("dog",), *seconds(*scores), hysteresis)]


def test_an_event_begins_high_and_ends_low() -> None:
    assert found(0, 0.25, 0.5, 0.25, 0.75, 0.125, 0.25, 0.375) == [(2, 5, 0.75)]
    assert found(0.5) == [(0, 1, 0.5)]
    assert found(0.4375, 0.4375, 0.4375) == []
    assert found(0.5, 0, 0.5, 0.5) == [(0, 1, 0.5), (2, 4, 0.5)]
    assert found() == []


def test_a_gap_is_bridged_before_what_is_short_is_dropped() -> None:
    scores = (0.5, 0, 0.75, 0, 0, 0.5)
    assert found(*scores, gap_s=1) == [(0, 3, 0.75), (5, 6, 0.5)]
    assert found(*scores, gap_s=2) == [(0, 6, 0.75)]
    assert found(*scores, gap_s=1, shortest_s=1.5) == [(0, 3, 0.75)]
    assert found(*scores, shortest_s=1.5) == []


def test_several_labels_come_by_their_start() -> None:
    scores = np.array([[0.0, 0.9], [0.9, 0.9], [0.9, 0.0]], dtype=np.float32)
    hysteresis = Hysteresis(np.full(2, 0.5, np.float32), np.full(2, 0.5, np.float32), 0, 0)
    events = events_of(("a", "b"), seconds(0, 0, 0)[0], scores, hysteresis)
    assert events == [Event("b", 0, 2, pytest.approx(0.9)), Event("a", 1, 3, pytest.approx(0.9))]


def test_windows_that_overlap_share_their_time_as_drawn() -> None:
    windows = np.array([[0, 1], [0.5, 1.5], [1, 2], [1.5, 2.25]])
    assert own_times_s(windows).tolist() == [[0, 0.75], [0.75, 1.25], [1.25, 1.75], [1.75, 2.25]]
    apart = np.array([[0, 1], [3, 4.0]])
    assert own_times_s(apart).tolist() == apart.tolist()


@settings(deadline=None)
@given(
    duration_s=st.floats(0.1, 50),
    window_s=st.floats(0.05, 20),
    share=st.floats(0.1, 1),
    seed=st.integers(0, 99),
)
def test_the_windows_times_cover_the_clip_once(
    duration_s: float, window_s: float, share: float, seed: int
) -> None:
    own_s = own_times_s(np.array(segment_times_s(duration_s, window_s, window_s * share)))
    assert own_s[0, 0] == 0
    assert own_s[-1, 1] == duration_s
    np.testing.assert_allclose(own_s[1:, 0], own_s[:-1, 1], atol=1e-9)
    assert (own_s[:, 1] > own_s[:, 0]).all()
    scores = np.random.default_rng(seed).random((len(own_s), 1), dtype=np.float32)
    hysteresis = Hysteresis(np.array([0.5], np.float32), np.array([0.3], np.float32), 0, 0)
    events = events_of(("x",), own_s, scores, hysteresis)
    assert all(before.end_s < after.start_s for before, after in pairwise(events))
    assert all(event.score >= 0.5 for event in events)


def head(*thresholds: float) -> Head:
    ones = np.ones(2, dtype=np.float32)
    return Head("h", ("a", "b"), "multilabel", ones, ones, ones, ones, thresholds=thresholds)


def test_a_heads_own_thresholds_begin_its_events() -> None:
    assert hysteresis_of(head()).begin.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(hysteresis_of(head()).end, [0.3, 0.3])
    own = hysteresis_of(head(0.25, 0.75), end=0.5)
    assert own.begin.tolist() == [0.25, 0.75]
    assert own.end.tolist() == [0.25, 0.5]  # never above the beginning
    assert hysteresis_of(head(0.25, 0.75), begin=0.5).begin.tolist() == [0.5, 0.5]


def test_the_windows_are_not_shorter_than_a_frame(toy_model: Model) -> None:
    assert event_windows(toy_model.card) == (1.0, 0.5)
    assert event_windows(toy_model.card.model_copy(update={"frame_period_ms": 10_240.0})) == (10.24, 5.12)


def test_of_two_real_sounds_each_is_found_where_it_is() -> None:
    """Rain for six seconds, then birds for as long: a window around the border may be either."""
    model = Model.load(Path("models/byola"), device="cpu")
    esc50 = model.heads["esc50"]
    rain, birds = (
        np.resize(decode(FIXTURES / name, sample_rate=16_000).samples, 6 * 16_000)
        for name in ("rain_44k1_mono.mp3", "robin_44k1_stereo.mp3")
    )
    window_s, hop_s = event_windows(model.card)
    pool = tag_pool(model.card, esc50, whole_s=12.0, window_s=window_s, hop_s=hop_s)
    for piece in cut([model.logmel(np.concatenate([rain, birds]))], model.card.windows):
        pool.add(piece.window, embed_pieces(model.run, [piece], frames=True)[0])
    windows = clip_scores(esc50, pool.result(duration_s=12.0)).windows
    assert windows is not None
    events = events_of(esc50.labels, windows.times_s, windows.scores, hysteresis_of(esc50))
    heard = {
        label: [event for event in events if event.label == label] for label in ("rain", "chirping_birds")
    }
    assert heard["rain"]
    assert heard["chirping_birds"]
    assert all(event.end_s <= 6.75 for event in heard["rain"])
    assert all(event.start_s >= 5.25 for event in heard["chirping_birds"])
    assert heard["chirping_birds"][0].start_s <= 6.75  # they sing in phrases
