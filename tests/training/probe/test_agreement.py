"""Two heads' scores that one can compare by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from training.clips import DataError
from training.probe.agreement import agreement, shared_labels

TEACHER = np.array(
    [
        [0.9, 0.5, 0.1, 0.1, 0.1, 0.1, 0.0],
        [0.1, 0.8, 0.2, 0.3, 0.4, 0.2, 0.0],
        [0.6, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0],
    ],
    dtype=np.float32,
)


def test_a_head_agrees_with_itself() -> None:
    found = agreement(TEACHER, TEACHER)
    assert (found.first, found.map, found.labels, found.clips) == (1.0, 1.0, 3, 3)


def test_the_first_tag_may_be_any_of_the_teachers_first_five() -> None:
    own = np.eye(7, dtype=np.float32)[[1, 6, 4]]  # its second, its last, its fifth of five
    assert agreement(own, TEACHER).first == pytest.approx(2 / 3)


def test_the_precision_is_taken_over_the_labels_that_the_teacher_hears() -> None:
    own = np.random.default_rng(0).random((40, 7)).astype(np.float32)
    teacher = np.random.default_rng(1).random((40, 7)).astype(np.float32)
    teacher[:, 3] = 0.1  # never heard
    teacher[:, 4] = 0.9  # heard in all clips: nothing is told by it
    found = agreement(own, teacher)
    rest = [0, 1, 2, 5, 6]
    by_hand = [average_precision_score(teacher[:, k] > 0.3, own[:, k]) for k in rest]
    assert found.labels == 5
    assert found.map == pytest.approx(np.mean(by_hand))


def test_a_teacher_that_hears_nothing_is_told() -> None:
    with pytest.raises(DataError, match="hears no label"):
        agreement(TEACHER, np.zeros_like(TEACHER))


def test_labels_are_matched_by_name() -> None:
    assert shared_labels(("Music", "Dog", "Speech"), ("Speech", "Cat", "Music")) == ([2, 0], [0, 2])
    with pytest.raises(DataError, match="no label in common"):
        shared_labels(("dog",), ("Dog",))
