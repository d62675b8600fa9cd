"""A head of many tags for a served model, from a teacher's: embeddings and a teacher's scores in, a head out.

    clips without labels ─┬─► the student, as it is served ─► embeddings (n, D) ─┐
                          └─► the teacher, as it is served ─► scores (n, C) ─────┴─► linear, or with a
                                                                                     hidden layer
Both hear whole clips and, if asked for, crops of them mixed, filtered, in rooms and at other levels. The loss
is that of distillation, summed over the tags, so that rare ones have their say. A tenth of the clips is held
out, and is in no mixture: from it come a threshold for each tag, and the figures.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from service.bulk.offline import embed_files
from service.inference.heads import Head, Hidden
from service.inference.model import Model
from training.clips import Clips, DataError, Unreadable, draw_segments
from training.pretrain.distil import tag_loss
from training.pretrain.recipe import load_recipe
from training.pretrain.teachers import Teacher, TeacherError
from training.pretrain.waveforms import augmented
from training.probe.fit_head import FittedHead
from training.probe.linear import MULTILABEL, Embeddings, LinearHead, metric_of, scaler_of

LINEAR = (40, 1e-3, 0.05)  # epochs, AdamW's rate and its weight decay
DEEP = (30, 5e-4, 0.2)
BATCH = 128
LOGIT_WEIGHT = 0.02  # of the squared error of the logits within the loss
LEAST_STD = 0.05  # of the median
DROPOUT = 0.3  # of the hidden numbers
HELD_OUT = 0.1
TAGGED = 0.3  # a teacher's score above which it says that the tag is there
FEWEST_EXAMPLES = 5  # held-out clips with a tag below which its threshold is the one common to all
FEWEST_CLIPS = 20
AT_ONCE = 32  # crops that are mixed with each other
CROPS_S = (1.0, 2.0, 3.0, 5.0)  # lengths of the augmented crops: /classify scores passages of 5 s at most


@dataclass(frozen=True)
class Heard:
    """What student and teacher make of the clips: embeddings (n, D), scores (n, C), in the order of paths."""

    embeddings: Embeddings
    scores: Embeddings
    unreadable: list[Unreadable]
    paths: list[Path] = field(default_factory=list)


MoreOf = Callable[[NDArray[np.bool_]], tuple[Embeddings, Embeddings]]  # clips -> embeddings, scores


def teacher_head(teacher: Model, name: str | None) -> Head:
    """Its head of that name, or its only one of several labels. Raises TeacherError."""
    heads = teacher.heads
    several = [head for head in heads.values() if head.task == MULTILABEL]
    if name is not None and name in heads:
        chosen = heads[name]
    elif name is None and len(several) == 1:
        chosen = several[0]
    else:
        known = ", ".join(sorted(heads)) or "none"
        which = f"has no head '{name}'" if name else f"has {len(several)} heads of several labels, not one"
        raise TeacherError(f"{teacher.card.name} {which}: its heads are {known}. Name one: --teacher-head.")
    if chosen.task != MULTILABEL:
        raise TeacherError(
            f"The head {chosen.name} of {teacher.card.name} gives one label: fit such a head on labels."
        )
    return chosen


def hear(student: Model, teacher: Model, head: Head, paths: list[Path], *, workers: int = 1) -> Heard:
    """Each clip through both; files that one of them cannot read are left out. Raises DataError."""
    vectors: dict[Path, Embeddings] = {}
    scores: dict[Path, Embeddings] = {}
    unreadable = []
    for result in tqdm(embed_files(student, paths, workers=workers), total=len(paths), desc="student"):
        if result.embedding is None:
            unreadable.append(Unreadable(str(result.path), str(result.error)))
        else:
            vectors[Path(result.path)] = result.embedding
    for result in tqdm(embed_files(teacher, [*vectors], workers=workers), total=len(vectors), desc="teacher"):
        if result.embedding is None:
            unreadable.append(Unreadable(str(result.path), str(result.error)))
        else:
            scores[Path(result.path)] = head.score(result.embedding[None])[0]
    if len(scores) < FEWEST_CLIPS:
        raise DataError(f"{len(scores)} clips that can be read are too few to fit a head on: {FEWEST_CLIPS}.")
    stacked = np.stack([vectors[path] for path in scores])
    return Heard(stacked, np.stack([*scores.values()]), unreadable, [*scores])


def hear_augmented(
    student: Teacher, teacher: Teacher, head: Head, clips: Clips, rounds: int, *, seed: int = 42
) -> tuple[Embeddings, Embeddings]:
    """Crops of every clip, `rounds` of them each, as distillation augments them: the student's embeddings
    (n, D) and the teacher's scores (n, C). Both hear them at the rate of `clips`."""
    recipe = load_recipe("distil").waveform
    assert recipe
    random = np.random.default_rng(seed)
    vectors, scores = [], []
    batches = max(1, len(clips) // AT_ONCE)
    for number in tqdm(range(rounds * batches), desc="augmented", unit="batch"):
        if number % batches == 0:
            order = np.array_split(random.permutation(len(clips)), batches)
        length_s = CROPS_S[random.integers(len(CROPS_S))]
        (crops,) = draw_segments(
            clips,
            order[number % batches],
            segment=round(length_s * clips.sample_rate),
            distance=0,
            short_clips="zeros-end",
            seed=(seed, 0, number),
        )
        draws = np.random.default_rng((seed, 1, number))
        is_long = length_s > min(CROPS_S)
        crops = augmented(crops, recipe, sample_rate=clips.sample_rate, is_long=is_long, random=draws)
        vectors.append(student.embed(crops))
        scores.append(head.score(teacher.embed(crops)))
    return np.concatenate(vectors), np.concatenate(scores)


def fit_taught_head(
    heard: Heard,
    labels: tuple[str, ...],
    *,
    hidden: int = 0,
    more_of: MoreOf | None = None,
    seed: int = 42,
) -> FittedHead:
    """The head and, for each label, the score from which on it counts as said.

    hidden: numbers of a hidden layer; 0: none. more_of: what hears the clips that are learnt from, (n,) bool,
    in other ways.
    """
    n = len(heard.embeddings)
    held_out = np.zeros(n, dtype=bool)
    held_out[np.random.default_rng(seed).permutation(n)[: max(1, round(n * HELD_OUT))]] = True
    embeddings, scores = heard.embeddings[~held_out], heard.scores[~held_out]
    if more_of:
        more, said_of_more = more_of(~held_out)
        embeddings, scores = np.concatenate([embeddings, more]), np.concatenate([scores, said_of_more])
    head = fit(embeddings, scores, hidden=hidden, seed=seed)
    truth = heard.scores[held_out]
    logits = head.logits(heard.embeddings[held_out])
    thresholds = thresholds_of(sigmoid(logits), truth > TAGGED)
    return FittedHead(head, labels, results_of(logits, truth, thresholds, n), thresholds)


def fit(embeddings: Embeddings, scores: Embeddings, *, hidden: int = 0, seed: int) -> LinearHead:
    """(n, D), (n, C) -> the head; with `hidden` numbers between, by way of Hardswish."""
    mean, std = scaler_of(embeddings)
    std = np.maximum(std, LEAST_STD * np.median(std))  # what hardly moves must not be blown up
    x, y = torch.from_numpy((embeddings - mean) / std), torch.from_numpy(scores)
    torch.manual_seed(seed)
    first = nn.Linear(x.shape[1], hidden) if hidden else None
    last = nn.Linear(hidden or x.shape[1], y.shape[1])
    with torch.no_grad():  # it begins at what is known before listening
        last.weight.zero_()
        last.bias.copy_(y.mean(dim=0).clamp(1e-5, 1 - 1e-5).logit())
    layers = [first, nn.Hardswish(), nn.Dropout(DROPOUT), last] if first else [last]
    network = nn.Sequential(*layers)
    epochs, rate, decay = DEEP if hidden else LINEAR
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    for _ in tqdm(range(epochs), desc="fit", unit="epoch"):
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = tag_loss(network(x[batch]), y[batch], MULTILABEL, LOGIT_WEIGHT)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    weight, bias = last.weight.detach().numpy(), last.bias.detach().numpy()
    if first is None:
        return LinearHead(mean, std, weight, bias, MULTILABEL, valid_metric=float("nan"))
    inner = np.asarray(first.weight.detach().numpy() / std, dtype=np.float32)  # the scaler within the layer
    offset = np.asarray(first.bias.detach().numpy() - inner @ mean, dtype=np.float32)
    layer = Hidden(inner, offset)
    none, one = np.zeros(hidden, dtype=np.float32), np.ones(hidden, dtype=np.float32)
    return LinearHead(none, one, weight, bias, MULTILABEL, valid_metric=float("nan"), hidden=layer)


def thresholds_of(scores: Embeddings, truth: NDArray[np.bool_]) -> tuple[float, ...]:
    """(n, C) scores and whether the tag is there -> C thresholds of the best F1; tags with few examples share
    the one that is best for all tags together."""
    common = best_threshold(scores.ravel(), truth.ravel())
    return tuple(
        best_threshold(column, there) if there.sum() >= FEWEST_EXAMPLES else common
        for column, there in zip(scores.T, truth.T, strict=True)
    )


def best_threshold(scores: Embeddings, truth: NDArray[np.bool_]) -> float:
    """Half-way between the lowest score that is taken and the highest that is not, at the best F1."""
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    right = np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + truth.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are taken together
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return round(float((ranked[best] + below) / 2), 4)


def results_of(
    logits: Embeddings, truth: Embeddings, thresholds: tuple[float, ...], clips: int
) -> dict[str, object]:
    """Against the teacher: mean average precision of what it says above TAGGED, how often the first tag is
    among the teacher's first five, and F1 of all tags at the thresholds."""
    said = truth > TAGGED
    taken = sigmoid(logits) >= np.array(thresholds)
    first = logits.argmax(axis=1)
    teachers_five = np.argsort(-truth, axis=1)[:, :5]
    right = float((taken & said).sum())
    return {
        "metric": "mAP against the teacher",
        "value": round(metric_of(logits, said.astype(np.float32), MULTILABEL), 4) if said.any() else 0.0,
        "labels_heard": int(said.any(axis=0).sum()),
        "first_in_teachers_five": round(float((first[:, None] == teachers_five).any(axis=1).mean()), 4),
        "f1_at_thresholds": round(2 * right / max(1.0, float(taken.sum() + said.sum())), 4),
        "test": f"{len(truth)} clips held out",
        "train_clips": clips - len(truth),
        "test_clips": len(truth),
    }


def sigmoid(logits: Embeddings) -> Embeddings:
    return np.asarray((1 + np.tanh(logits / 2)) / 2, dtype=np.float32)
