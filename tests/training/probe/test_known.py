"""What tells that a sound is none of a head's labels, against scipy and computed by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis

from service.inference.known import KnownSounds
from training.probe.known import auroc_of, known_sounds, separation

D, CLASSES = 12, 3
Clips = tuple[NDArray[np.float32], NDArray[np.int64]]


def clips(n: int, seed: int) -> Clips:
    """Three classes with one covariance, in which every number depends on others; and some distance apart."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(D, D))
    centres = np.random.default_rng(1).normal(scale=8, size=(CLASSES, D))
    targets = random.integers(0, CLASSES, n)
    return (centres[targets] + random.normal(size=(n, D)) @ mixing).astype(np.float32), targets


def fitted(n: int = 400) -> KnownSounds:
    train, targets = clips(n, 2)
    known = known_sounds(train, targets, clips(200, 3)[0], n_classes=CLASSES)
    assert known is not None
    return known


def test_the_distance_is_mahalanobis_with_the_covariance_within_classes() -> None:
    train, targets = clips(400, 2)
    # In numpy's and scipy's words: principal components of unit variance, then the covariance within classes.
    centred = train.astype(np.float64) - train.mean(axis=0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    to_points = axes.T / sizes * np.sqrt(len(train) - 1)
    points = centred @ to_points
    np.testing.assert_allclose(np.cov(points.T), np.eye(D), atol=1e-9)
    means = [points[targets == c].mean(axis=0) for c in range(CLASSES)]
    within = np.concatenate([points[targets == c] - means[c] for c in range(CLASSES)])
    inverse = np.linalg.inv(within.T @ within / len(within) + 0.01 * np.eye(D))
    others = np.concatenate([clips(20, 4)[0], np.random.default_rng(5).normal(size=(20, D)) * 20])
    expected = [
        min(mahalanobis((x - train.mean(axis=0)) @ to_points, mean, inverse) for mean in means)
        for x in others
    ]
    # float16 in the file: 11 bits of each of 12 x 12 numbers
    np.testing.assert_allclose(fitted().distance(others.astype(np.float32)), expected, rtol=0.02)


def test_known_is_evenly_spread_over_sounds_of_the_classes_and_near_0_for_others() -> None:
    """It is a share of such sounds: of new ones, too, a tenth lies below 0.1."""
    known = fitted(2000)
    new = known(clips(2000, 6)[0])
    for share in (0.1, 0.5, 0.9):
        assert (new < share).mean() == pytest.approx(share, abs=0.1)  # 200 test clips: 0.035 times 3
    strange = known(np.random.default_rng(7).normal(scale=30, size=(500, D)).astype(np.float32))
    assert strange.mean() < 0.02


def test_too_few_clips_tell_nothing() -> None:
    train, targets = clips(400, 2)
    assert known_sounds(train, targets, train[:19], n_classes=CLASSES) is None
    assert known_sounds(train[:3], np.arange(3), train[:50], n_classes=CLASSES) is None


def test_few_clips_have_fewer_components_and_equal_ones_no_matter_how_many() -> None:
    train, targets = clips(40, 2)
    known = known_sounds(train, targets, clips(30, 3)[0], n_classes=CLASSES)
    assert known is not None
    assert known.projection.shape == (10, D)  # a quarter of 40
    flat = train.copy()
    flat[:, 4:] = 1  # the rest varies in four directions alone
    known = known_sounds(flat, targets, flat, n_classes=CLASSES)
    assert known is not None
    assert known.projection.shape == (4, D)
    assert np.isfinite(known.projection).all()


def test_the_area_under_the_curve_and_the_threshold_by_hand() -> None:
    assert auroc_of(np.array([0.2, 0.8], np.float32), np.array([0.1, 0.2], np.float32)) == 0.875
    line = KnownSounds(
        np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), np.array([1, 2, 3, 4], np.float32)
    )
    test = np.array([[1], [2], [3], [4]], dtype=np.float32)  # known 1, 0.75, 0.5, 0.25
    others = {
        "near": np.array([[3.5], [9]], dtype=np.float32),  # 0.25 and 0
        "far": np.array([[7], [8]], dtype=np.float32),  # 0
    }
    apart = separation(line, test, others)
    assert apart.auroc == {"near": 0.9375, "far": 1.0, "all": 0.9688}
    # from 0.5 on: three of four inside, all four outside; from 0.25 on: all inside, three of four outside
    assert (apart.min_known, apart.balanced_accuracy) == (0.5, 0.875)
