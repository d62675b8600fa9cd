"""A head's scores and a teacher's on the same clips in; how well the head says what the teacher says, out.

first      the share of clips whose first tag is among the teacher's first five
mAP        mean average precision against "the teacher's score is above 0.3", over the labels that the
           teacher gives to at least one clip and not to all
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.clips import DataError
from training.probe.linear import MULTILABEL, metric_of

HEARD = 0.3  # of the teacher's scores: from here on a label counts as heard
FIRST = 5

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """first, map: 0 to 1; labels: how many the mean average precision is taken over."""

    first: float
    map: float
    labels: int
    clips: int


def agreement(own: Scores, teacher: Scores) -> Agreement:
    """own, teacher: (n, C), the scores for the same labels in the same order. Raises DataError."""
    leading = np.argsort(-teacher, axis=1)[:, :FIRST]
    first = (leading == own.argmax(axis=1)[:, None]).any(axis=1).mean()
    heard = teacher > HEARD
    told = heard.any(axis=0) & ~heard.all(axis=0)
    if not told.any():
        raise DataError(f"The teacher hears no label above {HEARD} in any of these clips, or all in all.")
    targets = heard[:, told].astype(np.float32)
    return Agreement(
        float(first), metric_of(own[:, told], targets, MULTILABEL), int(told.sum()), len(teacher)
    )


def shared_labels(own: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """The columns of the labels that both have, in the teacher's order. Raises DataError where there are
    none."""
    place = {label: i for i, label in enumerate(own)}
    pairs = [(place[label], j) for j, label in enumerate(teacher) if label in place]
    if not pairs:
        raise DataError("The head and the teacher's head have no label in common.")
    mine, theirs = zip(*pairs, strict=True)
    return list(mine), list(theirs)
