"""What a head was trained and tested on in, what tells that a sound is none of its labels out (KnownSounds).

    training clips, scaled ─► K principal components, whitened ─► minus the mean of their class
                           ─► one covariance for all classes, + 0.01 on its diagonal
    test clips    ─► their distances to the nearest class mean: `known` is the share of them that are at least
                     as far away as a sound
    none of these ─► the `min_known` that parts them best from the test clips

The classes' distances are Mahalanobis's with a covariance that all share (K. Lee et al., arXiv 1807.03888).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score, roc_curve

from service.inference.known import KnownSounds
from training.probe.linear import Embeddings

COMPONENTS = 64
CLIPS_PER_COMPONENT = 4  # or the covariance of a few clips is taken for that of the class
RIDGE = 0.01  # on the diagonal of the covariance
FEWEST_TESTED = 20  # so that a share of them says something
MOST_DISTANCES = 1000  # kept in the file


@dataclass(frozen=True)
class Separation:
    """How well sounds of a head's classes are told from others. auroc: by the name of the others, and of
    all; min_known parts them best, and balanced_accuracy is how well."""

    auroc: dict[str, float]
    min_known: float
    balanced_accuracy: float


def known_sounds(
    train: Embeddings, targets: NDArray[np.int64], test: Embeddings, *, n_classes: int
) -> KnownSounds | None:
    """train, test: (n, D), as the head scales them; targets: (n,), a class each, of train. None where the
    clips are too few."""
    n_components = min(COMPONENTS, train.shape[1], len(train) // CLIPS_PER_COMPONENT)
    if len(test) < FEWEST_TESTED or n_components < 1:
        return None
    pca = PCA(n_components, random_state=0).fit(train.astype(np.float64))
    deviations = np.sqrt(pca.explained_variance_)
    is_there = deviations > 1e-6 * deviations[0]  # of clips that are alike there may be fewer
    whiten = pca.components_[is_there] / deviations[is_there, None]
    points = train @ whiten.T
    means = np.stack([points[targets == c].mean(axis=0) for c in range(n_classes)])
    within = points - means[targets]
    covariance = within.T @ within / len(within) + RIDGE * np.eye(within.shape[1])
    # covariance = L @ L.T, and Mahalanobis's distance is the length of inv(L) @ (x - mean).
    straighten = np.linalg.inv(np.linalg.cholesky(covariance))
    known = KnownSounds(
        rounded(straighten @ whiten), rounded(means @ straighten.T), np.zeros(1, dtype=np.float32)
    )
    distances = np.sort(known.distance(test))
    if len(distances) > MOST_DISTANCES:
        distances = np.quantile(distances, np.linspace(0, 1, MOST_DISTANCES)).astype(np.float32)
    return KnownSounds(known.projection, known.means, distances)


def separation(known: KnownSounds, test: Embeddings, others: dict[str, Embeddings]) -> Separation:
    """test, and each of others: (n, D), as the head scales them."""
    inside = known(test)
    outside = {name: known(scaled) for name, scaled in others.items()}
    if len(outside) > 1:
        outside["all"] = np.concatenate([*outside.values()])
    auroc = {name: round(auroc_of(inside, shares), 4) for name, shares in outside.items()}
    every = [*outside.values()][-1]
    truth = np.repeat([1, 0], [len(inside), len(every)])
    wrongly, rightly, thresholds = roc_curve(truth, np.concatenate([inside, every]), drop_intermediate=False)
    balanced = (rightly + 1 - wrongly) / 2
    best = int(balanced[1:].argmax()) + 1  # the first is above all
    return Separation(auroc, float(thresholds[best]), round(float(balanced[best]), 4))


def auroc_of(inside: NDArray[np.float32], outside: NDArray[np.float32]) -> float:
    """How often one of inside is more known than one of outside; a tie counts half."""
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


def rounded(x: NDArray[np.float64]) -> Embeddings:
    """As it is in the file, in float16."""
    return x.astype(np.float16).astype(np.float32)
