"""What was taught in; a head, and what it says of every example that it has not learnt from, out.

    examples (n, D)   ─┐                                  ┌─► the head
    others (m, D)     ─┼► with tags, scaled ─► span ─► fitted
    background (b, D) ─┘       regression.py              └─► without each fold of the clips: HeldOut

A model with tags of its own knows along which axes sounds differ in what they are: those of its tag head. Few
examples go further there than in the embedding, where every number counts alike: on ESC-50's fold 5, one
example of each of five labels told 0.79 of the rest right and not 0.55. A row holds both, and the weights are
folded into those of the plain embedding.

A head of one label a sound is a softmax over its labels; one of several labels is a yes or no for each, and
so is a head that has one label only. Where there is a background, or there are others, a detector lies beside
it, in the form of KnownSounds: it tells whether a sound is like any of the labels, rather than like those.

Passages of one clip are never on both sides of a fold.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.known import KnownSounds
from service.teaching.regression import (
    Array,
    Floats,
    Scaling,
    Span,
    Task,
    logits_of,
    softmax_regression,
    yes_or_no_regressions,
)

STRENGTHS = (10.0, 100.0, 1000.0)  # of the examples against the size of the weights
USUAL_STRENGTH = 100.0  # where the examples are too few to choose
FEWEST_TO_CHOOSE = 5  # clips of each label
MOST_LEFT_OUT_ALONE = 40  # clips: of more than that a tenth is left out at a time, of far more a fifth
MANY = 300
FALSE_ALARMS = 0.02  # the share of the background that may be taken for a label
OWN_SHARE = 0.5  # of the embedding's own numbers in the length of a row, where the tags' axes have 1
FAR = 1000.0  # where the labels lie in the detector's space: the distance to them is FAR - the logit


@dataclass(frozen=True)
class Lesson:
    """vectors: (n, D); targets: (n, C) bool, several a row only of a multilabel head; clips: (n,) which clip
    each is of; others: (m, D), examples of none of the labels; background: (b, D), or None where nobody asked
    for none of these; axes: (K, D), those of the model's own tags, or None where it has none."""

    labels: tuple[str, ...]
    task: Task
    vectors: Array
    targets: NDArray[np.bool_]
    clips: NDArray[np.int64]
    others: Array
    background: Array | None
    axes: Array | None = None

    def with_tags(self, embeddings: Array) -> Array:
        """(n, D) -> (n, D + K): the embedding, and behind it where it lies along the axes."""
        return embeddings if self.axes is None else np.hstack([embeddings, embeddings @ self.axes.T])

    @property
    def shares(self) -> Array | None:
        """(D + K,): so that the axes have a length of 1 in a row, and the embedding OWN_SHARE."""
        if self.axes is None:
            return None
        K, D = self.axes.shape
        return np.repeat([OWN_SHARE / np.sqrt(D), 1 / np.sqrt(K)], [D, K]).astype(np.float32)


@dataclass(frozen=True)
class HeldOut:
    """Of each example what a head says that was fitted without its clip. scores: (n, C); is_judged: (n,),
    False where its clip was the only one of its label. known, known_outside: the detector's logits of the
    examples and of others and background, NaN where there is none. folds: how many."""

    scores: Array
    is_judged: NDArray[np.bool_]
    known: Array
    known_outside: Array
    folds: int


@dataclass(frozen=True)
class Fitted:
    """task: of the head's file, which is multilabel where there is one label only. border: the detector's
    logit from which on a sound is known. thresholds: of a multilabel head. held_out: None of one clip."""

    task: Task
    scaler_mean: Array
    scaler_std: Array
    weight: Array
    bias: Array
    known: KnownSounds | None
    border: float
    thresholds: tuple[float, ...]
    strength: float
    held_out: HeldOut | None


def fit(lesson: Lesson) -> Fitted:
    """lesson: of two labels or more, or of one with a background or others."""
    outside = [lesson.others, *([] if lesson.background is None else [lesson.background])]
    rows = lesson.with_tags(np.concatenate([lesson.vectors, *outside]))
    background = None if lesson.background is None else lesson.with_tags(lesson.background)
    examples = rows if background is None else rows[: -len(background)]
    scaling = Scaling.of(examples, background, lesson.shares)
    units, lengths = scaling(rows)
    span = Span(units)
    parts = _Parts(lesson, span.features, lengths)
    strength, held_out = _chosen(parts, lesson.clips)
    all_of_them = np.ones(len(rows), bool)
    classifier = parts.classifier(all_of_them, strength)
    detector = parts.detector(all_of_them, strength, classifier)
    known, limit = None, 0.0
    if detector is not None:
        weight, bias = span.weights(detector[:, :-1]), float(detector[0, -1])
        told = parts.logits(detector)[:, 0]
        inside, beyond = told[: parts.n], told[parts.n :]
        if held_out is not None:
            inside, beyond = held_out.known, held_out.known_outside
        limit = border(inside, beyond)
        weight, offset = _folded(weight, scaling, lesson)
        known = _known(weight, bias + float(offset[0]), len(lesson.labels), inside, limit)
    weight, offset = _folded(span.weights(classifier[:, :-1]), scaling, lesson)
    D = lesson.vectors.shape[1]
    return Fitted(
        parts.task,
        scaling.mean[:D],
        scaling.std[:D] * np.float32(scaling.length),
        weight,
        classifier[:, -1].astype(np.float32) + offset,
        known,
        limit,
        () if parts.is_softmax else _thresholds(parts, held_out),
        strength,
        held_out,
    )


