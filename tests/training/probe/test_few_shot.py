"""Few-shot accuracy on vectors whose classes are known to be apart, or not to be."""

from pathlib import Path

import numpy as np
import pytest

from training.clips import DataError
from training.probe.few_shot import BACKGROUND_CLIPS, background_of, few_shot, table, unit

CLASSES = np.repeat(np.arange(8), 10)


def clusters(spread: float) -> tuple[np.ndarray, np.ndarray]:
    """(vectors of 8 classes with 10 clips each, vectors of nothing in particular), 16 numbers each."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(8, 16))
    vectors = centres[CLASSES] + spread * random.normal(size=(80, 16))
    return vectors.astype(np.float32), random.normal(size=(200, 16)).astype(np.float32)


def test_classes_that_are_apart_are_told_from_one_example() -> None:
    vectors, background = clusters(0.01)
    for row in few_shot(vectors, CLASSES, background, episodes=10):
        assert (row.prototype, row.logistic) == (1.0, 1.0)


def test_vectors_that_know_nothing_of_the_classes_are_guessed() -> None:
    random = np.random.default_rng(1)
    vectors, background = random.normal(size=(2, 80, 16)).astype(np.float32)
    [row] = few_shot(vectors, CLASSES, background, shots=(3,), episodes=200)
    # One set of 80 vectors has its own luck, which more episodes do not take away.
    assert row.prototype == pytest.approx(0.2, abs=0.05)
    assert row.logistic == pytest.approx(0.2, abs=0.05)


def test_more_examples_tell_more() -> None:
    vectors, background = clusters(1.0)
    one, five = few_shot(vectors, CLASSES, background, shots=(1, 5), episodes=60)
    assert five.prototype > one.prototype + 0.1


def test_the_background_decides_how_numbers_are_weighed() -> None:
    """A number that varies a thousand times as much as the others drowns them, unless it is standardised."""
    vectors, background = clusters(0.01)
    loud = np.random.default_rng(2).normal(size=(280, 1)).astype(np.float32) * 1000
    vectors, background = np.hstack([vectors, loud[:80]]), np.hstack([background, loud[80:]])
    [row] = few_shot(vectors, CLASSES, background, shots=(5,), episodes=20)
    assert row.prototype > 0.9
    assert np.linalg.norm(unit(vectors, background.mean(0), background.std(0)), axis=1) == pytest.approx(1)


def test_the_same_seed_draws_the_same_episodes() -> None:
    vectors, background = clusters(1.0)
    results = [few_shot(vectors, CLASSES, background, episodes=5, seed=seed) for seed in (3, 3, 4)]
    assert results[0] == results[1] != results[2]
    assert table(results[0]).count("\n") == 4


def test_too_few_clips_are_said() -> None:
    vectors, background = clusters(1.0)
    with pytest.raises(DataError, match="0 classes have more than 10 clips"):
        few_shot(vectors, CLASSES, background, shots=(10,))


def test_the_background_holds_none_of_the_clips_that_are_asked_about() -> None:
    paths = [Path(f"{n}.wav") for n in range(3000)]
    background = background_of(paths, set(paths[:1500]))
    assert len(background) == BACKGROUND_CLIPS
    assert not set(background) & set(paths[:1500])
    assert background == background_of(paths[::-1], set(paths[:1500]))
    with pytest.raises(DataError, match="Every sound belongs to the tasks"):
        background_of(paths, paths)
