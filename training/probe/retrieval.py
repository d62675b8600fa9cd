"""Embeddings of labelled sounds in, how well the nearest of them are of the same label out.

Each sound is asked for once, and all the others are ranked by their cosine to it:

    AP     the mean, over the others of its label, of the precision down to each of them; mAP: its mean over
    sounds first  how often the nearest one has its label

A cosine is between two sounds of one label (related) or of two (unrelated); the medians tell what a number
means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.projection import Projection
from training.clips import DataError
from training.probe.linear import Embeddings
from training.probe.projection import Axes

Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Retrieval:
    """mean_ap, first: in 0 to 1; related, unrelated: median cosines."""

    mean_ap: float
    first: float
    related: float
    unrelated: float


def retrieval(vectors: Embeddings, classes: Classes) -> Retrieval:
    """vectors: (n, D); classes: (n,). Sounds that are alone in their class are ranked, and not asked for.
    Raises DataError where all are."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    same = classes[:, None] == classes
    off = ~np.eye(len(classes), dtype=bool)
    asked = np.flatnonzero((same & off).any(axis=1))
    if not len(asked):
        raise DataError("No label has two sounds: there is nothing to be found.")
    ranked = np.argsort(np.where(off, -cosines, np.inf), axis=1, kind="stable")[asked, :-1]
    hits = np.take_along_axis(same[asked], ranked, axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    mean_ap = ((precision * hits).sum(axis=1) / hits.sum(axis=1)).mean()
    return Retrieval(
        float(mean_ap),
        float(hits[:, 0].mean()),
        float(np.median(cosines[same & off])),
        float(np.median(cosines[~same])) if (~same).any() else float("nan"),
    )


def forms(
    vectors: Embeddings, projections: Mapping[str, Projection], sizes: Sequence[int]
) -> dict[tuple[str, int], Embeddings]:
    """(how, numbers) -> vectors (n, D): as they are, and by each projection whole and in its first
    numbers."""
    D = vectors.shape[1]
    found = {("as they are", D): vectors}
    for name, projection in projections.items():
        found[name, D] = projection.whole(vectors)
        for size in sizes:
            if size <= min(projection.most, D - 1):
                found[name, size] = projection.first(size, vectors)
    return found


def projections_of(axes: Axes, shrinkages: Sequence[float]) -> dict[str, Projection]:
    whitened = {f"whitened, {shrinkage:g}": axes.projection(shrinkage) for shrinkage in shrinkages}
    return {"centred": axes.projection()} | whitened


def table(results: Mapping[tuple[str, int], Mapping[str, Retrieval]]) -> str:
    """As Markdown: a row for each form, mAP and first for each task, the median cosines over the tasks'
    own."""
    tasks = list(next(iter(results.values())))
    columns = [f"{task}: mAP" for task in tasks] + [f"{task}: first" for task in tasks]
    head = ["vectors", "numbers", *columns, "cosine, related", "unrelated"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (name, size), of_task in results.items():
        own = [of_task[task] for task in tasks]
        cells = [name, str(size)]
        cells += [f"{one.mean_ap:.3f}" for one in own] + [f"{one.first:.3f}" for one in own]
        cells += [
            " / ".join(f"{getattr(one, which):.2f}" for one in own) for which in ("related", "unrelated")
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
