"""Linear evaluation: a model folder and labelled sounds in; accuracy or mAP per task and tables out.

The protocol is EVAR's (arXiv 2204.07402, section IV-B): frozen embeddings, StandardScaler, one linear
layer, early stopping, the mean over folds and seeds. It differs in that a clip is embedded whole, as the
server does it, that the log-mel is normalised by the model's own statistics rather than by those of each
task, that every task has one learning rate unless told otherwise, and that two-class tasks work.

The 95 % interval is a bootstrap over the test clips of all folds, of the mean over the seeds: it tells how
far another test set of this size might move the figure, which is far more than the seeds do.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from service.process.files import write_whole
from training.probe.labelled import LabelledTask, Split, splits_of
from training.probe.linear import (
    LEARNING_RATE,
    MULTICLASS,
    Embeddings,
    LinearHead,
    Targets,
    fit,
    metric_of,
    validation_part,
)

SEEDS = (42, 43, 44)
BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True)
class Result:
    """One task under one embedding. `values`: splits x seeds; `value` their mean; `ci95` its interval."""

    task: str
    metric: str
    value: float
    ci95: tuple[float, float]
    classes: int
    test_clips: int
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    learning_rate: float
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Predictions:
    """The test clips of all splits of a task: targets, and the logits of each seed (seeds, n, C)."""

    targets: Targets
    logits: Embeddings

    @classmethod
    def joined(cls, targets: list[Targets], logits: list[list[Embeddings]]) -> "Predictions":
        """Of all splits: per split the targets (n,) and the logits (n, C) of each seed."""
        every: Targets = np.concatenate(targets)  # type: ignore[assignment]
        return cls(every, np.concatenate([np.stack(one) for one in logits], axis=1))


def evaluate_task(
    task: LabelledTask,
    embeddings: Embeddings,
    *,
    seeds: Iterable[int] = SEEDS,
    test_folds: tuple[str, ...] = (),
    learning_rate: float = LEARNING_RATE,
) -> tuple[Result, Predictions]:
    """embeddings: (n, D), one per clip."""
    seeds = tuple(seeds)
    splits = splits_of(task, test_folds)
    logits = [
        [
            fit_split(task, embeddings, split, seed=seed, learning_rate=learning_rate).logits(
                embeddings[split.test]
            )
            for seed in seeds
        ]
        for split in splits
    ]
    targets = [task.targets[split.test] for split in splits]
    values = [
        tuple(metric_of(one, truth, task.kind) for one in of_split)
        for of_split, truth in zip(logits, targets, strict=True)
    ]
    predictions = Predictions.joined(targets, logits)
    result = Result(
        task=task.name,
        metric=task.metric,
        value=float(np.mean(values)),
        ci95=interval(predictions, task.kind),
        classes=len(task.labels),
        test_clips=len(predictions.targets),
        splits=tuple(split.name for split in splits),
        seeds=seeds,
        learning_rate=learning_rate,
        values=tuple(values),
    )
    return result, predictions


def fit_split(
    task: LabelledTask,
    embeddings: Embeddings,
    split: Split,
    *,
    seed: int,
    learning_rate: float = LEARNING_RATE,
) -> LinearHead:
    """The head of one split; where it names no clips to stop on, a tenth of its training clips is drawn."""
    train, valid = split.train, split.valid
    if not valid.any():
        rows = np.flatnonzero(train)
        valid = np.zeros(len(train), dtype=bool)
        valid[rows] = validation_part(task.targets[rows], task.kind, np.random.default_rng(seed))
        train = train & ~valid
    return fit(
        embeddings[train],
        task.targets[train],
        embeddings[valid],
        task.targets[valid],
        n_classes=len(task.labels),
        task=task.kind,
        seed=seed,
        learning_rate=learning_rate,
    )


def interval(predictions: Predictions, kind: str) -> tuple[float, float]:
    """(2.5 %, 97.5 %) of the metric over draws of the test clips with replacement, mean over the seeds."""
    random = np.random.default_rng(0)
    n = len(predictions.targets)
    if kind == MULTICLASS:
        right = (predictions.logits.argmax(axis=-1) == predictions.targets).mean(
            axis=0
        )  # (n,) over the seeds
        draws = right[random.integers(0, n, (BOOTSTRAP_DRAWS, n))].mean(axis=1)
    else:
        chosen = random.integers(0, n, (BOOTSTRAP_DRAWS // 5, n))
        draws = np.array(
            [
                np.mean([metric_of(one[rows], predictions.targets[rows], kind) for one in predictions.logits])
                for rows in chosen
            ]
        )
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def confusion(predictions: Predictions, n_classes: int) -> NDArray[np.int64]:
    """(C, C): how many clips of class i (row) were taken for class j, by the first seed's head."""
    matrix = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(matrix, (predictions.targets.astype(np.int64), predictions.logits[0].argmax(axis=-1)), 1)
    return matrix


def write_results(path: Path, results: dict[str, list[Result]], about: dict[str, str]) -> None:
    """JSON: `about`, and per embedding (the model, a baseline) its tasks and their plain mean."""
    content = {
        **about,
        "results": {
            name: {"mean": mean_of(tasks), "tasks": [asdict(task) for task in tasks]}
            for name, tasks in results.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


def mean_of(results: list[Result]) -> float:
    return float(np.mean([result.value for result in results]))


def card_rows(results: dict[str, list[Result]], about: dict[str, str]) -> list[dict[str, JsonValue]]:
    """For the model's card: its result per task, beside those of the baselines."""
    (_, own), *others = results.items()
    rows = []
    for position, result in enumerate(own):
        row: dict[str, JsonValue] = {
            "task": result.task,
            "metric": result.metric,
            "value": round(result.value, 4),
            "ci95": [round(bound, 4) for bound in result.ci95],
            "split": ", ".join(result.splits),
            "test_clips": result.test_clips,
            "seeds": len(result.seeds),
            "precision": about["precision"],
            "date": about["date"],
        }
        rows.append(row | {name: round(tasks[position].value, 4) for name, tasks in others})
    return rows


def merged_rows(
    kept: list[dict[str, JsonValue]], new: list[dict[str, JsonValue]]
) -> list[dict[str, JsonValue]]:
    """The rows of a card with those of the tasks that were evaluated anew."""
    return list({row.get("task"): row for row in [*kept, *new]}.values())


def table(results: dict[str, list[Result]]) -> str:
    """One row per task, one column per embedding, as Markdown."""
    names = list(results)
    lines = ["| task | metric | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for rows in zip(*results.values(), strict=True):
        cells = [f"{row.value:.3f} ({row.ci95[0]:.3f}-{row.ci95[1]:.3f})" for row in rows]
        lines.append(f"| {rows[0].task} | {rows[0].metric} | " + " | ".join(cells) + " |")
    lines.append("| mean | | " + " | ".join(f"{mean_of(tasks):.3f}" for tasks in results.values()) + " |")
    return "\n".join(lines)
