"""A linear head for a served model: labelled sounds and a model folder in, `heads/<head>.safetensors` out.

The head is trained on embeddings from the served pipeline, so that it meets in service what it met here. The
file holds scaler_mean, scaler_std, weight and bias, and as metadata labels, task, training data and results,
and of a head that was taught (taught_head.py) a threshold per label. A head of one label also
holds what tells that a sound is none of its labels (known.py).
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from service.inference.card import NAME, load_card, sha256_of, write_card
from service.inference.known import KnownSounds
from service.process.files import write_whole
from training.clips import DataError
from training.probe.evaluate import Predictions, fit_split, interval
from training.probe.known import FEWEST_TESTED, known_sounds, separation
from training.probe.labelled import LabelledTask, Split, splits_of
from training.probe.linear import LEARNING_RATE, MULTICLASS, Embeddings, LinearHead


@dataclass(frozen=True)
class FittedHead:
    """A head and how it does on the clips that it was not trained on."""

    head: LinearHead
    labels: tuple[str, ...]
    results: dict[str, object]
    thresholds: tuple[float, ...] = ()  # of a head that was taught: the score from which a label counts
    known: KnownSounds | None = None  # what tells that a sound is none of the labels


def fit_head(
    task: LabelledTask,
    embeddings: Embeddings,
    *,
    test_fold: str | None = None,
    seed: int = 42,
    learning_rate: float = LEARNING_RATE,
    none_of_these: dict[str, Embeddings] | None = None,
) -> FittedHead:
    """Train on the split train (or all folds but `test_fold`), test on the rest. embeddings: (n, D).

    none_of_these: by a name, embeddings (m, D) of sounds that are none of the labels.
    """
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
    known = None
    if task.kind == MULTICLASS:
        learnt = split.train | split.valid
        targets: NDArray[np.int64] = task.targets[learnt].astype(np.int64)
        known = known_sounds(
            head.scaled(embeddings[learnt]), targets, head.scaled(test), n_classes=len(task.labels)
        )
    if none_of_these and known is None:
        raise DataError(
            f"What is none of the labels cannot be told: that takes one label a clip and {FEWEST_TESTED} "
            f"clips that are tested on, and the task {task.name} has {int(split.test.sum())}."
        )
    if known and none_of_these:
        others = {name: head.scaled(vectors) for name, vectors in none_of_these.items()}
        apart = separation(known, head.scaled(test), others)
        known = replace(known, min_known=apart.min_known)
        results["none_of_these"] = {
            "auroc": apart.auroc,
            "min_known": apart.min_known,
            "balanced_accuracy": apart.balanced_accuracy,
            "clips": {name: len(vectors) for name, vectors in none_of_these.items()},
        }
    return FittedHead(head, task.labels, results, known=known)


def split_of(task: LabelledTask, test_fold: str | None) -> Split:
    """The one split of a head, with every class in what is trained on. Raises DataError."""
    splits = splits_of(task, (test_fold,) if test_fold else ())
    if len(splits) > 1:
        raise DataError(
            f"The task {task.name} has {len(splits)} folds: keep one for the test with --test-fold."
        )
    (split,) = splits
    learnt = {
        label
        for clip, is_used in zip(task.clips, split.train | split.valid, strict=True)
        if is_used
        for label in clip.labels
    }
    if never := sorted(set(task.labels) - learnt):
        raise DataError(
            f"The task {task.name} has '{never[0]}' in {split.name} alone, and a class is learnt from sounds "
            "that are trained on: give some, or leave the class out."
        )
    return split


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
    tensors: dict[str, NDArray[Any]] = {"weight": _halved(head.weight), "bias": head.bias}
    metadata = {
        "labels": json.dumps(fitted.labels),
        "task": head.task,
        "training_data": training_data,
        "results": json.dumps(fitted.results),
    }
    if head.hidden:
        tensors |= {"hidden_weight": _halved(head.hidden.weight), "hidden_bias": head.hidden.bias}
        metadata["hidden"] = "hardswish"
    else:
        tensors |= {"scaler_mean": head.mean, "scaler_std": head.std}
    if fitted.known:
        tensors |= {
            "known_projection": fitted.known.projection.astype(np.float16),
            "known_means": fitted.known.means.astype(np.float16),
            "known_distances": fitted.known.distances,
        }
        metadata["min_known"] = repr(fitted.known.min_known)
    if fitted.thresholds:
        metadata["thresholds"] = json.dumps(fitted.thresholds)
    write_whole(path, save(tensors, metadata=metadata))
    files = {**card.files, f"heads/{path.name}": sha256_of(path)}
    network = path.with_suffix(".onnx")  # what it replaces may have been a graph
    files.pop(f"heads/{network.name}", None)
    write_card(folder, card.model_copy(update={"files": files}))
    network.unlink(missing_ok=True)
    return path


def _halved(weights: NDArray[np.float32]) -> NDArray[Any]:
    """In float16, which halves the file, where its range holds them: up to 65,504."""
    return (
        weights.astype(np.float16) if np.abs(weights).max(initial=0) < np.finfo(np.float16).max else weights
    )
