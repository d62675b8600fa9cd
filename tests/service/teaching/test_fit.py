"""Few examples in, a head out: against scikit-learn, and on clouds of points whose answers are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from service.inference.heads import Head, load_head
from service.teaching.fit import FALSE_ALARMS, Fitted, Lesson, border, fit
from service.teaching.head_file import head_file
from service.teaching.regression import (
    Scaling,
    Span,
    logits_of,
    softmax_regression,
    yes_or_no_regressions,
)
from service.teaching.report import report_of
from service.teaching.store import Example

D = 128


def clouds(
    n: int, labels: int, *, spread: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """n points around the mean of each label, which are the same for every seed."""
    means = np.random.default_rng(1).normal(size=(labels, D))
    classes = np.repeat(np.arange(labels), n)
    noise = np.random.default_rng(seed).normal(scale=spread, size=(n * labels, D))
    return (means[classes] + noise).astype(np.float32), classes


def background(n: int = 200, seed: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(scale=1.2, size=(n, D)).astype(np.float32)


def lesson_of(
    n: int,
    labels: int,
    *,
    task: str = "multiclass",
    outside: NDArray[np.float32] | None = None,
    spread: float = 1.0,
) -> Lesson:
    vectors, classes = clouds(n, labels, spread=spread)
    targets = np.eye(labels, dtype=bool)[classes]
    names = tuple(f"label {i}" for i in range(labels))
    others = np.zeros((0, D), np.float32)
    return Lesson(names, task, vectors, targets, np.arange(len(vectors)), others, outside)  # type: ignore[arg-type]


def examples_of(lesson: Lesson) -> list[Example]:
    return [
        Example(f"{i}-000", (lesson.labels[int(row.argmax())],), f"{i}.wav", 0, 1, "", "encoder", str(i))
        for i, row in enumerate(lesson.targets)
    ]


def served(lesson: Lesson, fitted: Fitted, folder: Path) -> Head:
    """As a server loads it from the file that the fit has made."""
    report = report_of(lesson, fitted, examples_of(lesson))
    path = folder / "taught.safetensors"
    path.write_bytes(head_file(fitted, lesson.labels, report, encoder="encoder", edits=1))
    return load_head(path, embedding_size=D)


def test_in_their_span_rows_give_the_regression_that_they_give_themselves() -> None:
    """scikit-learn on the 128 numbers of each row, against 30 numbers of the span. Both stop at a gradient
    that is small, not zero: 2 % of the largest weight."""
    vectors, classes = clouds(10, 3)
    rows, _ = Scaling.of(vectors, None)(vectors)
    span = Span(rows)
    assert span.features.shape == (30, 30)
    parameters = softmax_regression(span.features, classes, 3, strength=30.0)
    weights = span.weights(parameters[:, :-1])
    reference = LogisticRegression(C=30.0, max_iter=5000, tol=1e-8).fit(rows, classes)
    assert np.abs(weights - reference.coef_).max() < 0.02 * np.abs(reference.coef_).max()
    here, there = rows @ weights.T, rows @ reference.coef_.T
    assert np.abs((here - here.mean(1, keepdims=True)) - (there - there.mean(1, keepdims=True))).max() < 0.1


def test_a_yes_or_no_counts_both_sides_the_same() -> None:
    vectors, classes = clouds(20, 2, spread=2.0)
    vectors, yes = vectors[:25], (classes[:25] == 1)[:, None]  # 5 of 25
    rows, _ = Scaling.of(vectors, None)(vectors)
    (parameters,) = yes_or_no_regressions(rows, yes, strength=10.0)
    reference = LogisticRegression(C=10.0, class_weight="balanced", max_iter=5000, tol=1e-8).fit(
        rows, yes[:, 0]
    )
    assert np.abs(parameters[:-1] - reference.coef_[0]).max() < 0.02 * np.abs(reference.coef_).max()
    assert parameters[-1] == pytest.approx(reference.intercept_[0], abs=0.05)


def test_more_rows_than_numbers_need_no_span() -> None:
    vectors, classes = clouds(100, 2)
    span = Span(vectors)
    assert span.features is vectors
    parameters = softmax_regression(span.features, classes, 2, 1.0)
    assert (logits_of(vectors, parameters).argmax(axis=1) == classes).all()


@pytest.mark.parametrize("outside", [None, background()])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_from_one_example_of_each_label_on_other_sounds_are_told_right(
    n: int, outside: NDArray[np.float32] | None, tmp_path: Path
) -> None:
    lesson = lesson_of(n, 4, outside=outside)
    head = served(lesson, fit(lesson), tmp_path)
    vectors, classes = clouds(50, 4, seed=9)
    scores = head.score(vectors)
    assert scores.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (scores.argmax(axis=1) == classes).mean() > (0.97 if n > 1 else 0.9)
    assert (head.known is None) == (outside is None)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_what_is_none_of_the_labels_is_not_known(labels: int, task: str, tmp_path: Path) -> None:
    """Sounds like the background, none of which was in the fit; of 2 % that may be taken for a label three
    times as many are left to chance. What is missed is what held-out examples miss, and as many again."""
    lesson = lesson_of(10, labels, task=task, outside=background(), spread=0.7)
    fitted = fit(lesson)
    head = served(lesson, fitted, tmp_path)
    assert head.known is not None
    inside = head.score_and_know(clouds(100, labels, spread=0.7, seed=9)[0])[:, -1]
    outside = head.score_and_know(background(500, seed=11))[:, -1]
    assert (outside >= head.known.min_known).mean() <= 3 * FALSE_ALARMS
    assert (inside >= head.known.min_known).mean() > 0.9
    assert head.task == ("multiclass" if labels > 1 and task == "multiclass" else "multilabel")


def test_the_file_says_what_the_fit_says(tmp_path: Path) -> None:
    """Whether a sound is known goes by way of distances, thousandfold as large, in float32."""
    lesson = lesson_of(5, 3, outside=background())
    fitted = fit(lesson)
    head = served(lesson, fitted, tmp_path)
    assert head.known is not None
    vectors = np.concatenate([clouds(30, 3, seed=3)[0], background(300, seed=4)])
    scaled = (vectors - fitted.scaler_mean) / fitted.scaler_std
    bias = 1000.0 - head.known.means[0, 0]
    logits = scaled @ head.known.projection[0] + bias
    known = head.score_and_know(vectors)[:, -1] >= head.known.min_known
    sure = np.abs(logits - fitted.border) > 0.01
    assert (known[sure] == (logits[sure] >= fitted.border)).all()
    assert sure.mean() > 0.95


def test_passages_of_one_clip_are_left_out_together() -> None:
    """Ten copies of one point: with a copy on the other side of the fold, each would be told by itself."""
    vectors, classes = clouds(3, 2)
    copies = np.concatenate([vectors, np.repeat(vectors[:1], 10, axis=0)])
    targets = np.eye(2, dtype=bool)[np.concatenate([classes, np.ones(10, int)])]  # and of the other label
    clips = np.concatenate([np.arange(6), np.full(10, 6)])
    fitted = fit(Lesson(("a", "b"), "multiclass", copies, targets, clips, np.zeros((0, D), np.float32), None))
    assert fitted.held_out is not None
    assert (fitted.held_out.scores[6:, 0] > 0.5).all()  # nearest to the first point, which is an a


def test_where_examples_are_many_the_strength_is_chosen_and_few_folds_are_enough() -> None:
    fitted = fit(lesson_of(30, 3, outside=background(), spread=3.0))
    assert fitted.held_out is not None
    assert fitted.held_out.folds == 10
    assert fitted.strength in (10.0, 100.0, 1000.0)
    assert fit(lesson_of(4, 3)).strength == 100.0  # too few to choose


def test_equal_examples_and_constant_numbers_do_no_harm() -> None:
    vectors = np.zeros((6, D), np.float32)
    vectors[3:, 0] = 1.0
    targets = np.eye(2, dtype=bool)[[0, 0, 0, 1, 1, 1]]
    fitted = fit(Lesson(("a", "b"), "multiclass", vectors, targets, np.arange(6), vectors[:0], None))
    assert np.isfinite(fitted.weight).all()
    assert (fitted.scaler_std > 0).all()
    logits = (vectors - fitted.scaler_mean) / fitted.scaler_std @ fitted.weight.T + fitted.bias
    assert (logits.argmax(axis=1) == targets.argmax(axis=1)).all()


def test_a_border_lies_between_and_lets_few_of_the_others_in() -> None:
    inside, outside = np.float32([5, 6, 7]), np.float32([-3, -2, -1])
    assert -1 < border(inside, outside) <= 5
    mixed = np.linspace(0, 10, 101, dtype=np.float32)
    assert (mixed >= border(mixed - 20, mixed)).mean() <= FALSE_ALARMS + 0.01
    assert border(np.zeros(0, np.float32), outside) <= 0


def test_a_thousand_examples_of_three_thousand_numbers_take_memory_of_their_span_only() -> None:
    """How long it takes is measured (benchmarks/teach.py), not tested."""
    rows = np.random.default_rng(0).normal(size=(40, 3072)).astype(np.float32)
    assert Span(rows).features.shape == (40, 40)


# The axes of the model's own tags


def two_kinds(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors that differ in what they are along one of D numbers, and in all else along the others."""
    random = np.random.default_rng(seed)
    classes = np.arange(n) % 2
    vectors = random.normal(size=(n, D)) + 3
    vectors[:, 0] = 3 + 2 * classes - 1 + 0.3 * random.normal(size=n)
    return vectors.astype(np.float32), classes


