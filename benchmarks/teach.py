"""What a head that is taught few examples gets right, beside nearest prototype and `training fit-head`.

    a draw     some labels of a task; of each some clips of the folds 1 to 4 to learn from, and all of fold 5,
               which the encoder has never heard, to be asked about
    taught     as the server fits (service/teaching)
    prototype  the nearest mean of the examples, by cosine, standardised by the background
    fit-head   as `python -m training fit-head` fits, from five examples on: it needs some to stop at
    false alarms   clips of other data that the taught head takes for one of its labels, per hour of them

The background is drawn as `python -m training background` draws it, from all data but the task's own; the
false alarms are those on the rest of these data.

Out: results/teach.json, and tables in benchmarks/README.md and docs/guides/doorbell.md.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.results import Result, say, write
from service.bulk.offline import embed_files
from service.inference.known import KnownSounds
from service.inference.model import Model
from service.teaching.fit import Fitted, Lesson, fit
from service.teaching.teacher import axes_of_tags
from training.probe import linear
from training.probe.background import CLIPS, draw
from training.probe.few_shot import unit
from training.probe.linear import MULTICLASS, scaler_of

MODEL = Path("models/byola")
DATA = Path("../shared/data")
SHOTS = (1, 2, 5, 10, 20)
WAYS = (5, 10, 0)  # 0: all labels
TASKS = ("esc50", "instrument")
TASK_NAMES = {"esc50": "sounds around a house, of ESC-50", "instrument": "notes of instruments"}
FEWEST_FOR_FIT_HEAD = 5
SIZE = 3072  # numbers of an embedding

Vectors = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--cache", type=Path, help="embeddings, kept here from one run to the next (.npz)")
    parser.add_argument("--others", type=int, default=0, help="clips of other data at most (default: all)")
    arguments = parser.parse_args()
    model = Model.load(MODEL, threads=1)
    with (DATA / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cache = _Cache(model, arguments.cache)
    measured = [
        row
        for task in TASKS
        for row in measure(task, rows, cache, axes_of_tags(model), arguments.draws, arguments.others)
    ]
    seconds = fit_seconds()
    write("teach", measured, about=__doc__, draws=arguments.draws, model=model.card.version, fit_s=seconds)


def measure(
    task: str, rows: list[dict[str, str]], cache: "_Cache", axes: Vectors | None, draws: int, most: int
) -> Iterator[dict[str, Any]]:
    """One row for each number of labels and of examples."""
    mine = {row["path"]: row for row in rows if row["task"] == task}
    datasets = {row["dataset"] for row in mine.values()}
    others = {row["path"]: row for row in rows if row["dataset"] not in datasets}
    sounds: dict[str, list[Path]] = {}
    for path, row in others.items():
        if row["redistributable"] == row["pretrain"] == "yes":
            sounds.setdefault(row["label"] or row["dataset"], []).append(Path(path))
    drawn = [str(path) for path in draw(sounds, CLIPS, seed=42)]
    background = cache(drawn)
    rest = sorted(others.keys() - set(drawn))
    if most:
        rest = [rest[i] for i in np.random.default_rng(0).permutation(len(rest))[:most]]
    elsewhere, hours = cache(rest), sum(float(others[path]["duration_s"]) for path in rest) / 3600
    vectors = cache(list(mine))
    labels, classes = np.unique([row["label"] for row in mine.values()], return_inverse=True)
    is_asked = np.array([row["fold"] == "5" for row in mine.values()])
    for ways in WAYS:
        for shots in SHOTS:
            able = [i for i in range(len(labels)) if ((classes == i) & ~is_asked).sum() >= shots]
            n_labels = ways or len(able)
            if len(able) < n_labels:  # too few labels have so many clips
                continue
            random = np.random.default_rng(ways * 100 + shots)
            n = draws if ways else max(1, draws // 10)
            started = time.perf_counter()
            results = [
                _draw(vectors, classes, is_asked, able, n_labels, shots, background, elsewhere, axes, random)
                for _ in range(n)
            ]
            scores = np.array(results, dtype=float)
            yield {
                "task": task,
                "ways": n_labels,
                "shots": shots,
                "draws": n,
                "taught": _mean(scores[:, 0]),
                "prototype": _mean(scores[:, 1]),
                "fit_head": _mean(scores[:, 2]) if shots >= FEWEST_FOR_FIT_HEAD else None,
                "missed": _mean(scores[:, 3]),
                "false_alarms_per_hour": round(float(scores[:, 4].mean()) / hours, 1),
                "other_hours": round(hours, 2),
                "fit_s": round(float(np.median(scores[:, 5])), 3),
            }
            say(f"{task} {n_labels} x {shots}: {n} draws in {time.perf_counter() - started:.0f} s")


def _draw(
    vectors: Vectors,
    classes: NDArray[np.int64],
    is_asked: NDArray[np.bool_],
    able: Sequence[int],
    ways: int,
    shots: int,
    background: Vectors,
    elsewhere: Vectors,
    axes: Vectors | None,
    random: np.random.Generator,
) -> tuple[float, ...]:
    """(taught, prototype, fit-head, missed, false alarms, seconds of CPU of the fit)"""
    learnt, asked = [], []
    for one in random.choice(able, ways, replace=False):
        learnt.append(random.permutation(np.flatnonzero((classes == one) & ~is_asked))[:shots])
        asked.append(np.flatnonzero((classes == one) & is_asked))
    x, y = vectors[np.concatenate(learnt)], np.repeat(np.arange(ways), shots)
    test = vectors[np.concatenate(asked)]
    right = np.repeat(np.arange(ways), [len(found) for found in asked])
    names = tuple(map(str, range(ways)))
    targets = np.eye(ways, dtype=bool)[y]
    started = time.thread_time()
    fitted = fit(Lesson(names, "multiclass", x, targets, np.arange(len(x)), x[:0], background, axes))
    seconds = time.thread_time() - started
    logits = _scaled(fitted, test) @ fitted.weight.T + fitted.bias
    known = fitted.known
    assert known is not None
    prototypes = np.stack([unit(vectors[rows], *scaler_of(background)).mean(axis=0) for rows in learnt])
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    nearest = (unit(test, *scaler_of(background)) @ prototypes.T).argmax(axis=1)
    return (
        float((logits.argmax(axis=1) == right).mean()),
        float((nearest == right).mean()),
        _fit_head(x, y, test, right, random) if shots >= FEWEST_FOR_FIT_HEAD else float("nan"),
        1 - float(_is_known(fitted, known, test).mean()),
        float(_is_known(fitted, known, elsewhere).sum()),
        seconds,
    )


def _fit_head(
    x: Vectors, y: NDArray[np.int64], test: Vectors, right: NDArray[np.int64], random: np.random.Generator
) -> float:
    valid = linear.validation_part(y, MULTICLASS, random)
    head = linear.fit(
        x[~valid], y[~valid], x[valid], y[valid], n_classes=int(y.max()) + 1, task=MULTICLASS, seed=42
    )
    return float((head.logits(test).argmax(axis=1) == right).mean())


def _scaled(fitted: Fitted, vectors: Vectors) -> Vectors:
    return np.asarray((vectors - fitted.scaler_mean) / fitted.scaler_std, dtype=np.float32)


def _is_known(fitted: Fitted, known: KnownSounds, vectors: Vectors) -> NDArray[np.bool_]:
    return known(_scaled(fitted, vectors)) >= known.min_known


def fit_seconds() -> float:
    """CPU seconds of a fit of 1,000 examples of ten labels with 3072 numbers and a background,
    cross-validation included."""
    random = np.random.default_rng(0)
    y = np.arange(1000) % 10
    x = (random.normal(size=(10, SIZE))[y] / 4 + random.normal(size=(1000, SIZE))).astype(np.float32)
    background = random.normal(size=(CLIPS, SIZE)).astype(np.float32)
    targets = np.eye(10, dtype=bool)[y]
    started = time.thread_time()
    axes = random.normal(size=(512, SIZE)).astype(np.float32)
    fit(Lesson(tuple("abcdefghij"), "multiclass", x, targets, np.arange(1000), x[:0], background, axes))
    return round(time.thread_time() - started, 2)


def table(result: Result) -> str:
    """For benchmarks/README.md."""
    lines = [
        "| task | labels | examples of each | taught | nearest prototype | fit-head | missed "
        "| false alarms per hour |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        taught, prototype = ("{:.3f} ± {:.3f}".format(*row[name]) for name in ("taught", "prototype"))
        fit_head = "{:.3f} ± {:.3f}".format(*row["fit_head"]) if row["fit_head"] else "–"
        lines.append(
            f"| {row['task']} | {row['ways']} | {row['shots']} | {taught} | {prototype} | {fit_head} "
            f"| {row['missed'][0]:.3f} | {row['false_alarms_per_hour']} |"
        )
    hours = {row["task"]: row["other_hours"] for row in result["rows"]}
    heard = ", ".join(f"{each} h for {task}" for task, each in hours.items())
    note = (
        f"{result['draws']} draws (a tenth as many of all labels), mean ± standard error. missed: clips of "
        f"the labels that are taken for none of these. False alarms on other data: {heard}. A fit of 1,000 "
        f"examples of ten labels takes {result['fit_s']} s of one core."
    )
    return "\n".join([*lines, "", note])


def summary(result: Result) -> str:
    """For docs/guides/doorbell.md, by how many examples of each label. Left out are labels that only one
    number of examples allows."""
    by_task: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        by_task.setdefault((row["task"], row["ways"]), {})[row["shots"]] = row
    by_task = {key: rows for key, rows in by_task.items() if len(rows) > 1}
    lines = [
        "| recordings of each label | " + " | ".join(map(str, SHOTS)) + " |",
        "|---|" + "---|" * len(SHOTS),
    ]
    for (task, ways), rows in by_task.items():
        told = [f"{100 * rows[n]['taught'][0]:.0f} %" if n in rows else "–" for n in SHOTS]
        lines.append(f"| {TASK_NAMES[task]}, one of {ways}: told right | " + " | ".join(told) + " |")
    for (task, ways), rows in by_task.items():
        alarms = [f"{rows[n]['false_alarms_per_hour']:.0f}" if n in rows else "–" for n in SHOTS]
        lines.append(
            f"| {TASK_NAMES[task]}, {ways} labels: false alarms an hour | " + " | ".join(alarms) + " |"
        )
    return "\n".join(lines)


def _mean(scores: NDArray[np.float64]) -> tuple[float, float]:
    """And its standard error."""
    return round(float(scores.mean()), 4), round(float(scores.std() / np.sqrt(len(scores))), 4)


class _Cache:
    """Paths below DATA in, their embeddings (n, D) out, each computed once."""

    def __init__(self, model: Model, file: Path | None) -> None:
        self._model = model
        self._file = file
        self._vectors: dict[str, Vectors] = {}
        if file and file.exists():
            kept = np.load(file)
            self._vectors = dict(zip(kept["names"].tolist(), kept["vectors"], strict=True))

    def __call__(self, names: list[str]) -> Vectors:
        missing = [name for name in names if name not in self._vectors]
        for name, result in zip(
            missing, embed_files(self._model, [DATA / each for each in missing]), strict=True
        ):
            assert result.embedding is not None, result.error
            self._vectors[name] = result.embedding
        if missing and self._file:
            np.savez(self._file, names=list(self._vectors), vectors=np.stack([*self._vectors.values()]))
        return np.stack([self._vectors[name] for name in names])


if __name__ == "__main__":
    main()
