"""Embeddings in, vectors out whose cosines mean something: of unit length, around a centre measured on real
sound.

    x (n, D) ─► - centre ─┬─► @ rotation.T ─► (n, K) * scales ─► the first N numbers ─► unit length
                          └─► * scales along the K axes, * rest beyond them ─► (n, D) ─► unit length

Every embedding of a network points in about the same direction, so that unrelated sounds have a cosine near
1; around the centre of many sounds they have one near 0. The axes are the principal components of those
sounds, the one along which they differ most first: the first N numbers lose the least. The scales whiten:
along an axis where all sounds differ much, the same distance says less.

`python -m training fit-projection` measures all of it, into projection.safetensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.errors import BadRequest, ModelFolderError
from service.inference.card import PROJECTION_FILE, Card
from service.inference.tensors import checked_tensor, read_tensors

Array = NDArray[np.float32]
Project = Callable[[Array], Array]  # (n, D) -> (n, N), rows of unit length

BLOCK_ROWS = 256  # projected at a time, so that thousands of windows are not held in several copies
SHORTEST = 1e-12  # a vector in the centre itself has no direction, and stays 0


@dataclass(frozen=True)
class Projection:
    """centre: (D,); rotation: (K, D), orthonormal rows; scales: (K,), of the numbers along them; rest: of
    what lies beyond them. All float32, scales and rest above 0."""

    centre: Array
    rotation: Array
    scales: Array
    rest: float

    @property
    def most(self) -> int:
        """K: so many rotated numbers are kept."""
        return len(self.scales)

    def first(self, n: int, vectors: Array) -> Array:
        """(m, D) -> (m, n): the first n rotated numbers, n at most K."""
        rotation, scales = self.rotation[:n], self.scales[:n]
        return _in_blocks(vectors, n, lambda rows: np.multiply((rows - self.centre) @ rotation.T, scales))

    def whole(self, vectors: Array) -> Array:
        """(m, D) -> (m, D): unrotated, so that each number is still the network's own."""
        return _in_blocks(vectors, vectors.shape[1], lambda rows: self._scaled(rows - self.centre))

    def _scaled(self, centred: Array) -> Array:
        beyond_rest = self.scales - np.float32(self.rest)
        if not beyond_rest.any():  # it does not whiten: unit length takes care of the rest
            return centred
        along = (centred @ self.rotation.T) * beyond_rest
        return np.asarray(centred * np.float32(self.rest) + along @ self.rotation, dtype=np.float32)


def load_projection(folder: Path, card: Card) -> Projection | None:
    """projection.safetensors, checked; None where the card tells of none. Raises ModelFolderError."""
    is_listed = PROJECTION_FILE in card.files
    if card.projection is None and not is_listed:
        return None
    if card.projection is None or not is_listed:
        lacking = "field `projection`" if is_listed else f"file {PROJECTION_FILE}"
        raise ModelFolderError(
            f"{folder.name}: card.json has no {lacking}, which {PROJECTION_FILE} and what it was measured on "
            "need from each other; `python -m training fit-projection` writes both"
        )
    path = folder / PROJECTION_FILE
    tensors = {name: tensor.astype(np.float32) for name, tensor in read_tensors(path)[0].items()}
    D, K = card.embedding_size, card.projection.components
    if K > D:
        raise ModelFolderError(f"{path.name}: {K} components are more than the {D} numbers of a vector")
    scales = checked_tensor(path, tensors, "scales", (K,))
    rest = checked_tensor(path, tensors, "rest", (1,))
    if not (scales > 0).all() or not rest[0] > 0:
        raise ModelFolderError(f"{path.name}: `scales` and `rest` must be positive everywhere")
    rotation = checked_tensor(path, tensors, "rotation", (K, D))
    lengths = np.linalg.norm(rotation, axis=1)
    if np.abs(lengths - 1).max() > 0.01:  # float16 moves them by 1e-4
        raise ModelFolderError(f"{path.name}: the rows of `rotation` must have unit length")
    return Projection(checked_tensor(path, tensors, "centre", (D,)), rotation, scales, float(rest[0]))


def project_of(
    projection: Projection | None, card: Card, *, normalize: bool | None, dimensions: int | None
) -> Project | None:
    """What is done to a model's vectors; None: nothing. Raises BadRequest where the model cannot.

    dimensions: so many rotated numbers; as many as a vector has: all, unrotated, which asks for nothing.
    normalize: by default what `dimensions` needs. Where a model has a text tower its space is one of cosines
    already, and a centre would part sounds from words: unit length is all.
    """
    D = card.embedding_size
    n = None if dimensions == D else dimensions
    if n is None and not normalize:
        return None
    if n is None and card.text is not None:
        return unit_length
    if projection is None:
        wanted = "normalize" if n is None else "dimensions"
        raise BadRequest(
            f"{wanted}: the folder of `{card.name}` has no {PROJECTION_FILE}, the centre and the axes of its "
            f"embeddings; leave it out, or have `python -m training fit-projection` measure them"
        )
    if n is None:
        return projection.whole
    if n > projection.most:
        raise BadRequest(
            f"dimensions is {n}, and of `{card.name}` there are 1 to {projection.most} rotated numbers, "
            f"or all "
            f"{D} unrotated"
        )
    if normalize is False:
        raise BadRequest("normalize=false: fewer dimensions have unit length; leave out one of the two")
    return lambda vectors: projection.first(n, vectors)


def unit_length(vectors: Array) -> Array:
    """(m, D) -> (m, D), each divided by its length."""
    return _in_blocks(vectors, vectors.shape[1], lambda rows: rows)


def _in_blocks(vectors: Array, width: int, of_rows: Callable[[Array], Array]) -> Array:
    made = np.empty((len(vectors), width), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        rows = of_rows(vectors[start : start + BLOCK_ROWS])
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        made[start : start + BLOCK_ROWS] = rows / np.maximum(lengths, SHORTEST)
    return made
