"""Clips are dealt out the same way whenever and by however many processes they are asked for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.frontend import frontend_of
from training.clips import Clips, DataError, find_audio, load_clips
from training.logmel import LogMel
from training.pretrain.distributed import World
from training.pretrain.recipe import Recipe, RecipeError, load_recipe
from training.pretrain.sampler import Plan, Statistics, measure_statistics, plan_of

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
STEPS_PER_EPOCH, STEPS = 6, 12


def batches_of(plan: Plan, steps: int) -> list[list[int]]:
    return [[int(clip) for clip in batch.clips] for batch in plan.batches(0, steps)]


def test_an_epoch_is_dealt_out_in_batches_of_one_size_without_repetition(
    clips: Clips, recipe: Recipe
) -> None:
    plan = plan_of(clips, recipe, ALONE)
    assert (plan.steps_per_epoch, plan.steps, plan.segment) == (STEPS_PER_EPOCH, STEPS, 15_200)
    batches = batches_of(plan, STEPS)
    assert {len(batch) for batch in batches} == {3}
    for epoch in (batches[:STEPS_PER_EPOCH], batches[STEPS_PER_EPOCH:]):
        drawn = [clip for batch in epoch for clip in batch]
        assert len(set(drawn)) == len(drawn) == 18
    assert batches[:STEPS_PER_EPOCH] != batches[STEPS_PER_EPOCH:]


def test_two_processes_share_the_batches_of_one(clips: Clips, tiny: tuple[str, ...]) -> None:
    recipe = load_recipe("byola-2022", [*tiny, "optimisation.batch_size=8"])  # 3 batches of 7: 4 and 3
    alone = batches_of(plan_of(clips, recipe, ALONE), 6)
    halves = [batches_of(plan_of(clips, recipe, World(rank, 2, torch.device("cpu"))), 6) for rank in (0, 1)]
    assert [sorted(first + second) for first, second in zip(*halves, strict=True)] == [
        sorted(batch) for batch in alone
    ]


def test_a_batch_is_never_too_small_for_its_normalisation(clips: Clips, tiny: tuple[str, ...]) -> None:
    for size in (1, 2, 3, 5, 100):
        recipe = load_recipe("byola-2022", [*tiny, f"optimisation.batch_size={size}"])
        assert all(len(batch) >= 2 for batch in batches_of(plan_of(clips, recipe, ALONE), 3))


def test_batches_read_ahead_are_the_same_from_any_step_on(clips: Clips, recipe: Recipe) -> None:
    plan = plan_of(clips, recipe, ALONE)
    whole, later = list(plan.batches(0, 9)), list(plan.batches(4, 9))
    for batch, same in zip(whole[4:], later, strict=True):
        assert np.array_equal(batch.clips, same.clips)
        assert torch.equal(batch.waveforms, same.waveforms)
    assert batch.waveforms.shape == (1, 3, 15_200)


def test_one_clip_is_too_little(sounds: Path, cache: Path, recipe: Recipe) -> None:
    one = load_clips(find_audio(sounds)[:1], sample_rate=16_000, cache=cache)
    with pytest.raises(DataError, match="1 segments an epoch are too few"):
        plan_of(one, recipe, ALONE)


def test_a_segment_too_short_for_a_log_mel_is_refused(clips: Clips, recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"needs 0\.0320625 s"):
        plan_of(clips, replace(recipe, data=replace(recipe.data, segment_s=0.02)), ALONE)


def test_the_statistics_are_those_of_all_elements_in_float64(clips: Clips, recipe: Recipe) -> None:
    logmel = LogMel(frontend_of(recipe.encoder.n_mels))
    plan = plan_of(clips, recipe, ALONE)
    short = Clips(np.tile(clips.segment(0, 0, 15_200), 3), np.array([0, 1, 2, 3]) * 15_200, 16_000, [])
    short = replace(short, samples=np.rint(short.samples * 32768).astype(np.int16))  # one place to crop each
    x = logmel(torch.from_numpy(short.segment(0, 0, 15_200))[None]).double().numpy()
    statistics = measure_statistics(replace(plan, clips=short), logmel)
    assert statistics.mean == pytest.approx(x.mean(), rel=1e-9)
    assert statistics.std == pytest.approx(x.std(), rel=1e-7)


def test_the_statistics_are_of_as_many_crops_as_the_recipe_says(clips: Clips, recipe: Recipe) -> None:
    logmel, plan = LogMel(frontend_of(recipe.encoder.n_mels)), plan_of(clips, recipe, ALONE)

    def measured(crops: int) -> Statistics:
        fewer = replace(recipe, data=replace(recipe.data, statistics_crops=crops))
        return measure_statistics(replace(plan, recipe=fewer), logmel)

    assert measured(3) == measured(3) != measured(4)
    assert measured(23) == measured(10_000)
