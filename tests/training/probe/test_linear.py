"""Linear heads on problems whose answer is known."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from training.probe import linear
from training.probe.linear import (
    MULTICLASS,
    MULTILABEL,
    LinearHead,
    classes_in,
    fit,
    metric_of,
    validation_part,
)


def clouds(
    classes: int, n: int = 60, d: int = 8, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Clouds around distant centres; the features' scales differ by orders, as encoders' do."""
    random = np.random.default_rng(seed)
    targets = np.arange(n * classes) % classes
    centres = np.random.default_rng(99).normal(size=(classes, d))
    x = (centres[targets] + 0.1 * random.normal(size=(len(targets), d))) * 10.0 ** (np.arange(d) % 8 - 3)
    return x.astype(np.float32), targets.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 5])
def test_separable_classes_are_told_apart_two_of_them_included(classes: int) -> None:
    x, y = clouds(classes)
    x_test, y_test = clouds(classes, seed=1)
    head = fit(
        x[50:], y[50:], x[:50], y[:50], n_classes=classes, task=MULTICLASS, seed=42, learning_rate=1e-2
    )
    assert head.valid_metric == 1.0
    assert head.metric(x_test, y_test) == 1.0
    assert head.weight.shape == (classes, 8)
    assert head.bias.shape == (classes,)


def test_two_separable_classes_score_one_at_the_default_learning_rate() -> None:
    x, y = clouds(2, d=512)
    head = fit(x[50:], y[50:], x[:50], y[:50], n_classes=2, task=MULTICLASS, seed=42)
    assert head.metric(*clouds(2, d=512, seed=1)) == 1.0


def test_several_labels_per_clip_are_scored_by_mean_average_precision() -> None:
    random = np.random.default_rng(0)
    y = (random.random((300, 3)) < 0.4).astype(np.float32)
    x = (y @ random.normal(size=(3, 16)) + 0.05 * random.normal(size=(300, 16))).astype(np.float32)
    head = fit(x[60:], y[60:], x[:60], y[:60], n_classes=3, task=MULTILABEL, seed=42, learning_rate=1e-2)
    assert head.metric(x[:60], y[:60]) > 0.99


def test_mean_average_precision_by_hand() -> None:
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=np.float32)
    logits = np.array([[3, 0, 9], [2, 5, 9], [1, 1, 9]], dtype=np.float32)
    # class 0: hits at ranks 1 and 3, (1/1 + 2/3) / 2 = 5/6; class 1: rank 1; class 2 never occurs
    assert metric_of(logits, targets, MULTILABEL) == pytest.approx((5 / 6 + 1) / 2)


def test_average_precision_of_a_single_class_that_occurs() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]], dtype=np.float32)
    logits = np.array([[3, 0], [2, 0], [1, 0]], dtype=np.float32)
    assert metric_of(logits, targets, MULTILABEL) == pytest.approx(5 / 6)


def test_accuracy_is_the_share_of_right_answers() -> None:
    logits = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    assert metric_of(logits, np.array([0, 1, 1, 0]), MULTICLASS) == 0.75


def test_logits_are_those_of_the_scaled_embedding() -> None:
    head = LinearHead(
        mean=np.array([1, 2], dtype=np.float32),
        std=np.array([2, 4], dtype=np.float32),
        weight=np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32),
        bias=np.array([0, 0, 10], dtype=np.float32),
        task=MULTICLASS,
        valid_metric=1.0,
    )
    assert head.logits(np.array([[3, 10]], dtype=np.float32)).tolist() == [[1, 2, 13]]


def test_the_scaler_is_scikit_learns() -> None:
    x, y = clouds(3)
    head = fit(x, y, x, y, n_classes=3, task=MULTICLASS, seed=42)
    reference = StandardScaler().fit(x.astype(np.float64))
    np.testing.assert_allclose(head.mean, reference.mean_, rtol=1e-5)
    np.testing.assert_allclose(head.std, reference.scale_, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_feature_says_nothing(value: float) -> None:
    x, y = clouds(2)
    x[:, 3] = value
    head = fit(x, y, x, y, n_classes=2, task=MULTICLASS, seed=42, learning_rate=1e-2)
    assert head.std[3] == 1
    assert head.mean[3] == np.float32(value)
    assert np.isfinite(head.logits(x)).all()
    assert head.metric(x, y) == 1.0


def test_the_best_weights_are_kept_and_training_stops_when_nothing_improves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = iter([0.2, 0.5, 0.9, 0.9, *[0.1] * 300])
    biases: list[float] = []

    def epoch(layer: torch.nn.Linear, *_: object) -> None:
        with torch.no_grad():
            layer.bias.fill_(len(biases))
        biases.append(len(biases))

    monkeypatch.setattr(linear, "metric_of", lambda *_: next(metrics))
    monkeypatch.setattr(linear, "train_epoch", epoch)
    x, y = clouds(2)
    head = fit(x, y, x, y, n_classes=2, task=MULTICLASS, seed=42)
    assert head.valid_metric == 0.9
    assert head.bias.tolist() == [3, 3]  # the later of the two: a tie counts as an improvement
    assert len(biases) == 4 + linear.PATIENCE


def test_the_same_seed_gives_the_same_head_and_another_another() -> None:
    x, y = clouds(3)
    first, again, other = (fit(x, y, x, y, n_classes=3, task=MULTICLASS, seed=seed) for seed in (42, 42, 43))
    assert np.array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)


def test_the_validation_part_is_a_tenth_and_has_every_class() -> None:
    targets = np.arange(1000) % 20
    for seed in range(20):
        part = validation_part(targets, MULTICLASS, np.random.default_rng(seed))
        assert part.sum() == 100
        assert len(np.unique(targets[part])) == 20


def test_the_validation_part_has_every_label_of_several() -> None:
    targets = (np.arange(400)[:, None] % 8 == np.arange(8)).astype(np.float32)
    targets[:, 7] = 0  # a label that never occurs is not waited for
    part = validation_part(targets, MULTILABEL, np.random.default_rng(0))
    assert part.sum() == 40
    assert (targets[part].sum(axis=0) > 0).tolist() == [True] * 7 + [False]


def test_more_classes_than_a_tenth_holds_still_give_a_part() -> None:
    part = validation_part(np.arange(50), MULTICLASS, np.random.default_rng(0))
    assert part.sum() == 5


def test_classes_are_counted_where_they_occur() -> None:
    assert classes_in(np.array([3, 3, 7]), MULTICLASS) == 2
    assert classes_in(np.array([[1, 0, 1], [1, 0, 0]], dtype=np.float32), MULTILABEL) == 2
