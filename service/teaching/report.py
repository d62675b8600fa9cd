"""A lesson and what was fitted in; what its teacher should know of it, as figures and as words, out."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.teaching.fit import Fitted, Lesson
from service.teaching.store import Example

MOST_PAIRS = 5  # of labels that are taken for each other
MOST_DOUBTFUL = 10  # examples
DOUBT = 0.5  # the score of a label that speaks against the example's own
FEW = 5  # examples of a label, below which more help most
DIGITS = 4

Report = dict[str, Any]


def report_of(lesson: Lesson, fitted: Fitted, examples: Sequence[Example]) -> Report:
    """examples: (n,), those of the lesson's vectors."""
    labels = [_label(lesson, fitted, i) for i in range(len(lesson.labels))]
    confused, doubtful = _confused(lesson, fitted), _doubtful(lesson, fitted, examples)
    report: Report = {
        "task": lesson.task,
        "labels": labels,
        "examples": len(lesson.vectors),
        "clips": len(np.unique(lesson.clips)),
        "accuracy": _mean([label["accuracy"] for label in labels]),
        "confused": confused,
        "doubtful": doubtful,
        "none_of_these": _none_of_these(lesson, fitted),
        "strength": fitted.strength,
    }
    return report | {"words": words_of(report)}


def words_of(report: Report) -> list[str]:
    """The report as sentences, the most useful first."""
    words = []
    judged = [label for label in report["labels"] if label["accuracy"] is not None]
    if judged:
        told = ", ".join(f"{one['label']} {_percent(one['accuracy'])}" for one in judged[:20])
        words.append(
            f"Of recordings that it has not learnt from {_percent(report['accuracy'])} are told right: "
            f"{told}."
        )
    few = [label for label in report["labels"] if label["clips"] < FEW]
    if few:
        names = ", ".join(f"{one['label']} ({one['clips']})" for one in few[:20])
        words.append(f"More recordings would help most where there are few: {names}.")
    words += [
        f"{pair['label']} is taken for {pair['taken_for']} {_times(pair['times'])}."
        for pair in report["confused"]
    ]
    words += map(_doubt, report["doubtful"])
    if none := report["none_of_these"]:
        words.append(
            f"Of {none['sounds']} other sounds {_percent(none['taken_for_a_label'])} are taken for a label, "
            f"and {_percent(none['missed'])} of the examples are missed."
        )
    return words


def _doubt(one: Report) -> str:
    labels = " and ".join(one["labels"])
    return (
        f"The example {one['example']}{_of_file(one)} is labelled {labels} and sounds like "
        f"{one['sounds_like']}: listen to it, and remove it if the label is wrong."
    )


def _label(lesson: Lesson, fitted: Fitted, i: int) -> Report:
    yes, accuracy = lesson.targets[:, i], None
    held_out = fitted.held_out
    if held_out is not None and (yes & held_out.is_judged).any():
        scores = held_out.scores[yes & held_out.is_judged]
        if fitted.task == "multiclass":
            accuracy = float((scores.argmax(axis=1) == i).mean())
        else:
            accuracy = float((scores[:, i] >= fitted.thresholds[i]).mean())
    return {
        "label": lesson.labels[i],
        "examples": int(yes.sum()),
        "clips": len(np.unique(lesson.clips[yes])),
        "accuracy": None if accuracy is None else round(accuracy, DIGITS),
    }


def _confused(lesson: Lesson, fitted: Fitted) -> list[Report]:
    """Pairs of labels, the most frequent first; of examples with one label."""
    if fitted.held_out is None or len(lesson.labels) < 2:
        return []
    judged = fitted.held_out.is_judged & (lesson.targets.sum(axis=1) == 1)
    right = lesson.targets[judged].argmax(axis=1)
    said = fitted.held_out.scores[judged].argmax(axis=1)
    pairs = Counter((int(a), int(b)) for a, b in zip(right, said, strict=True) if a != b)
    return [
        {"label": lesson.labels[a], "taken_for": lesson.labels[b], "times": times}
        for (a, b), times in pairs.most_common(MOST_PAIRS)
    ]


def _doubtful(lesson: Lesson, fitted: Fitted, examples: Sequence[Example]) -> list[Report]:
    """Examples that a head which has not learnt from them takes for something else, the surest first."""
    if fitted.held_out is None or len(lesson.labels) < 2:
        return []
    scores = np.where(lesson.targets, 0, fitted.held_out.scores)
    other = scores.max(axis=1)
    own = np.where(lesson.targets, fitted.held_out.scores, 0).max(axis=1)
    wrong = np.flatnonzero(fitted.held_out.is_judged & (other > DOUBT) & (other > own))
    return [
        {
            "example": examples[i].id,
            "file": examples[i].file,
            "labels": list(examples[i].labels),
            "sounds_like": lesson.labels[int(scores[i].argmax())],
            "score": round(float(other[i]), DIGITS),
        }
        for i in wrong[np.argsort(-other[wrong], kind="stable")][:MOST_DOUBTFUL]
    ]


def _none_of_these(lesson: Lesson, fitted: Fitted) -> Report | None:
    """How well sounds of the labels are told from others, held out; None where nothing tells them."""
    known, held_out = fitted.known, fitted.held_out
    if known is None or held_out is None:
        return None
    border = fitted.border
    inside = held_out.known
    return {
        "sounds": len(held_out.known_outside),
        "examples_of_it": len(lesson.others),
        "taken_for_a_label": round(float((held_out.known_outside >= border).mean()), DIGITS),
        "missed": round(float((inside < border).mean()), DIGITS),
        "min_known": known.min_known,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are: every label counts the same."""
    there = [value for value in values if value is not None]
    return round(sum(there) / len(there), DIGITS) if there else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _times(n: int) -> str:
    return "once" if n == 1 else "twice" if n == 2 else f"{n} times"


def _of_file(one: Report) -> str:
    return f" ({one['file']})" if one["file"] else ""
