"""Labelled sounds: a folder per class, or a CSV, in; tasks with their clips, labels and parts out.

    sounds/                       file_name,label,split            file_name,task,label,fold
      dog/a.wav                   a.wav,dog,train                  a.wav,esc50,dog,1
      rain/b.flac                 b.flac,"rain,wind",test          b.flac,esc50,rain,5

A comma inside `label` means several labels. `split` is train, valid (or val) or test; `fold` is a number for
cross-validation, or one of those words. Without either, five folds are drawn. A CSV with a column `task`
holds several tasks; rows of the task `unlabelled` belong to none. The field's own forms are in `corpora`.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.bulk.offline import audio_files
from service.bulk.table import as_utf_8
from training.clips import DataError, rows_of_csv
from training.corpora.known import corpus
from training.corpora.sound import Sound
from training.probe.linear import MULTICLASS, MULTILABEL, Targets

TRAIN, VALID, TEST = "train", "valid", "test"
SPLITS = {TRAIN: TRAIN, VALID: VALID, "val": VALID, TEST: TEST}  # as written -> as meant
PARTS = {*SPLITS, "training", "validation", "dev", "testing", "eval"}  # what folders of parts are called
DRAWN_FOLDS = 5
UNLABELLED = "unlabelled"  # rows of this task have no class


@dataclass(frozen=True)
class LabelledClip:
    path: Path
    labels: tuple[str, ...]
    part: str  # train, valid, test, the number of a fold, or empty


@dataclass(frozen=True)
class LabelledTask:
    """One classification task: its clips, and what is to be told apart."""

    name: str
    clips: tuple[LabelledClip, ...]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({label for clip in self.clips for label in clip.labels}))

    @property
    def kind(self) -> str:
        return MULTILABEL if any(len(clip.labels) > 1 for clip in self.clips) else MULTICLASS

    @property
    def metric(self) -> str:
        return "accuracy" if self.kind == MULTICLASS else "mAP"

    @cached_property
    def targets(self) -> Targets:
        """(n,) int64 class numbers, or (n, C) float32 of 0 and 1 where a clip has several labels."""
        number = {label: i for i, label in enumerate(self.labels)}
        if self.kind == MULTICLASS:
            return np.array([number[clip.labels[0]] for clip in self.clips], dtype=np.int64)
        targets = np.zeros((len(self.clips), len(self.labels)), dtype=np.float32)
        for row, clip in zip(targets, self.clips, strict=True):
            row[[number[label] for label in clip.labels]] = 1
        return targets

    @cached_property
    def parts(self) -> NDArray[np.str_]:
        """(n,) the part of each clip; folds are drawn, the same every time, where the data name none.

        Raises DataError where some clips have a part and others none, or some a split and others a fold.
        """
        given = np.array([clip.part for clip in self.clips])
        self.refuse_a_file_in_two_parts()
        if (given != "").any():
            self.refuse_mixed_parts()
            return given
        order = np.random.default_rng(0).permutation(len(given))
        by_label = sorted(order, key=lambda i: self.clips[i].labels)  # every class in every fold
        drawn = np.empty(len(given), dtype=object)
        drawn[by_label] = [str(1 + rank % DRAWN_FOLDS) for rank in range(len(given))]
        return drawn.astype(str)

    def refuse_one_class(self) -> None:
        if len(self.labels) < 2:
            raise DataError(
                f"The task {self.name} has one class only, '{self.labels[0]}': there is nothing to tell it "
                "from. Give sounds of another class, too, such as what else is heard there."
            )

    def refuse_a_file_in_two_parts(self) -> None:
        """It would be trained on and tested on; rows without a part may be drawn into two."""
        seen: dict[str, LabelledClip] = {}
        for clip in self.clips:
            other = seen.setdefault(os.path.realpath(clip.path), clip)
            if other is clip or (clip.part and clip.part == other.part):
                continue
            where = f"in {other.part} and in {clip.part}" if other.part and clip.part else "twice"
            again = f", as {clip.path}" if clip.path != other.path else ""
            raise DataError(
                f"The task {self.name} has {other.path} {where}{again}: a file that is trained on cannot be "
                "tested on. Name it once; several labels go into one cell, with commas between."
            )

    def refuse_mixed_parts(self) -> None:
        has_splits = any(clip.part in SPLITS for clip in self.clips)
        for clip in self.clips:
            if not clip.part:
                raise DataError(
                    f"{clip.path} of the task {self.name} has no split or fold, unlike others: give "
                    "every row one, or none."
                )
            if has_splits and clip.part not in SPLITS:
                raise DataError(
                    f"{clip.path} of the task {self.name} has the split or fold '{clip.part}' where other "
                    f"clips have one of {', '.join(SPLITS)}: give every row one of these, or every row the "
                    "number of a fold."
                )


@dataclass(frozen=True)
class Split:
    """Which clips of a task are trained on, stopped on (none: a tenth of train is drawn) and tested on."""

    name: str
    train: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    test: NDArray[np.bool_]


def splits_of(task: LabelledTask, test_folds: tuple[str, ...] = ()) -> list[Split]:
    """One split for train/valid/test, one per fold for cross-validation (or only for `test_folds`).

    Raises DataError where there is nothing to train on, to test on, or to tell apart.
    """
    parts = task.parts
    if set(parts) <= {TRAIN, VALID, TEST}:
        if TRAIN not in parts or TEST not in parts:
            raise DataError(f"The task {task.name} needs clips of the splits train and test.")
        task.refuse_one_class()
        return [Split(TEST, parts == TRAIN, parts == VALID, parts == TEST)]
    folds = sorted(set(parts))
    wanted = [fold for fold in folds if not test_folds or fold in test_folds]
    if not wanted or len(folds) < 2:
        raise DataError(f"The task {task.name} has the folds {', '.join(folds)}, none to test on.")
    task.refuse_one_class()
    none = np.zeros(len(parts), dtype=bool)
    return [Split(f"fold {fold}", parts != fold, none, parts == fold) for fold in wanted]


def read_tasks(data: Path, where: dict[str, str] | None = None) -> list[LabelledTask]:
    """The tasks of a folder or CSV, in order of appearance; of a CSV the rows that have these values."""
    if (sounds := corpus(data, where or {})) is not None:
        clips = clips_of_corpus(sounds)
    else:
        clips = clips_of_folder(data) if data.is_dir() else clips_of_csv(data, where or {})
    if not clips:
        raise DataError(
            f"{data} holds no labelled sound: give a folder per class, or a CSV with file_name and label."
        )
    return [LabelledTask(name, tuple(members)) for name, members in clips.items()]


def sounds_by_name(data: Path, where: dict[str, str] | None = None) -> dict[str, list[Path]]:
    """Sounds that need no labels, by the folder that they lie in, by the column `label` of a CSV (of which
    only the rows with the values of `where` count), or by the name of the data."""
    sounds: dict[str, list[Path]] = defaultdict(list)
    if (known := corpus(data, where or {})) is not None:
        for sound in known:
            sounds[next(iter(sound.labels), data.stem)].append(sound.path)
    elif data.is_dir():
        for path in audio_files([data]):
            inner = path.relative_to(data).parts[:-1]
            sounds[inner[0] if inner else data.name].append(path)
    else:
        for path, row in rows_of_csv(data, where or {}):
            sounds[row.get("label") or data.stem].append(path)
    if not sounds:
        raise DataError(f"{data} holds no sound: give a folder of sounds, or a CSV with file_name.")
    return dict(sounds)


def clips_of_corpus(sounds: Iterable[Sound]) -> dict[str, list[LabelledClip]]:
    tasks: dict[str, list[LabelledClip]] = defaultdict(list)
    for sound in sounds:
        if sound.labels:
            tasks[sound.task].append(LabelledClip(sound.path, sound.labels, sound.part))
    return tasks


def clips_of_folder(folder: Path) -> dict[str, list[LabelledClip]]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    parts = [path.name for path in classes if path.name.lower() in PARTS]
    if len(parts) > 1:
        raise DataError(
            f"{folder} holds the folders {', '.join(parts)}, which are parts and no classes: give a CSV with "
            "file_name, label and split."
        )
    files = {label: audio_files([label]) for label in classes}
    clips = [LabelledClip(path, (label.name,), "") for label in classes for path in files[label]]
    for label in classes:
        if (shown := as_utf_8(label.name)) != label.name:
            raise DataError(f"{folder} holds {shown}, a label that is no UTF-8: rename the folder.")
        if clips and not files[label]:
            raise DataError(
                f"{label} holds no sound, and a class without any cannot be learnt: add some, or take the "
                "folder away."
            )
    return {folder.name: clips} if clips else {}


def clips_of_csv(table: Path, where: dict[str, str]) -> dict[str, list[LabelledClip]]:
    tasks: dict[str, list[LabelledClip]] = defaultdict(list)
    for path, row in rows_of_csv(table, where, needs=("label",)):
        name = row.get("task") or table.stem
        labels = tuple(label.strip() for label in row["label"].split(",") if label.strip())
        if labels and name != UNLABELLED:
            tasks[name].append(LabelledClip(path, labels, part_of(path, row)))
    return tasks


def part_of(path: Path, row: dict[str, str]) -> str:
    split, fold = (row.get(column, "").strip() for column in ("split", "fold"))
    if split and split not in SPLITS:
        raise DataError(f"{path} has the split '{split}', which is none of {', '.join(SPLITS)}.")
    return SPLITS.get(split or fold, fold)
