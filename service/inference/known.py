"""A head's sounds in, how known they are out: 0 where no class was ever as far from its own sounds, up to 1.

    x, as the head scales it (n, D) ─► projection ─► (n, K) ─► distance to the nearest class mean ─► known
                                                                        the share of the head's own test clips
                                                                        that lie at least as far away

The projection whitens what lies within a class, so that the distance is Mahalanobis's: K principal components
of the training clips, one covariance for all classes. training/probe/known.py makes it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class KnownSounds:
    """projection: (K, D); means: (C, K), of the classes; distances: (m,) ascending, of clips of these classes
    that nothing here was made from. min_known: below it a sound is taken for none of them; 0: not known."""

    projection: Array
    means: Array
    distances: Array
    min_known: float = 0.0

    def distance(self, scaled: Array) -> Array:
        """(n, D) -> (n,): to the nearest mean."""
        points = scaled @ self.projection.T
        squared = np.square(points[:, None] - self.means).sum(axis=-1)
        return np.asarray(np.sqrt(squared.min(axis=1)), dtype=np.float32)

    def __call__(self, scaled: Array) -> Array:
        """(n, D) -> (n,) in 0 to 1."""
        nearer = np.searchsorted(self.distances, self.distance(scaled), side="left")
        return np.asarray(1 - nearer / len(self.distances), dtype=np.float32)
