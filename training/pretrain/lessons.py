"""The lessons of a run: a step's crops in, what all hear of them and what the teachers say to it out.

    crops (V, B, samples) ─► augmented ─┬─► the student's step
                                        └─► teachers: answers, one (B, numbers) per subject
                                              └─ read from a file where this batch was heard before

With `distil.different_batches` = N the run has N batches, which come again and again, and the teachers are
asked once. Their answers lie in a file beside the run; it can be deleted at any time.

This runs in the thread that reads ahead, beside the step.
"""

import io
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.process.files import write_whole
from training.clips import STATISTICS, WAVEFORMS, draw_segments
from training.pretrain.recipe import DistilRecipe, Recipe
from training.pretrain.sampler import Batch, Plan
from training.pretrain.teachers import Answers, Subject, Teacher
from training.pretrain.waveforms import augmented

MEASURED_AT_ONCE = 128  # crops


@dataclass(frozen=True)
class Lessons:
    """answers: the folder that keeps what teachers have said, or None."""

    teachers: Sequence[Teacher]
    recipe: Recipe
    sample_rate: int
    answers: Path | None = None

    @property
    def distil(self) -> DistilRecipe:
        assert self.recipe.distil
        return self.recipe.distil

    @property
    def subjects(self) -> list[Subject]:
        """In the order of the answers."""
        return list(chain.from_iterable(teacher.subjects(**self._asked) for teacher in self.teachers))

    @property
    def _asked(self) -> dict[str, bool]:
        return {
            "embedding": self.distil.embedding_weight > 0,
            "tags": self.distil.tag_weight > 0,
            "maps": self.distil.map_weight > 0,
        }

    def prepare(self, batch: Batch, plan: Plan, step: int) -> Batch:
        """The batch as it is heard, with the answers to its first view. step: a repeated one's first."""
        views = batch.waveforms.numpy()
        heard = np.stack([self.heard(view, plan, step, number) for number, view in enumerate(views)])
        began = time.perf_counter()
        answers = self.answers_to(heard[0], plan, step)
        return Batch(
            clips=batch.clips,
            waveforms=torch.from_numpy(heard),
            answers=tuple(map(torch.from_numpy, answers)),
            teachers_s=time.perf_counter() - began,
        )

    def heard(self, view: NDArray[np.float32], plan: Plan, step: int, number: int) -> NDArray[np.float32]:
        seed = (self.recipe.optimisation.seed, WAVEFORMS, step, plan.world.rank, 1 + number)
        return self.augmented(view, seed, is_long=view.shape[1] > plan.segment)

    def augmented(
        self, view: NDArray[np.float32], seed: tuple[int, ...], *, is_long: bool
    ) -> NDArray[np.float32]:
        assert self.recipe.waveform
        return augmented(
            view,
            self.recipe.waveform,
            sample_rate=self.sample_rate,
            is_long=is_long,
            random=np.random.default_rng(seed),
        )

    def answers_to(self, heard: NDArray[np.float32], plan: Plan, step: int) -> Answers:
        if self.answers is None or not self.distil.different_batches:
            return self.ask(heard)
        file = self.answers / f"{step}.{plan.world.rank}of{plan.world.size}.npz"
        if (kept := _read(file, len(heard), self.subjects)) is not None:
            return kept
        answers = self.ask(heard)
        _keep(file, answers)
        return answers

    def ask(self, heard: NDArray[np.float32]) -> Answers:
        return tuple(chain.from_iterable(teacher.answers(heard, **self._asked) for teacher in self.teachers))


def first_lessons(plan: Plan, lessons: Lessons) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """(waveforms (B, samples), answers) of `distil.statistics_crops` crops, each of another clip as far as
    there are clips: what a run measures its teachers on. The same for every process."""
    seed = (lessons.recipe.optimisation.seed, STATISTICS)
    crops = np.random.default_rng((*seed, 0)).permutation(len(plan.clips))
    crops = crops[: lessons.distil.statistics_crops]
    for number, part in enumerate(np.array_split(crops, max(1, len(crops) // MEASURED_AT_ONCE))):
        waveforms = draw_segments(
            plan.clips,
            part,
            segment=plan.segment,
            distance=0,
            short_clips=plan.recipe.data.short_clips,
            seed=(*seed, 2, number),
        )
        heard = lessons.augmented(waveforms[0], (*seed, 3, number), is_long=False)
        yield torch.from_numpy(heard), tuple(map(torch.from_numpy, lessons.ask(heard)))


def _read(file: Path, crops: int, subjects: Sequence[Subject]) -> Answers | None:
    """What `_keep` wrote; None where there is no such file, or none that fits."""
    try:
        with file.open("rb") as opened, np.load(opened) as arrays:
            answers = tuple(arrays[f"arr_{number}"] for number in range(len(subjects)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = all((len(a), a.shape[-1]) == (crops, s.size) for a, s in zip(answers, subjects, strict=True))
    return answers if fits else None


def _keep(file: Path, answers: Answers) -> None:
    """A full disk is no reason to stop: the teachers are asked again."""
    content = io.BytesIO()
    np.savez(content, *answers)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content.getbuffer())
