"""Long clips scored window by window."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference.card import Windows
from service.inference.heads import Head
from service.inference.model import Model
from service.inference.tags import Pooling, clip_scores, passages_of, tag_pool
from service.inference.windows import Embedding, Segment, cut, embed, embed_pieces
from service.sound.audio import decode

FIXTURES = Path("tests/fixtures")


def head(task: str) -> Head:
    """The logits are the vector itself."""
    zeros, ones = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    return Head("h", ("music", "bird"), task, zeros, ones, np.eye(2, dtype=np.float32), zeros)  # type: ignore[arg-type]


def in_passages(*rows: tuple[float, float, tuple[float, float]]) -> Embedding:
    """(start_s, end_s, scores) of each passage, for a head that cannot tell how known it is."""
    passages = [
        Segment(start, end, np.array([*scores, np.nan], dtype=np.float32)) for start, end, scores in rows
    ]
    return Embedding(np.zeros(2, dtype=np.float32), passages=passages)


def noise(seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(scale=0.1, size=round(16_000 * seconds)).astype(np.float32)


def gathered(model: Model, of: Head, sound: NDArray[np.float32], **windows: float) -> Embedding:
    """As a server does it: window after window."""
    seconds = len(sound) / model.card.sample_rate
    pool = tag_pool(model.card, of, whole_s=seconds, **windows)
    for piece in cut([model.logmel(sound)], model.card.windows):
        pool.add(piece.window, embed_pieces(model.run, [piece], frames=pool.needs_frames)[0])
    return pool.result(duration_s=seconds)


@pytest.mark.parametrize(
    ("task", "pooling", "expected"),
    [
        ("multilabel", None, (0.75, 0.875)),
        ("multiclass", None, (0.5, 0.325)),
        ("multilabel", "mean", (0.5, 0.325)),
        ("multiclass", "max", (0.75, 0.875)),
    ],
)
def test_passages_are_gathered_as_computed_by_hand(
    task: str, pooling: Pooling | None, expected: tuple[float, float]
) -> None:
    clip = in_passages((0, 4, (0.75, 0.25)), (4, 8, (0.5, 0.125)), (8, 10, (0.0, 0.875)))
    scores = clip_scores(head(task), clip, pooling=pooling)
    # the mean: (4 * 0.75 + 4 * 0.5 + 2 * 0) / 10 and (4 * 0.25 + 4 * 0.125 + 2 * 0.875) / 10
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-6)
    assert scores.windows is None


def test_a_clip_no_longer_than_a_passage_is_scored_whole_and_needs_no_frames(toy_model: Model) -> None:
    pets = toy_model.heads["pets"]
    assert not tag_pool(toy_model.card, pets, whole_s=5.0).needs_frames
    assert tag_pool(toy_model.card, pets, whole_s=5.11).needs_frames
    assert tag_pool(toy_model.card, pets, whole_s=None).needs_frames  # it goes on
    sound = noise(4.9)
    vector = embed(toy_model.run, toy_model.card, [toy_model.logmel(sound)]).vector
    for windows in ({}, {"window_s": 1.0}):
        scores = clip_scores(pets, gathered(toy_model, pets, sound, **windows))
        np.testing.assert_array_equal(scores.scores, pets.score(vector[None])[0])


@pytest.mark.parametrize(("name", "pooling"), [("pets", "mean"), ("moods", "max")])
def test_a_longer_clip_is_what_its_passages_say_one_by_one(name: str, pooling: str, toy_model: Model) -> None:
    of, sound = toy_model.heads[name], noise(12.0)
    plain = embed(toy_model.run, toy_model.card, [toy_model.logmel(sound)], window_s=5, hop_s=2.5).segments
    expected = of.score(np.stack([segment.vector for segment in plain]))
    clip = gathered(toy_model, of, sound, window_s=1.0)
    scores = clip_scores(of, clip)
    assert [(each.start_s, each.end_s) for each in clip.passages] == [(0, 5), (2.5, 7.5), (5, 10), (7.5, 12)]
    if pooling == "max":
        np.testing.assert_allclose(scores.scores, expected.max(axis=0), rtol=1e-5)
    else:
        mean = (5 * expected[:3].sum(axis=0) + 4.5 * expected[3]) / 19.5
        np.testing.assert_allclose(scores.scores, mean, rtol=1e-5)
        assert scores.scores.sum() == pytest.approx(1, abs=1e-5)
    assert scores.windows is not None
    assert scores.windows.times_s.tolist() == [[k, k + 1] for k in range(12)]
    seconds = embed(toy_model.run, toy_model.card, [toy_model.logmel(sound)], window_s=1).segments
    vectors = np.stack([segment.vector for segment in seconds[:12]])  # a 13th by the log-mel's padding
    np.testing.assert_allclose(scores.windows.scores, of.score(vectors), rtol=1e-5)


def test_a_long_clip_holds_its_passages_scores_and_no_vectors(toy_model: Model) -> None:
    pets = toy_model.heads["pets"]
    passages = gathered(toy_model, pets, noise(60.0)).passages
    assert len(passages) == 23
    assert {passage.vector.shape for passage in passages} == {(4,)}  # known too, of 16 numbers


def test_a_passage_is_as_long_as_what_heads_learn_from(toy_model: Model) -> None:
    card = toy_model.card
    assert passages_of(card) == (5.0, 2.5)
    audioset = card.model_copy(update={"windows": Windows(kind="independent", frames=1024)})
    assert passages_of(audioset) == (10.24, 5.12)
    vggish = card.model_copy(update={"windows": Windows(kind="independent", frames=96)})
    assert passages_of(vggish) == (5.0, 2.5)


@pytest.fixture(scope="module")
def byola() -> Model:
    return Model.load(Path("models/byola"), device="cpu")


def repeated(name: str, seconds: int) -> NDArray[np.float32]:
    return np.resize(decode(FIXTURES / name, sample_rate=16_000).samples, 16_000 * seconds)


@pytest.mark.parametrize(
    ("first", "label"), [("dog_bark_44k1_mono.ogg", "dog"), ("rain_44k1_mono.mp3", "rain")]
)
def test_of_two_sounds_after_each_other_both_are_told(first: str, label: str, byola: Model) -> None:
    """Their vectors pooled over the whole look like neither of them."""
    esc50 = byola.heads["esc50"]
    sound = np.concatenate([repeated(first, 20), repeated("robin_44k1_stereo.mp3", 10)])
    clip = gathered(byola, esc50, sound)
    best = np.argsort(-clip_scores(esc50, clip).scores)[:2]
    assert {esc50.labels[i] for i in best} == {label, "chirping_birds"}
    whole = np.argsort(-esc50.score(clip.vector[None])[0])[:2]
    assert {esc50.labels[i] for i in whole} != {label, "chirping_birds"}


def test_what_a_codec_adds_to_five_seconds_makes_no_second_passage(fixtures_dir: Path) -> None:
    """A dog's bark of 5.001 s, as Ogg: its silent second half must not be half of what is said."""
    model = Model.load(Path(__file__).parents[3] / "models" / "byola", device="cpu")
    esc50 = model.heads["esc50"]
    waveform = decode(fixtures_dir / "dog_bark_44k1_mono.ogg", sample_rate=16_000)
    assert 5 < waveform.duration_s < 5.01
    pool = tag_pool(model.card, esc50, whole_s=waveform.duration_s)
    logmel = model.logmel(waveform.samples)
    for piece, output in zip(
        pieces := list(cut([logmel], model.card.windows)), embed_pieces(model.run, pieces), strict=True
    ):
        pool.add(piece.window, output)
    scores = clip_scores(esc50, pool.result(duration_s=waveform.duration_s)).scores
    assert esc50.labels[scores.argmax()] == "dog"
    assert scores.max() > 0.9
