"""How the clips of a run are dealt out: clips and a recipe in, the batches of every step out.

A plan follows from clips, recipe and number of processes alone. Every draw of step n is seeded by (seed, n),
so a run and its continuation get the same batches.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.clips import LENGTHS, SEGMENTS, STATISTICS, Clips, DataError, draw_segments, epoch_order
from training.logmel import LogMel
from training.pretrain.augmentations import EPS
from training.pretrain.distributed import World
from training.pretrain.recipe import Recipe, RecipeError

LENGTHS_PER_S = 2  # long crops last a multiple of half a second: few lengths, few shapes of the networks


@dataclass(frozen=True)
class Batch:
    """What a step is given: clip indices (B,), waveforms (1 or 2, B, samples), and where there are teachers
    what they say of the first, one (B, numbers) per subject.

    prepared_s, teachers_s: how long it took to make, and how much of that the teachers took.
    """

    clips: NDArray[np.int64]
    waveforms: Tensor
    answers: tuple[Tensor, ...] = ()
    prepared_s: float = 0.0
    teachers_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The same for every process but for its place in the world."""

    clips: Clips
    recipe: Recipe
    world: World
    segment: int  # samples
    distance: int  # samples
    batch_size: int  # over all processes
    steps_per_epoch: int
    steps: int

    def batches(self, first: int, last: int, prepare: "Prepare | None" = None) -> Iterator[Batch]:
        """Those of the steps first .. last - 1, read (and prepared) ahead."""
        order_of = lru_cache(maxsize=1)(self.order)  # an epoch's order is drawn once

        def made(step: int) -> Batch:
            began = time.perf_counter()
            step = self.repeated(step)
            batch = self.batch(order_of, step)
            batch = prepare(batch, self, step) if prepare else batch
            return replace(batch, prepared_s=time.perf_counter() - began)

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(made, first) if first < last else None
            for step in range(first, last):
                assert ahead is not None
                batch = ahead.result()
                ahead = reader.submit(made, step + 1) if step + 1 < last else None
                yield batch

    def repeated(self, step: int) -> int:
        """The step whose batch this one has: itself, unless the recipe has a number of different ones."""
        distil = self.recipe.distil
        return step % distil.different_batches if distil and distil.different_batches else step

    def batch(self, order_of: Callable[[int], NDArray[np.int64]], step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = order_of(epoch)
        size = self.batch_size  # what is left over has its turn in another epoch
        mine = order[position * size : (position + 1) * size][self.world.rank :: self.world.size]
        segment = self.segment_of(step)
        mine = mine[: self.crops_of(len(mine), segment)]
        waveforms = draw_segments(
            self.clips,
            mine,
            segment=segment,
            distance=self.distance,
            short_clips=self.recipe.data.short_clips,
            seed=(self.recipe.optimisation.seed, SEGMENTS, step, self.world.rank),
        )
        return Batch(mine, torch.from_numpy(waveforms))

    def crops_of(self, size: int, segment: int) -> int:
        """How many crops of `segment` samples stand for `size` of the usual length: as much sound."""
        return max(2, size * self.segment // segment)

    def segments_in(self, step: int) -> int:
        """The crops of a step, over all processes."""
        step, size = self.repeated(step), self.world.size
        parts = [len(range(rank, self.batch_size, size)) for rank in range(size)]
        return sum(self.crops_of(part, self.segment_of(step)) for part in parts)

    def segment_of(self, step: int) -> int:
        """Samples of the crops of a step: a share of the steps has long ones, the same in every process."""
        waveform = self.recipe.waveform
        if not (waveform and waveform.long_share):
            return self.segment
        random = np.random.default_rng((self.recipe.optimisation.seed, LENGTHS, step))
        if random.random() >= waveform.long_share:
            return self.segment
        rate = self.clips.sample_rate
        return max(
            self.segment, int(random.uniform(*waveform.long_s) * LENGTHS_PER_S) * rate // LENGTHS_PER_S
        )

    @property
    def longest(self) -> int:
        """Samples of the longest crops that there may be."""
        waveform = self.recipe.waveform
        if not (waveform and waveform.long_share):
            return self.segment
        return max(self.segment, int(waveform.long_s[1] * self.clips.sample_rate))

    def order(self, epoch: int) -> NDArray[np.int64]:
        return epoch_order(
            self.clips,
            segment=self.segment,
            draws_power=self.recipe.data.draws_power,
            seed=self.recipe.optimisation.seed,
            epoch=epoch,
        )


Prepare = Callable[[Batch, Plan, int], Batch]  # what else is made of a batch, beside the step


def plan_of(clips: Clips, recipe: Recipe, world: World) -> Plan:
    """Batches of one size near the recipe's: no remainder of one segment meets the batch normalisation.

    Raises RecipeError for segments too short for the log-mel, DataError for too few clips.
    """
    frontend = recipe.encoder.frontend
    segment = int(recipe.data.segment_s * frontend.sample_rate)
    distance = int(recipe.data.view_distance_s * frontend.sample_rate)
    if segment < frontend.min_samples:
        raise RecipeError(
            f"data.segment_s = {recipe.data.segment_s:g} is too short: the log-mel needs "
            f"{frontend.min_samples / frontend.sample_rate:g} s."
        )
    draft = Plan(clips, recipe, world, segment, distance, batch_size=1, steps_per_epoch=1, steps=1)
    draws = len(draft.order(epoch=0))
    if draws < 2 * world.size:
        raise DataError(
            f"{draws} segments an epoch are too few for {world.size} processes: two for each are needed."
        )
    steps_per_epoch = max(1, round(draws / recipe.optimisation.batch_size))
    steps_per_epoch = min(steps_per_epoch, draws // (2 * world.size))
    steps = max(1, round(recipe.optimisation.epochs * steps_per_epoch))
    return Plan(clips, recipe, world, segment, distance, draws // steps_per_epoch, steps_per_epoch, steps)


@dataclass(frozen=True)
class Statistics:
    """Mean and (population) std of the log-mels of a dataset, over all elements."""

    mean: float
    std: float


def crops(plan: Plan, logmel: LogMel, count: int) -> Tensor:
    """(count, 1, F, T) log-mels of random segments, each of another clip, as far as there are clips."""
    seed = plan.recipe.optimisation.seed
    chosen = np.random.default_rng((seed, STATISTICS, 0)).permutation(len(plan.clips))[:count]
    waveforms = draw_segments(
        plan.clips,
        chosen,
        segment=plan.segment,
        distance=0,
        short_clips=plan.recipe.data.short_clips,
        seed=(seed, STATISTICS, 1),
    )
    return logmel(torch.from_numpy(waveforms[0]).to(plan.world.device))


def measure_statistics(plan: Plan, logmel: LogMel) -> Statistics:
    """From `statistics_crops` random segments (each clip at most once), over all elements in float64."""
    seed, data = plan.recipe.optimisation.seed, plan.recipe.data
    random = np.random.default_rng((seed, STATISTICS, 0))
    chosen = random.permutation(len(plan.clips))[: data.statistics_crops]
    total, squares, count = 0.0, 0.0, 0
    for number, part in enumerate(np.array_split(chosen, math.ceil(len(chosen) / 256))):
        waveforms = draw_segments(
            plan.clips,
            part,
            segment=plan.segment,
            distance=0,
            short_clips=data.short_clips,
            seed=(seed, STATISTICS, 1 + number),
        )
        x = logmel(torch.from_numpy(waveforms[0]).to(plan.world.device)).double()
        total, squares, count = total + x.sum().item(), squares + (x * x).sum().item(), count + x.numel()
    mean = total / count
    return Statistics(mean=mean, std=math.sqrt(max(squares / count - mean * mean, EPS**2)))
