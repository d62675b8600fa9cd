"""A linear head for a served model: labelled sounds and a model folder in, `heads/<head>.safetensors` out.

The head is trained on embeddings from the served pipeline, so that it meets in service what it met here. The
file holds scaler_mean, scaler_std, weight and bias, and as metadata labels, task, training data and results.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save

from service.model import NAME, load_card, sha256_of, write_card

from .clips import DataError, write_whole
from .evaluate import Predictions, fit_split, interval
from .labelled import LabelledTask, Split, splits_of
from .linear import LEARNING_RATE, Embeddings, LinearHead


@dataclass(frozen=True)
class FittedHead:
    """A head and how it does on the clips that it was not trained on."""

    head: LinearHead
    labels: tuple[str, ...]
    results: dict[str, object]


def fit_head(
    task: LabelledTask,
    embeddings: Embeddings,
    *,
    test_fold: str | None = None,
    seed: int = 42,
    learning_rate: float = LEARNING_RATE,
) -> FittedHead:
    """Train on the split train (or all folds but `test_fold`), test on the rest. embeddings: (n, D)."""
    split = split_of(task, test_fold)
    head = fit_split(task, embeddings, split, seed=seed, learning_rate=learning_rate)
    test = embeddings[split.test]
    predictions = Predictions(task.targets[split.test], head.logits(test)[None])
    results: dict[str, object] = {
        "metric": task.metric,
        "value": round(head.metric(test, task.targets[split.test]), 4),
        "ci95": [round(bound, 4) for bound in interval(predictions, task.kind)],
        "test": split.name,
        "learning_rate": learning_rate,
        "train_clips": int((split.train | split.valid).sum()),
        "test_clips": int(split.test.sum()),
    }
    return FittedHead(head, task.labels, results)


def split_of(task: LabelledTask, test_fold: str | None) -> Split:
    splits = splits_of(task, (test_fold,) if test_fold else ())
    if len(splits) > 1:
        raise DataError(
            f"The task {task.name} has {len(splits)} folds: keep one for the test with --test-fold."
        )
    return splits[0]


def head_file(folder: Path, name: str) -> Path:
    """Where the head lies in the model folder. Raises DataError for a name that is no file's."""
    if not re.fullmatch(NAME, name):
        raise DataError(f"A head cannot be called '{name}': letters, digits, '.', '_' and '-' make a name.")
    return folder / "heads" / f"{name}.safetensors"


def write_head(folder: Path, name: str, fitted: FittedHead, training_data: str) -> Path:
    """Write the head into the model folder and its hash into the card; a head of that name is replaced."""
    path = head_file(folder, name)
    card = load_card(folder)
    path.parent.mkdir(exist_ok=True)
    head = fitted.head
    tensors = {"scaler_mean": head.mean, "scaler_std": head.std, "weight": head.weight, "bias": head.bias}
    metadata = {
        "labels": json.dumps(fitted.labels),
        "task": head.task,
        "training_data": training_data,
        "results": json.dumps(fitted.results),
    }
    write_whole(path, save(tensors, metadata=metadata))
    files = {**card.files, f"heads/{path.name}": sha256_of(path)}
    write_card(folder, card.model_copy(update={"files": files}))
    return path