def _folded(weights: Array, scaling: Scaling, lesson: Lesson) -> tuple[Array, Array]:
    """(C, D + K) weights of scaled rows -> (C, D) weights of the scaled embedding alone, and (C,), what to
    add to their bias."""
    if lesson.axes is None:
        return weights, np.zeros(len(weights), np.float32)
    D = lesson.vectors.shape[1]
    own = weights[:, :D].astype(np.float64)
    unscaled = weights[:, D:] / (scaling.std[D:].astype(np.float64) * scaling.length)
    along = unscaled @ lesson.axes  # of the embedding as it is: (x - mean) / std * std + mean
    offset = along @ scaling.mean[:D] - unscaled @ scaling.mean[D:]
    own += along * (scaling.std[:D].astype(np.float64) * scaling.length)
    return own.astype(np.float32), offset.astype(np.float32)


class _Parts:
    """A lesson whose rows are features (N, N): the n examples first, behind them what has no label."""

    def __init__(self, lesson: Lesson, features: Array, lengths: Array) -> None:
        self.n = len(lesson.vectors)
        self.targets = lesson.targets
        self.is_softmax = lesson.task == "multiclass" and len(lesson.labels) > 1
        self.task: Task = "multiclass" if self.is_softmax else "multilabel"
        self.n_outside = len(features) - self.n
        self._features = features
        self._lengths = lengths
        self._yes = np.zeros((len(features), len(lesson.labels)), bool)
        self._yes[: self.n] = lesson.targets

    def classifier(self, used: NDArray[np.bool_], strength: float, before: Floats | None = None) -> Floats:
        """(C, N + 1), from the rows that are used, (N,). before: one that is nearly the same."""
        features, yes = self._features[used], self._yes[used]
        if not self.is_softmax:
            return yes_or_no_regressions(features, yes, strength, before)
        n = int(used[: self.n].sum())
        return softmax_regression(features[:n], yes[:n].argmax(axis=1), yes.shape[1], strength, before)

    def detector(self, used: NDArray[np.bool_], strength: float, classifier: Floats) -> Floats | None:
        """(1, N + 1); None where there is nothing that is none of the labels."""
        if not self.n_outside or len(classifier) == 1:
            return classifier if self.n_outside else None
        is_any = np.asarray(self._yes[used].any(axis=1, keepdims=True))
        return yes_or_no_regressions(self._features[used], is_any, strength)

    def logits(self, parameters: Floats, rows: NDArray[np.bool_] | slice = slice(None)) -> Array:
        """(C, N + 1) -> (n, C), as the head gives them: of embeddings of their own length."""
        return logits_of(self._features[rows] * self._lengths[rows][:, None], parameters)

    def scores(self, logits: Array) -> Array:
        """(n, C) -> (n, C)."""
        if not self.is_softmax:
            return np.asarray((1 + np.tanh(logits / 2)) / 2, dtype=np.float32)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def _chosen(parts: _Parts, clips: NDArray[np.int64]) -> tuple[float, HeldOut | None]:
    """The strength at which examples that were left out are told best, and what was said of them."""
    folds = _folds(clips, parts.targets)
    if folds.max() < 1:
        return USUAL_STRENGTH, None
    outside_folds = np.arange(parts.n_outside) % (int(folds.max()) + 1)
    of_label = [len(np.unique(clips[parts.targets[:, label]])) for label in range(parts.targets.shape[1])]
    may_choose = min(of_label) >= FEWEST_TO_CHOOSE
    best: tuple[float, float, list[Floats]] | None = None
    classifiers: list[Floats] = []
    left_out = [np.concatenate([folds, outside_folds]) == fold for fold in range(int(folds.max()) + 1)]
    for strength in STRENGTHS if may_choose else (USUAL_STRENGTH,):
        before: list[Floats] | list[None] = classifiers or [None] * len(left_out)
        classifiers = [
            parts.classifier(~out, strength, start) for out, start in zip(left_out, before, strict=True)
        ]
        loss = _loss(*_scores(parts, left_out, classifiers), parts.targets, parts.is_softmax)
        if best is None or loss < best[0]:
            best = (loss, strength, classifiers)
    assert best is not None, "there is a strength"
    _, strength, classifiers = best
    return strength, _held_out(parts, left_out, classifiers, strength)


