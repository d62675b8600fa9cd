"""Rows and what they are in, weights that tell it out: logistic regression by L-BFGS, in the rows' own span.

    embeddings (N, D) ─► - mean, / std of the background ─► at length 1: rows (N, D)
    rows @ rows.T = L @ L.T ─► L (N, N) stands for the rows, however many numbers D an embedding has
    L-BFGS ─► weights of L (C, N) ─► weights of an embedding (C, D)

The rows have length 1 while they are learnt from, so that the few examples of a label differ in direction
alone; the weights are served on embeddings of any length, which are divided by the usual one (measured with
five examples of each of five labels: 0.86 right, with rows of their own length 0.84).

Every label counts the same, however many examples it has, and so do both sides of a yes or no.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Task = Literal["multiclass", "multilabel"]

MAX_ITERATIONS = 150
TOLERANCE = 1e-4  # of the gradient's largest number, while a label's examples weigh as many as there are
RIDGE = 1e-5  # on K's diagonal, whose numbers are about 1: rows that are equal make no root


@dataclass(frozen=True)
class Scaling:
    """x = (embedding - mean) / std, whose length is about `length`. mean, std: (D,)."""

    mean: Array
    std: Array
    length: float

    @classmethod
    def of(cls, examples: Array, background: Array | None, shares: Array | None = None) -> "Scaling":
        """By the background, which stands for all that is heard; without one by the examples themselves.
        shares: (D,), by how much each number counts; None: all the same."""
        seen = examples if background is None else background
        mean, std = seen.mean(axis=0, dtype=np.float64), seen.std(axis=0, dtype=np.float64)
        # A number that hardly moves in the background must not drown the others.
        std = np.maximum(std, 0.1 * np.median(std[std > 0])) if (std > 0).any() else np.ones_like(std)
        if shares is not None:
            std = std / shares
        standard = (examples - mean) / std
        length = float(np.sqrt(np.square(standard).sum(axis=1)).mean()) or 1.0
        return cls(mean.astype(np.float32), std.astype(np.float32), length)

    def __call__(self, embeddings: Array) -> tuple[Array, Array]:
        """(n, D) -> (n, D) of length 1, and what they were longer than usual by, (n,)."""
        rows = np.asarray((embeddings - self.mean) / (self.std * self.length), dtype=np.float32)
        lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-6)
        return rows / lengths[:, None], lengths


class Span:
    """Rows (N, D) in, N rows of N numbers out, which have the same products among one another."""

    def __init__(self, rows: Array) -> None:
        self._rows = rows
        self._root: Floats | None = None
        if len(rows) < rows.shape[1]:
            products = (rows @ rows.T).astype(np.float64)
            products[np.diag_indices_from(products)] += RIDGE
            self._root = np.asarray(np.linalg.cholesky(products), np.float64)
        self.features: Array = rows if self._root is None else self._root.astype(np.float32)

    def weights(self, of_features: Floats) -> Array:
        """(C, N) weights of the features -> (C, D) weights of the rows."""
        if self._root is None:
            return of_features.astype(np.float32)
        # features = root, rows.T @ a with root.T @ a = w: a = inv(root.T) @ w = inv(K) @ root @ w.
        alphas = cho_solve((self._root, True), self._root @ of_features.T)
        return np.asarray(alphas.T.astype(np.float32) @ self._rows)


def softmax_regression(
    features: Array, classes: NDArray[np.int64], n_classes: int, strength: float, start: Floats | None = None
) -> Floats:
    """(n, N) and (n,) -> (C, N + 1), the bias behind the weights. strength: of the examples against the
    weights' own size."""
    weights = _balanced(classes, n_classes)
    targets = np.zeros((len(features), n_classes), np.float32)
    targets[np.arange(len(features)), classes] = 1

    def loss_of(logits: Array) -> tuple[float, Array]:
        top = logits.max(axis=1, keepdims=True)
        powers = np.exp(logits - top)
        sums = powers.sum(axis=1, keepdims=True)
        right = (logits * targets).sum(axis=1)
        losses = np.log(sums[:, 0]) + top[:, 0] - right
        return float(losses @ weights), (powers / sums - targets) * weights[:, None]

    return _minimised(features, n_classes, loss_of, strength, start)


def yes_or_no_regressions(
    features: Array, yes: NDArray[np.bool_], strength: float, start: Floats | None = None
) -> Floats:
    """(n, N) and (n, C) -> (C, N + 1): for each label its own."""
    n_yes = yes.sum(axis=0)
    n = len(features)
    weights = np.where(yes, n / (2 * np.maximum(1, n_yes)), n / (2 * np.maximum(1, n - n_yes))).astype(
        np.float32
    )
    signs = np.where(yes, 1, -1).astype(np.float32)

    def loss_of(logits: Array) -> tuple[float, Array]:
        margins = logits * signs
        losses = np.logaddexp(0, -margins)
        slopes = -signs * (1 - np.tanh(margins / 2)) / 2
        return float((losses * weights).sum()), slopes * weights

    return _minimised(features, yes.shape[1], loss_of, strength, start)


def _minimised(
    features: Array,
    n_outputs: int,
    loss_of: Callable[[Array], tuple[float, Array]],
    strength: float,
    start: Floats | None,
) -> Floats:
    """strength x loss + half the squared length of the weights, at its minimum."""
    from scipy.optimize import minimize  # 20 MB that only a server needs which fits

    n, N = features.shape
    begin = np.zeros((n_outputs, N + 1)) if start is None else start

    def objective(flat: Floats) -> tuple[float, Floats]:
        parameters = flat.reshape(n_outputs, N + 1)
        weight = parameters[:, :-1].astype(np.float32)
        loss, slopes = loss_of(features @ weight.T + parameters[:, -1].astype(np.float32))
        gradient = np.empty_like(parameters)
        gradient[:, :-1] = slopes.T @ features
        gradient[:, -1] = slopes.sum(axis=0)
        gradient[:, :-1] += parameters[:, :-1] / strength
        return loss + float(np.square(parameters[:, :-1]).sum()) / (2 * strength), gradient.ravel()

    found = minimize(
        objective,
        begin.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE * n, "maxcor": 10},
    )
    return np.asarray(found.x).reshape(n_outputs, N + 1)


def logits_of(features: Array, parameters: Floats) -> Array:
    """(n, N) and (C, N + 1) -> (n, C)."""
    return np.asarray(features @ parameters[:, :-1].T + parameters[:, -1], dtype=np.float32)


def _balanced(classes: NDArray[np.int64], n_classes: int) -> Array:
    """(n,) weights whose sum is n, and the same for every class."""
    counts = np.bincount(classes, minlength=n_classes)
    there = max(1, int((counts > 0).sum()))
    return (len(classes) / (there * np.maximum(1, counts)))[classes].astype(np.float32)
