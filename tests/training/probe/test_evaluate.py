import json
from pathlib import Path

import numpy as np
import pytest

from training.probe.evaluate import (
    Predictions,
    card_rows,
    confusion,
    evaluate_task,
    interval,
    merged_rows,
    table,
    write_results,
)
from training.probe.labelled import LabelledClip, LabelledTask


def task_of(labels: list[tuple[str, ...]], parts: list[str]) -> LabelledTask:
    clips = [
        LabelledClip(Path(f"{i}.wav"), label, part)
        for i, (label, part) in enumerate(zip(labels, parts, strict=True))
    ]
    return LabelledTask("toy", tuple(clips))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def two_classes(random) -> tuple[LabelledTask, np.ndarray]:
    """Two classes that a plane separates: EVAR's own classifier scores 0.69 on such data."""
    labels = [("ab"[i % 2],) for i in range(120)]
    x = random.normal(size=(120, 8)).astype(np.float32)
    x[:, 0] += [4.0 if label == ("a",) else -4.0 for label in labels]
    return task_of(labels, [str(1 + i // 40) for i in range(120)]), x


def test_a_separable_two_class_task_scores_one(two_classes):
    task, x = two_classes
    result, _ = evaluate_task(task, x, seeds=(42,), learning_rate=0.1)
    assert result.value == 1.0
    assert result.splits == ("fold 1", "fold 2", "fold 3")
    assert result.test_clips == 120


def test_embeddings_without_information_score_chance_within_the_interval(random):
    labels = [("abcd"[i % 4],) for i in range(400)]
    task = task_of(labels, ["train" if i < 200 else "test" for i in range(400)])
    x = random.normal(size=(400, 6)).astype(np.float32)
    result, _ = evaluate_task(task, x, seeds=(1, 2))
    low, high = result.ci95
    assert low <= 0.25 <= high
    assert low < result.value < high


def test_the_seeds_repeat_and_differ(two_classes, random):
    task, x = two_classes
    noisy = x + random.normal(size=x.shape).astype(np.float32) * 4
    first, _ = evaluate_task(task, noisy, seeds=(42, 43))
    again, _ = evaluate_task(task, noisy, seeds=(42, 43))
    assert first == again
    assert len(first.values[0]) == 2


def test_several_labels_give_a_mean_average_precision(random):
    labels = [
        tuple(name for name, bit in zip("xyz", f"{i % 8:03b}", strict=True) if bit == "1") or ("none",)
        for i in range(240)
    ]
    task = task_of(labels, ["train" if i < 160 else "test" for i in range(240)])
    x = task.targets + random.normal(size=task.targets.shape).astype(np.float32) * 0.05
    result, _ = evaluate_task(task, x, seeds=(42,), learning_rate=0.1)
    assert result.metric == "mAP"
    assert result.value > 0.98


def test_the_interval_of_a_metric_by_hand():
    targets = np.zeros(100, dtype=np.int64)
    logits = np.zeros((1, 100, 2), dtype=np.float32)
    logits[0, :80, 0] = 1  # 80 right
    logits[0, 80:, 1] = 1
    low, high = interval(Predictions(targets, logits), "multiclass")
    # a binomial of 100 draws at 0.8 has a standard deviation of 0.04
    assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.02)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.02)


def test_the_confusion_matrix_counts_truth_in_rows():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]][None]
    matrix = confusion(Predictions(np.array([0, 0, 1, 2]), logits), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_results_are_written_as_json_as_a_table_and_for_the_card(two_classes, random, tmp_path):
    task, x = two_classes
    own, _ = evaluate_task(task, x, seeds=(42,), learning_rate=0.1)
    other, _ = evaluate_task(task, random.normal(size=x.shape).astype(np.float32), seeds=(42,))
    results = {"byola": [own], "untrained": [other]}
    about = {"model": "byola", "precision": "float32", "date": "2026-01-01"}
    write_results(tmp_path / "results.json", results, about)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["results"]["byola"]["mean"] == 1.0
    assert written["results"]["byola"]["tasks"][0]["splits"] == ["fold 1", "fold 2", "fold 3"]
    assert "| toy | accuracy | 1.000" in table(results)
    (row,) = card_rows(results, about)
    assert (row["task"], row["value"], row["untrained"]) == ("toy", 1.0, round(other.value, 4))


def test_a_card_keeps_the_rows_of_tasks_that_were_not_evaluated():
    kept = [{"task": "a", "value": 0.1}, {"task": "b", "value": 0.2}]
    rows = merged_rows(kept, [{"task": "b", "value": 0.9}, {"task": "c", "value": 0.3}])
    assert [(row["task"], row["value"]) for row in rows] == [("a", 0.1), ("b", 0.9), ("c", 0.3)]
