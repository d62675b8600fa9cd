"""How good an encoder is while it trains: labelled clips and an encoder in, a figure per task out.

    clips ─► log-mel ─► encoder, as it would be exported ─► pooled ─► ridge regression ─► figure

Each task is tested on its split test, or its last fold, with at most TRAIN and TEST clips, always the same:
it takes seconds. Nothing draws from torch's random numbers: training goes on as if nobody had looked. The
figure is not that of `evaluate`, which trains a head on all clips: compare it with itself alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders import Student
from encoders.frontend import Frontend
from training.clips import Clips, DataError, load_clips
from training.logmel import LogMel
from training.probe.labelled import LabelledTask, splits_of
from training.probe.linear import MULTICLASS, Embeddings, Targets, metric_of, scaler_of

Watch = Callable[[Student, float, float], dict[str, float]]  # encoder, mean, std of its log-mels -> figures

TRAIN, TEST = 400, 200  # clips of a task
LONGEST_S = 3.0  # of a clip: what comes after is not heard
BATCH_S = 40.0  # of sound at once
RIDGE = 0.3  # on the diagonal of the similarities, which is 1 in the mean


@dataclass(frozen=True)
class WatchedTask:
    """train, test: the numbers of its clips among all that are embedded; targets of each."""

    name: str
    kind: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    train_targets: Targets
    test_targets: Targets


def watch_of(tasks: list[LabelledTask], *, frontend: Frontend, cache: Path, device: torch.device) -> Watch:
    """The function that is called while training; the clips are decoded here. Raises DataError."""
    chosen = {task.name: some_of(task) for task in tasks}
    paths = sorted({task.clips[i].path for task in tasks for part in chosen[task.name] for i in part})
    clips = load_clips(paths, sample_rate=frontend.sample_rate, cache=cache)
    if clips.unreadable:
        raise DataError(f"{clips.unreadable[0].path} cannot be read: {clips.unreadable[0].reason}")
    number = {path: i for i, path in enumerate(paths)}
    watched = []
    for task in tasks:
        train, test = (
            np.array([number[task.clips[i].path] for i in part], dtype=np.int64) for part in chosen[task.name]
        )
        of_train, of_test = (task.targets[part] for part in chosen[task.name])
        watched.append(WatchedTask(task.name, task.kind, train, test, of_train, of_test))
    logmel = LogMel(frontend).to(device)

    def watch(encoder: Student, mean: float, std: float) -> dict[str, float]:
        vectors = embedded(clips, encoder, logmel, mean, std, device)
        figures = {f"probe/{task.name}": figure_of(task, vectors) for task in watched}
        return {**figures, "probe": float(np.mean([*figures.values()]))}

    return watch


def some_of(task: LabelledTask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clips to train and to test on, of all classes alike as far as they go."""
    split = splits_of(task)[-1]
    random = np.random.default_rng(0)

    def some(rows: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
        drawn = random.permutation(np.flatnonzero(rows))
        rank: dict[tuple[str, ...], int] = {}
        order = []
        for i in drawn:  # the first clip of every class, then the second …
            labels = task.clips[i].labels
            rank[labels] = rank.get(labels, 0) + 1
            order.append(rank[labels])
        return np.sort(drawn[np.argsort(order, kind="stable")][:count])

    return some(split.train | split.valid, TRAIN), some(split.test, TEST)


@torch.inference_mode()
def embedded(
    clips: Clips, encoder: Student, logmel: LogMel, mean: float, std: float, device: torch.device
) -> Embeddings:
    """(n, D) of all clips as they are served; clips of one length go through together."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    longest = int(LONGEST_S * clips.sample_rate)
    least = encoder.frontend.samples_for(max(encoder.windows.min_frames, encoder.windows.stride))
    lengths = np.clip(clips.lengths, least, longest)
    vectors = np.zeros((len(clips), encoder.embedding_size), dtype=np.float32)
    order = np.argsort(lengths, kind="stable")
    for length, group in groupby(order, key=lambda i: lengths[i]):
        alike = list(group)
        size = max(1, int(BATCH_S * clips.sample_rate / length))
        for part in (alike[i : i + size] for i in range(0, len(alike), size)):
            x = logmel(torch.stack([padded(clips, i, int(length)) for i in part]).to(device))
            vectors[part] = encoder.pool(encoder((x - mean) / std).float()).float().cpu().numpy()
    for module, was_training in modes:
        module.training = was_training
    return vectors


def padded(clips: Clips, number: int, length: int) -> Tensor:
    samples = torch.from_numpy(clips.segment(number, 0, length))
    return torch.nn.functional.pad(samples, (0, length - len(samples)))


def figure_of(task: WatchedTask, vectors: Embeddings) -> float:
    """Accuracy or mAP of the ridge regression from standardised embeddings to the classes."""
    train, test = vectors[task.train], vectors[task.test]
    mean, std = scaler_of(train)
    x, y = (train - mean) / std, (test - mean) / std
    wanted = one_hot(task.train_targets, task.kind)
    similarities = x @ x.T / x.shape[1] + RIDGE * np.eye(len(x), dtype=np.float32)
    weights = np.linalg.solve(similarities.astype(np.float64), wanted - wanted.mean(axis=0))
    scores = (y @ x.T / x.shape[1]) @ weights
    return metric_of(scores.astype(np.float32), task.test_targets, task.kind)


def one_hot(targets: Targets, kind: str) -> NDArray[np.float64]:
    if kind == MULTICLASS:
        return np.eye(int(targets.max()) + 1)[targets.astype(np.int64)]
    return targets.astype(np.float64)