LeftOut = list[NDArray[np.bool_]]  # of each fold the rows (N,) that are left out


def _scores(parts: _Parts, left_out: LeftOut, classifiers: list[Floats]) -> tuple[Array, NDArray[np.bool_]]:
    """HeldOut's scores and is_judged."""
    scores, is_judged = np.zeros(parts.targets.shape, np.float32), np.zeros(parts.n, bool)
    for out, classifier in zip(left_out, classifiers, strict=True):
        mine = np.flatnonzero(out[: parts.n])
        learnt = parts.targets[~out[: parts.n]].any(axis=0)
        is_judged[mine] = ~(parts.targets[mine] & ~learnt).any(
            axis=1
        )  # of a label that is gone nobody can say
        scores[mine] = parts.scores(parts.logits(classifier, out)[: len(mine)])
    return scores, is_judged


def _held_out(parts: _Parts, left_out: LeftOut, classifiers: list[Floats], strength: float) -> HeldOut:
    told = np.full(parts.n + parts.n_outside, np.nan, np.float32)
    for out, classifier in zip(left_out, classifiers, strict=True):
        detector = parts.detector(~out, strength, classifier)
        if detector is not None:
            told[out] = parts.logits(detector, out)[:, 0]
    scores, is_judged = _scores(parts, left_out, classifiers)
    return HeldOut(scores, is_judged, told[: parts.n], told[parts.n :], len(left_out))


def _folds(clips: NDArray[np.int64], targets: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) the fold of each example: each clip alone, or of many clips some of every label together."""
    clips, first, of_clip = np.unique(clips, return_index=True, return_inverse=True)
    if len(clips) <= MOST_LEFT_OUT_ALONE:
        return of_clip.astype(np.int64)
    order = np.lexsort((np.random.default_rng(0).permutation(len(clips)), targets[first].argmax(axis=1)))
    folds = np.empty(len(clips), np.int64)
    folds[order] = np.arange(len(clips)) % (10 if len(clips) <= MANY else 5)
    return folds[of_clip]


def _loss(scores: Array, is_judged: NDArray[np.bool_], targets: NDArray[np.bool_], is_softmax: bool) -> float:
    """Of what was left out: the mean of -log(score), of every label the same."""
    scores, yes = scores[is_judged].clip(1e-6, 1 - 1e-6), targets[is_judged]
    losses = np.where(yes, -np.log(scores), 0).sum(axis=0) / np.maximum(1, yes.sum(axis=0))
    if not is_softmax:
        losses += np.where(yes, 0, -np.log1p(-scores)).sum(axis=0) / np.maximum(1, (~yes).sum(axis=0))
    return float(losses.mean())


def border(inside: Array, outside: Array) -> float:
    """The logit that parts sounds of the labels from others best, with FALSE_ALARMS of the others above it at
    most."""
    inside, outside = np.sort(inside), np.sort(outside)
    lowest = float(np.quantile(outside, 1 - FALSE_ALARMS))
    candidates = np.concatenate([[lowest], inside[inside > lowest], outside[outside > lowest]])
    missed = np.searchsorted(inside, candidates, side="left") / max(1, len(inside))
    taken = 1 - np.searchsorted(outside, candidates, side="left") / len(outside)
    best = float(candidates[(missed + taken).argmin()])
    below = np.concatenate([inside, outside])
    return (best + float(below[below < best].max(initial=lowest))) / 2


def _known(weight: Array, bias: float, n_labels: int, inside: Array, limit: float) -> KnownSounds:
    """The detector as a space of one number: the further to the right a sound, the more it is known, which it
    is from the logit `limit` on. inside: (n,) the examples' logits."""
    distances = np.sort(np.append(FAR - inside.astype(np.float64), FAR - limit)).astype(np.float32)
    nearer = int(np.searchsorted(distances, np.float32(FAR - limit), side="left"))
    means = np.full((n_labels, 1), FAR - bias, np.float32)
    # Half a step below what a sound on the border has: what is known is rounded to float32.
    return KnownSounds(weight, means, distances, 1 - (nearer + 0.5) / len(distances))


def _thresholds(parts: _Parts, held_out: HeldOut | None) -> tuple[float, ...]:
    """Of each label: the score that parts its examples best from the others, held out."""
    if held_out is None:
        return (0.5,) * parts.targets.shape[1]
    thresholds = []
    for scores, yes in zip(
        held_out.scores[held_out.is_judged].T, parts.targets[held_out.is_judged].T, strict=True
    ):
        parted = yes.any() and not yes.all()
        thresholds.append(
            round(float(np.clip(border(scores[yes], scores[~yes]), 0.05, 0.95)), 4) if parted else 0.5
        )
    return tuple(thresholds)
