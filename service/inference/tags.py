"""A clip's windows in, the scores of its tags out: a long clip is scored passage by passage, and gathered.

    clip       |·······|·······|·······|·······|·····     12 s
    passage 0  [               ]                          5 s, the length of the clips that heads learn from
    passage 1          [               ]                  every 2.5 s, so that what lies on a border is whole
    passage 2                  [               ]          in one of them
    passage 3                          [            ]     and none is shorter than half of one

    max    a label's highest score: it was heard somewhere (heads of several labels)
    mean   by the passages' lengths: scores that add up to 1 still do (heads of one label)

A passage that is less known than `min_known` is none of the head's sounds, and has no say: its scores are 0.
The clip is as known as the best known of its passages.

The mean and the maximum of an hour of sound look like nothing that a head has learnt from; so do those of a
second, which is why a timeline of short windows changes nothing about the clip's tags. A clip that is no
longer than one passage, and a tenth of a second, is scored whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.inference.card import Card
from service.inference.heads import Head
from service.inference.windows import Embedding, Pool, Segment

Array = NDArray[np.float32]
Pooling = Literal["max", "mean"]

PASSAGE_S = 5.0  # or a model's own window, where that is longer: 10 s, of AudioSet's
SLACK_S = 0.1  # beyond it a clip is still whole: lossy codecs and containers add some milliseconds


@dataclass(frozen=True)
class Spans:
    """Stretches of a clip. times_s: (n, 2), where they begin and end; scores: (n, C), 0 where not is_known,
    (n,); known: (n,) in 0 to 1, or NaN where the head cannot tell."""

    times_s: NDArray[np.float64]
    scores: Array
    known: Array
    is_known: NDArray[np.bool_]


@dataclass(frozen=True)
class ClipScores:
    """scores: (C,) of the clip, 0 where not is_known; known: in 0 to 1, None where the head cannot tell;
    windows: of the timeline, where one was asked for."""

    scores: Array
    known: float | None = None
    is_known: bool = True
    windows: Spans | None = None


class Scorer(Protocol):
    """What scores a clip's passages: a head, or several."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def score_and_know(self, embeddings: Array) -> Array: ...


@dataclass(frozen=True)
class SeveralHeads:
    """Heads that read the same passages, so that a clip is decoded and embedded once for all of them."""

    heads: tuple[Head, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(head.labels for head in self.heads))

    def score_and_know(self, embeddings: Array) -> Array:
        """(n, D) -> the columns of each head's `score_and_know`, side by side."""
        return np.concatenate([head.score_and_know(embeddings) for head in self.heads], axis=1)

    def apart(self, embedding: Embedding) -> Iterator[tuple[Head, Embedding]]:
        """Each head with what the clip's passages are to it, for `clip_scores`."""
        start = 0
        for head in self.heads:
            stop = start + len(head.labels) + 1
            passages = [replace(each, vector=each.vector[start:stop]) for each in embedding.passages]
            yield head, replace(embedding, passages=passages)
            start = stop


def passages_of(card: Card) -> tuple[float, float]:
    """(length, hop) in seconds."""
    length_s = PASSAGE_S
    if card.windows.kind == "independent":
        length_s = max(length_s, card.windows.frames * card.frontend.hop_length / card.sample_rate)
    return length_s, length_s / 2


def tag_pool(
    card: Card,
    head: Scorer,
    *,
    whole_s: float | None,
    window_s: float | None = None,
    hop_s: float | None = None,
) -> Pool:
    """What gathers a clip for `clip_scores`. whole_s: the clip's seconds, None where it is not read to its
    end yet; window_s, hop_s: those of a timeline.

    It holds scores, no vectors: an hour of sound is some megabytes.
    """
    passages = passages_of(card)
    is_short = whole_s is not None and whole_s <= passages[0] + SLACK_S
    return Pool(
        card,
        window_s=window_s,
        hop_s=hop_s,
        passages=None if is_short else passages,
        of_segment=lambda vector: head.score_and_know(vector[None])[0],
    )


def clip_scores(
    head: Head, embedding: Embedding, *, pooling: Pooling | None = None, min_known: float | None = None
) -> ClipScores:
    """A clip from a `tag_pool` -> its scores. pooling: by default max for several labels, mean for one;
    min_known: by default the head's own."""
    if min_known is None:
        min_known = head.known.min_known if head.known else 0.0
    if pooling is None:
        pooling = "max" if head.task == "multilabel" else "mean"
    if len(embedding.passages) > 1:
        passages = spans_of(embedding.passages, min_known)
    else:
        whole = Segment(0.0, 1.0, head.score_and_know(embedding.vector[None])[0])
        passages = spans_of([whole], min_known)
    return ClipScores(
        gathered(passages, pooling),
        float(passages.known.max()) if head.known else None,
        bool(passages.is_known.any()),
        spans_of(embedding.segments, min_known) if embedding.segments else None,
    )


def spans_of(segments: list[Segment], min_known: float) -> Spans:
    """Of segments with the rows of `Head.score_and_know`."""
    times_s = np.array([(segment.start_s, segment.end_s) for segment in segments])
    rows = np.stack([segment.vector for segment in segments])
    scores, known = rows[:, :-1], rows[:, -1]
    is_known = ~(known < min_known)  # nor where it is NaN
    scores[~is_known] = 0
    return Spans(times_s, scores, known, is_known)


def gathered(spans: Spans, pooling: Pooling) -> Array:
    """(n, C) -> (C,), of what is known."""
    if pooling == "max" or not spans.is_known.any():
        return np.asarray(spans.scores.max(axis=0))
    lengths_s = (spans.times_s[:, 1] - spans.times_s[:, 0])[spans.is_known]
    return np.average(spans.scores[spans.is_known], axis=0, weights=lengths_s).astype(np.float32)
