"""A model folder with the head `audioset` and the folder of real audio in, docs/how_good_are_the_tags.md out.

    python -m benchmarks.tag_page --data FOLDER [--model models/byola] [--beside MODEL] [--teacher MODEL]

Fifty clips that no shipped weights have heard are drawn, the same every time, and classified as /classify
does. A clip is right where one of its first three tags is a name of its label (tag_labels.toml). What `known`
is worth is measured too, for the folder's heads of one label that have it.
"""

import argparse
import csv
import random
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.results import ROOT, command, commit, say
from service.bulk.offline import classify_files, embed_files
from service.inference.heads import Head, Tag
from service.inference.model import Model
from service.inference.windows import embed
from training.probe.known import auroc_of

HEAD = "audioset"
FIRST = 3
SEED = 0
PAGE = ROOT / "docs" / "how_good_are_the_tags.md"
LABELS = Path(__file__).parent / "tag_labels.toml"
SURE = 0.1  # from this score on a tag is also counted as said with some confidence
# Of each dataset the task whose labels are used, and how many clips, of as many labels as it has.
DRAWN = {
    "esc50": ("esc50", 32),
    "music": ("unlabelled", 5),
    "asc": ("asc_keyword", 3),
    "fsdd": ("fsdd_digit", 2),
    "instruments": ("instrument", 8),
}
SILENCES_S = tuple(0.5 * n for n in range(1, 21))
AT_MOST = 100  # clips of each kind that `known` is asked about
# A head's own test clips, which its `known` knows by their distances: the task and fold of its results.
TASKS = {
    "esc50": ("esc50", "5"),
    "esc10": ("esc10", "5"),
    "digits": ("fsdd_digit", "test"),
    "instruments": ("instrument", "5"),
}

Row = dict[str, str]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """names: those of AudioSet that say its label."""

    path: Path
    dataset: str
    label: str
    names: frozenset[str]

    def is_said(self, tags: Sequence[Tag], at_least: float = 0.0) -> bool:
        return any(tag.label in self.names and tag.score >= at_least for tag in tags)


def main() -> None:
    arguments = arguments_of(sys.argv[1:])
    rows = rows_of(arguments.data / "manifest.csv")
    clips = drawn(arguments.data, rows, names_of(LABELS))
    model = Model.load(arguments.model, device="cpu")
    if HEAD not in model.heads:
        sys.exit(f"error: {arguments.model} has no head {HEAD}; it has {', '.join(model.heads) or 'none'}")
    said = tags_of(model, [clip.path for clip in clips])
    taught = None
    if arguments.teacher:
        teacher = Model.load(arguments.teacher, device="cpu", precision="float32")
        taught = tags_of(teacher, [clip.path for clip in clips])
    beside = {}
    if arguments.beside:
        other = Model.load(arguments.beside, device="cpu")
        name = f"`{other.card.name}` {other.card.version}"
        beside[name] = tags_of(other, [clip.path for clip in clips])
    known = known_rows(model, arguments.data, rows)
    arguments.out.write_text(page(model, clips, said, taught, known, beside), encoding="utf-8")
    say(f"{arguments.out}: {count(clips, said)} of {len(clips)} clips are right")


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tag_page", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real audio with manifest.csv")
    parser.add_argument("--model", type=Path, default=Path("models/byola"), help="(default: %(default)s)")
    parser.add_argument("--beside", type=Path, help="a model folder with this head: how many it has right")
    parser.add_argument("--teacher", type=Path, help="a model folder with the same head: what it says")
    parser.add_argument("--out", type=Path, default=PAGE)
    return parser.parse_args(argv)


def rows_of(manifest: Path) -> list[Row]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names_of(table: Path) -> dict[str, dict[str, list[str]]]:
    """dataset → label, or `*` for any other → names of AudioSet."""
    found: dict[str, dict[str, list[str]]] = tomllib.loads(table.read_text(encoding="utf-8"))
    return found


def is_unheard(row: Row) -> bool:
    """By all shipped weights, which were trained on what may be handed on and is not held out."""
    return row["pretrain"] == "no" or row["redistributable"] == "no"


def drawn(data: Path, rows: Iterable[Row], names: dict[str, dict[str, list[str]]]) -> list[Clip]:
    """DRAWN of each dataset: one clip of each label in a random order, round after round until there are
    enough."""
    dice = random.Random(SEED)
    clips = []
    for dataset, (task, n) in DRAWN.items():
        by_label: dict[str, list[str]] = {}
        for row in rows:
            if (row["dataset"], row["task"]) == (dataset, task) and is_unheard(row):
                paths = by_label.setdefault(row["label"], [])
                if row["path"] not in paths:
                    paths.append(row["path"])
        labels = sorted(by_label)
        dice.shuffle(labels)
        for paths in by_label.values():
            dice.shuffle(paths)
        taken: list[tuple[str, str]] = []
        while len(taken) < n and any(by_label.values()):
            taken += [(label, by_label[label].pop()) for label in labels if by_label[label]]
        of_dataset = names[dataset]
        for label, path in sorted(taken[:n]):
            said_by = frozenset(of_dataset[label] if label in of_dataset else of_dataset["*"])
            clips.append(Clip(data / path, dataset, label, said_by))
    return clips


def tags_of(model: Model, paths: Sequence[Path]) -> list[tuple[Tag, ...]]:
    results = classify_files(model, paths, head=HEAD, top_k=FIRST, threshold=0.0)
    found = [(result.path, result.tags) for result in results]
    for path, tags in found:
        if tags is None:
            sys.exit(f"error: {path} cannot be classified")
    return [tags.best for _, tags in found if tags]


