"""Embeddings of real sounds in, the projection out by which unrelated ones have a cosine near 0.

    embeddings (n, D) ─► weighted mean: the centre
                      ─► weighted covariance ─► its K largest eigenvectors: the rotation
                                             ─► 1 / sqrt(variance + shrinkage x mean variance): the scales

Whitening (H. Jégou, O. Chum, ECCV 2012) makes what all sounds differ in count less; the shrinkage keeps what
hardly varies, and is mostly noise, from counting most. service/inference/projection.py applies it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy.linalg import eigh

from service.inference.card import PROJECTION_FILE, ProjectionFacts, load_card, sha256_of, write_card
from service.inference.model import GRAPH_FILES, Model, Precision
from service.inference.projection import Projection
from service.process.files import write_whole
from training.clips import DataError
from training.probe.linear import Embeddings

COMPONENTS = 512
PAIRS = 20_000  # that the median cosine is of
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Axes:
    """Of many embeddings. centre: (D,); rotation: (K, D); variances: (K,) along it, descending; rest: the
    mean variance along the directions beyond."""

    centre: Embeddings
    rotation: Embeddings
    variances: Weights
    rest: float

    def projection(self, shrinkage: float | None = None) -> Projection:
        """shrinkage: in mean variances; None: no whitening."""
        K, D = self.rotation.shape
        if shrinkage is None:
            return Projection(self.centre, self.rotation, np.ones(K, np.float32), 1.0)
        mean = (self.variances.sum() + (D - K) * self.rest) / D
        scales = np.sqrt((self.variances[0] + shrinkage * mean) / (self.variances + shrinkage * mean))
        rest = np.sqrt((self.variances[0] + shrinkage * mean) / (self.rest + shrinkage * mean))
        return Projection(self.centre, self.rotation, scales.astype(np.float32), float(np.float32(rest)))


def axes_of(embeddings: Embeddings, weights: Weights | None = None, *, components: int = COMPONENTS) -> Axes:
    """embeddings: (n, D); weights: (n,), how much each counts (default: the same). Raises DataError where n
    is too small for so many components."""
    n, D = embeddings.shape
    K = min(components, D)
    if n <= K:
        raise DataError(
            f"{K} components take more than {K} sounds, and there are {n}: give more, or ask for fewer."
        )
    share = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    centre = share @ embeddings.astype(np.float64)
    spread = (embeddings - centre) * np.sqrt(share)[:, None]
    covariance = spread.T @ spread
    variances, vectors = eigh(covariance, subset_by_index=[D - K, D - 1])
    rotation = vectors[:, ::-1].T
    signs = np.sign(rotation[np.arange(K), np.abs(rotation).argmax(axis=1)])
    variances = np.maximum(variances[::-1], 0)
    left = max(float(np.trace(covariance) - variances.sum()), 0.0)
    rest = left / (D - K) if K < D else float(variances[-1])
    # As in the file: the axes in float16.
    rotation = (rotation * signs[:, None]).astype(np.float16).astype(np.float32)
    return Axes(centre.astype(np.float32), rotation, variances, rest)


def balanced(groups: list[str]) -> Weights:
    """(n,): each group counts the same, and each sound the same within its group."""
    names, of_sound, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(names) * counts[of_sound]), dtype=np.float64)


def median_cosine(vectors: Embeddings, weights: Weights | None = None) -> float:
    """Of PAIRS of different vectors (n, D), drawn by their weights."""
    random = np.random.default_rng(0)
    share = None if weights is None else weights / weights.sum()
    first, second = random.choice(len(vectors), size=(2, PAIRS), p=share)
    pairs = first != second
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return float(np.median(np.einsum("nd,nd->n", unit[first[pairs]], unit[second[pairs]])))


def write_projection(folder: Path, projection: Projection, facts: ProjectionFacts) -> Path:
    """Write it into the model folder, into the card what it was measured on, its hash and its self-test. What
    the folder had is replaced."""
    path = folder / PROJECTION_FILE
    tensors: dict[str, NDArray[Any]] = {
        "centre": projection.centre,
        "rotation": projection.rotation.astype(np.float16),
        "scales": projection.scales,
        "rest": np.array([projection.rest], dtype=np.float32),
    }
    write_whole(path, save(tensors))
    card = load_card(folder)
    files = {**card.files, path.name: sha256_of(path)}
    card = card.model_copy(update={"files": files, "projection": facts})
    write_card(folder, card)
    if card.self_test:
        known: tuple[Precision, ...] = ("float32", "float16", "int8")
        there = [each for each in known if GRAPH_FILES[each] in card.files]
        projected = {
            each: found
            for each in there
            if (found := Model.load(folder, device="cpu", precision=each).projected_fingerprint())
        }
        test = card.self_test.model_copy(update={"projected": projected})
        write_card(folder, card.model_copy(update={"self_test": test}))
    return path