def served_logits(fitted: Fitted, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return ((vectors - fitted.scaler_mean) / fitted.scaler_std) @ fitted.weight.T + fitted.bias


def test_one_example_of_each_is_enough_along_the_axes_of_tags() -> None:
    examples, asked = two_kinds(2, seed=1), two_kinds(500, seed=2)
    outside = two_kinds(300, seed=3)[0]
    axes = np.zeros((4, D), np.float32)
    axes[:, 0] = [1, -2, 3, 0.5]
    right = []
    for given in (None, axes):
        lesson = Lesson(
            ("a", "b"), "multiclass", examples[0], np.eye(2, dtype=bool)[examples[1]], np.arange(2),
            examples[0][:0], outside, given,
        )  # fmt: skip
        fitted = fit(lesson)
        assert fitted.weight.shape == (2, D)
        right.append((served_logits(fitted, asked[0]).argmax(axis=1) == asked[1]).mean())
    assert right[1] > 0.95
    assert right[1] > right[0] + 0.1


def test_axes_that_are_the_embedding_itself_change_nothing() -> None:
    """Twice the same numbers in a row are once the same: what is served, folded, must be too."""
    plain = lesson_of(6, 3, outside=background())
    doubled = replace(plain, axes=np.eye(D, dtype=np.float32))
    asked, _ = clouds(20, 3, seed=9)
    one, other = fit(plain), fit(doubled)
    np.testing.assert_allclose(served_logits(other, asked), served_logits(one, asked), atol=0.02)
    assert one.known is not None
    assert other.known is not None
    known = [each.known((asked - each.scaler_mean) / each.scaler_std) for each in (one, other)]  # type: ignore[misc]
    np.testing.assert_allclose(known[1], known[0], atol=0.12)  # two of 19 steps