def known_rows(model: Model, data: Path, rows: Sequence[Row]) -> list[list[str]]:
    """For each head of one label that knows: its name, how many test clips it is asked about, and the AUROC
    of `known` between these and other sounds."""
    heads = {name: head for name, head in model.heads.items() if head.known and name in TASKS}
    if not heads:
        return []

    def some(is_wanted: Callable[[Row], bool]) -> Vectors:
        paths = sorted({row["path"] for row in rows if is_wanted(row)})
        return vectors_of(
            model, [data / path for path in random.Random(SEED).sample(paths, min(AT_MOST, len(paths)))]
        )

    others = {
        "speech": some(lambda row: row["dataset"] == "asc" and is_unheard(row)),
        "music": some(lambda row: row["dataset"] == "music" and is_unheard(row)),
        "baby cries": some(lambda row: row["dataset"] == "donateacry"),
        "silence": silences(model),
    }
    table = []
    for name, head in heads.items():
        own = some(partial(is_test_clip, TASKS[name]))
        inside = known_of(head, own)
        told = [f"{auroc_of(inside, known_of(head, each)):.2f}" for each in others.values()]
        table.append([name, str(len(own)), *told])
    return table


def is_test_clip(task_and_fold: tuple[str, str], row: Row) -> bool:
    return (row["task"], row["fold"]) == task_and_fold


def vectors_of(model: Model, paths: Sequence[Path]) -> Vectors:
    return np.stack([each.embedding for each in embed_files(model, paths) if each.embedding is not None])


def silences(model: Model) -> Vectors:
    """Digital silence of several lengths."""
    sounds = [np.zeros(round(seconds * model.card.sample_rate), np.float32) for seconds in SILENCES_S]
    return np.stack([embed(model.run, model.card, [model.logmel(sound)]).vector for sound in sounds])


def known_of(head: Head, vectors: Vectors) -> Vectors:
    return head.score_and_know(vectors)[:, -1]


def page(
    model: Model,
    clips: Sequence[Clip],
    said: Sequence[Sequence[Tag]],
    taught: Sequence[Sequence[Tag]] | None,
    known: list[list[str]],
    beside: Mapping[str, Sequence[Sequence[Tag]]] | None = None,
) -> str:
    """taught: what the teacher says of the clips; beside: what others say, by name."""
    others = {**(beside or {}), **({"the teacher": taught} if taught else {})}
    right = [clip.is_said(tags) for clip, tags in zip(clips, said, strict=True)]
    sure = sum(clip.is_said(tags, SURE) for clip, tags in zip(clips, said, strict=True))
    lines = [
        "# How good are the tags?",
        "",
        f"What `/classify` says with `{model.card.name}` {model.card.version} ({model.precision}) and its "
        f"head `{HEAD}` of fifty clips that no weights of this repository were trained on: held-out clips of "
        "ESC-50 and of the recordings of words, digits and instruments, and music that may not be handed on. "
        "They are drawn at random, the same every time, and none was taken out.",
        "",
        f"A clip is **right** where one of its first {FIRST} tags is a name of its label. The names are in "
        "`benchmarks/tag_labels.toml`; what is true and says little (Animal, Vehicle, Inside) does not "
        "count.",
        "",
        f"**{sum(right)} of {len(clips)} are right**, {sure} of them with a score of at least {SURE}"
        + "".join(f"; of {name}, by the same rule, {count(clips, tags)}" for name, tags in others.items())
        + ".",
        "",
        f"*{datetime.now(UTC).date().isoformat()}; commit {commit()}; `{command_line()}`*",
        "",
        "| it is | of | what is said, with its score |" + (" the teacher says |" if taught else "") + " so |",
        "|---|---|---|" + ("---|" if taught else "") + "---|",
    ]
    for i, (clip, tags) in enumerate(zip(clips, said, strict=True)):
        words = ", ".join(f"{tag.label} {tag.score:.2f}" for tag in tags)
        cells = [clip.label.replace("_", " "), clip.dataset, words]
        if taught:
            first = taught[i][0]
            cells.append(f"{first.label} {first.score:.2f}{'' if clip.is_said(taught[i]) else ' (wrong)'}")
        cells.append("right" if right[i] else "**wrong**")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *known_section(known), ""])


def count(clips: Sequence[Clip], said: Sequence[Sequence[Tag]]) -> int:
    """How many are right."""
    return sum(map(Clip.is_said, clips, said))


def command_line() -> str:
    """Without the paths of one machine."""
    return command().partition(" --")[0] + " --data FOLDER"


def known_section(known: list[list[str]]) -> list[str]:
    lines = [
        "## Is it any of the labels?",
        "",
        "A head of one label a clip always says one, and `known` whether to believe it. The AUROC is how "
        "often a clip of the head's own kinds, that it was not trained on, is more known than another sound, "
        "a tie counting half: 1 is always, 0.5 is by chance. Speech is recorded words of unheard speakers, "
        "baby cries are those of the Donate-a-cry corpus (one of esc50's labels is a crying baby), "
        "silence is digital. At "
        f"most {AT_MOST} clips of each.",
        "",
    ]
    if not known:
        return [*lines, "The folder has no head of one label that can tell."]
    head = ["head", "own clips", "speech", "music", "baby cries", "silence"]
    table = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *known)]
    return [*lines, *table]


if __name__ == "__main__":
    main()
