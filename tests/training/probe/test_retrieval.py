"""Retrieval on vectors whose neighbours are known, against scikit-learn's average precision."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from service.inference.projection import Projection
from training.clips import DataError
from training.probe.projection import axes_of
from training.probe.retrieval import forms, projections_of, retrieval, table

CLASSES = np.repeat(np.arange(6), 8).astype(np.int64)


def vectors(spread: float, offset: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.normal(size=(6, 16))
    return (offset + centres[CLASSES] + spread * random.normal(size=(48, 16))).astype(np.float32)


def test_classes_that_are_apart_are_found_whole() -> None:
    found = retrieval(vectors(0.01), CLASSES)
    assert (found.mean_ap, found.first) == (1.0, 1.0)
    assert found.related > 0.99 > found.unrelated


def test_it_is_scikit_learns_average_precision() -> None:
    rows = vectors(1.0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    expected = []
    for i in range(48):
        others = np.arange(48) != i
        expected.append(average_precision_score(CLASSES[others] == CLASSES[i], cosines[i, others]))
    found = retrieval(rows, CLASSES)
    assert found.mean_ap == pytest.approx(np.mean(expected), abs=1e-6)
    nearest = np.where(np.eye(48) > 0, -2, cosines).argmax(axis=1)
    assert found.first == pytest.approx((CLASSES[nearest] == CLASSES).mean())


def test_an_offset_hides_what_taking_off_the_centre_shows() -> None:
    rows = vectors(0.3, offset=30)
    axes = axes_of(rows, components=8)
    of_form = forms(rows, projections_of(axes, (0.1,)), (8, 4, 64))
    assert list(of_form) == [
        ("as they are", 16),
        ("centred", 16),
        ("centred", 8),
        ("centred", 4),
        ("whitened, 0.1", 16),
        ("whitened, 0.1", 8),
        ("whitened, 0.1", 4),
    ]
    found = {form: retrieval(each, CLASSES) for form, each in of_form.items()}
    assert found["as they are", 16].unrelated > 0.98
    assert abs(found["centred", 16].unrelated) < 0.3
    lines = table({form: {"toy": one} for form, one in found.items()}).splitlines()
    assert lines[0].startswith("| vectors | numbers | toy: mAP | toy: first |")
    assert len(lines) == 2 + len(found)


def test_a_label_with_one_sound_is_looked_for_by_nobody() -> None:
    rows = vectors(0.01)[[0, 1, 8]]
    assert retrieval(rows, np.array([0, 0, 1])).first == 1.0
    with pytest.raises(DataError, match="No label has two sounds"):
        retrieval(rows, np.arange(3))


def test_no_more_numbers_are_asked_for_than_there_are() -> None:
    axes = np.eye(4, 16, dtype=np.float32)
    projection = Projection(np.zeros(16, np.float32), axes, np.ones(4, np.float32), 1.0)
    assert [size for _, size in forms(vectors(1.0), {"own": projection}, (16, 4, 2))] == [16, 16, 4, 2]
