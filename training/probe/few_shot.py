"""Few examples: embeddings of labelled clips in, the accuracy with 1, 3, 5 … examples per class out.

    an episode    `ways` classes are drawn, of each `shots` clips to learn from; its other clips are the test

    standardise by background sounds ─► unit length ─► nearest prototype: the mean of the examples, by cosine
                                                   └─► logistic regression, C = 30

The background (other sounds than those of the task) stands for what a service has seen before its user comes
with examples; without it the test clips themselves would tell how the numbers are spread.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from training.clips import DataError
from training.probe.linear import Embeddings, scaler_of

C = 30.0  # inverse regularisation: the vectors have unit length, a few of them can always be told apart
MAX_ITERATIONS = 2000
BACKGROUND_CLIPS = 1000
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class FewShot:
    """The mean accuracy over the episodes with so many examples per class, and its standard error."""

    shots: int
    prototype: float
    logistic: float
    prototype_error: float
    logistic_error: float


def few_shot(
    embeddings: Embeddings,
    classes: Classes,
    background: Embeddings,
    *,
    ways: int = 5,
    shots: Sequence[int] = (1, 3, 5),
    episodes: int = 60,
    seed: int = 42,
) -> list[FewShot]:
    """embeddings: (n, D) of clips with `classes` (n,); background: (m, D), other sounds. Raises DataError."""
    vectors = unit(embeddings, *scaler_of(background))
    random = np.random.default_rng(seed)
    results = []
    for n in shots:
        able = [one for one in np.unique(classes) if (classes == one).sum() > n]
        if len(able) < ways:
            raise DataError(f"{len(able)} classes have more than {n} clips: too few for {ways} ways.")
        scores = np.array([episode(vectors, classes, random, able, ways, n) for _ in range(episodes)])
        means, errors = scores.mean(axis=0), scores.std(axis=0) / np.sqrt(episodes)
        results.append(FewShot(n, *map(float, means), *map(float, errors)))
    return results


def background_of(paths: Sequence[Path], asked: Collection[Path]) -> list[Path]:
    """At most BACKGROUND_CLIPS sounds that are not asked about. Raises DataError where there are none."""
    others = sorted(set(paths) - set(asked))
    if not others:
        raise DataError("Every sound belongs to the tasks: name others to standardise by, with --background.")
    random = np.random.default_rng(0)
    rows = random.permutation(len(others))[:BACKGROUND_CLIPS]
    return [others[row] for row in sorted(rows)]


def episode(
    vectors: Embeddings,
    classes: Classes,
    random: np.random.Generator,
    able: Sequence[np.int64],
    ways: int,
    shots: int,
) -> tuple[float, float]:
    """The accuracies of nearest prototype and of logistic regression in one draw."""
    train, test = [], []
    for one in random.choice(able, ways, replace=False):
        rows = random.permutation(np.flatnonzero(classes == one))
        train.append(rows[:shots])
        test.append(rows[shots:])
    learnt, asked = np.concatenate(train), np.concatenate(test)
    prototypes = np.stack([vectors[rows].mean(axis=0) for rows in train])
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    names = np.array([classes[rows[0]] for rows in train])
    nearest = names[(vectors[asked] @ prototypes.T).argmax(axis=1)]
    regression = LogisticRegression(C=C, max_iter=MAX_ITERATIONS).fit(vectors[learnt], classes[learnt])
    told = regression.predict(vectors[asked])
    return float((nearest == classes[asked]).mean()), float((told == classes[asked]).mean())


def unit(embeddings: Embeddings, mean: Embeddings, std: Embeddings) -> Embeddings:
    """(n, D) -> (n, D): standardised per number, then of unit length."""
    standard = (embeddings - mean) / std
    lengths = np.linalg.norm(standard, axis=1, keepdims=True)
    return np.asarray(standard / np.maximum(lengths, 1e-12), dtype=np.float32)


def table(results: Sequence[FewShot]) -> str:
    """As Markdown, one row per number of examples."""
    lines = ["| examples per class | nearest prototype | logistic regression |", "|---|---|---|"]
    lines += [
        f"| {row.shots} | {row.prototype:.3f} ± {row.prototype_error:.3f} "
        f"| {row.logistic:.3f} ± {row.logistic_error:.3f} |"
        for row in results
    ]
    return "\n".join(lines)
