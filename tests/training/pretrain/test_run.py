"""A run starts from its seed, leaves all of itself in its folder and goes on from there alone."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.frontend import frontend_of
from training.clips import Clips
from training.logmel import LogMel
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.distributed import World
from training.pretrain.recipe import Recipe, RecipeError, recipe_of
from training.pretrain.run import (
    COLLAPSED_LOGS,
    Options,
    Run,
    TrainingError,
    check,
    new_run,
    save,
    start_run,
)
from training.pretrain.sampler import Plan, measure_statistics, plan_of

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
SPREAD, COLLAPSED = {"loss": 0.1, "embedding_std": 0.2}, {"loss": 0.1, "embedding_std": 0.001}


@pytest.fixture(scope="module")
def plan(clips: Clips, recipe: Recipe) -> Plan:
    return plan_of(clips, recipe, ALONE)


@pytest.fixture(scope="module")
def logmel(recipe: Recipe) -> LogMel:
    return LogMel(frontend_of(recipe.encoder.n_mels))


@pytest.fixture
def seventh(recipe: Recipe) -> Run:
    """A run after its seventh step."""
    run = new_run(recipe, ALONE.device)
    run.step = 7
    return run


# A new run


def test_a_run_starts_with_a_description_of_recipe_and_data(
    plan: Plan, logmel: LogMel, recipe: Recipe, clips: Clips, tmp_path: Path
) -> None:
    run = start_run(plan, logmel, Options(tmp_path / "run"))
    assert (run.step, run.segments_seen) == (0, 0)
    assert run.statistics == measure_statistics(plan, logmel)
    assert recipe_of(tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())) == recipe
    described = json.loads((tmp_path / "run" / "data.json").read_text())
    assert described["clips"] == 23
    assert described["hours"] == pytest.approx(clips.hours, abs=5e-4)
    assert described["unreadable"] == []


def test_the_weights_come_from_the_seed(recipe: Recipe) -> None:
    first, again = (new_run(recipe, ALONE.device).model.state_dict() for _ in range(2))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    reseeded = replace(recipe, optimisation=replace(recipe.optimisation, seed=43))
    other = new_run(reseeded, ALONE.device).model.state_dict()
    name = "online.encoder.fc.0.weight"
    assert not torch.equal(first[name], other[name])


def test_an_unknown_encoder_is_a_mistake_in_the_recipe(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"\[encoder\] There is no encoder 'byola-2024'"):
        new_run(replace(recipe, encoder=replace(recipe.encoder, name="byola-2024")), ALONE.device)


# Going on


def saved(run: Run, plan: Plan, logmel: LogMel, folder: Path) -> Run:
    """The run as a continuation finds it in the folder."""
    save(run, plan, Options(folder), final=True)
    return start_run(plan, logmel, Options(folder, resume=True))


def test_a_run_comes_back_as_it_was_saved(plan: Plan, logmel: LogMel, tmp_path: Path) -> None:
    run = start_run(plan, logmel, Options(tmp_path))
    run.step, run.segments_seen, run.collapsed_logs = 7, 21, 3
    run.memory.push(torch.randn(2, 1, 16, 96))
    for weights in (*run.model.parameters(), *run.average.parameters()):
        weights.data.add_(1.0)
    run.optimiser.param_groups[0]["lr"] = 0.5
    same = saved(run, plan, logmel, tmp_path)
    assert (same.step, same.segments_seen, same.collapsed_logs) == (7, 21, 3)
    assert same.statistics == run.statistics
    assert torch.equal(same.memory.sounds, run.memory.sounds)
    for mine, theirs in ((same.model, run.model), (same.average, run.average)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name
    assert same.optimiser.param_groups[0]["lr"] == 0.5


def test_a_run_is_not_continued_with_another_recipe(plan: Plan, logmel: LogMel, finished: Path) -> None:
    optimisation = replace(plan.recipe.optimisation, learning_rate=1.0)
    other = replace(plan, recipe=replace(plan.recipe, optimisation=optimisation))
    with pytest.raises(CheckpointError, match=r"optimisation\.learning_rate = 0\.0001, not 1\.0"):
        start_run(other, logmel, Options(finished, resume=True))


def test_a_run_is_not_continued_on_other_clips(
    plan: Plan, logmel: LogMel, clips: Clips, finished: Path
) -> None:
    total = clips.starts[-1]
    fewer = replace(clips, starts=clips.starts[:-1])
    shorter = replace(clips, starts=np.append(clips.starts[:-1], total - 1))
    for others, given in ((fewer, f"22 clips of {fewer.starts[-1]}"), (shorter, f"23 clips of {total - 1}")):
        with pytest.raises(
            CheckpointError, match=f"started on 23 clips of {total} samples in all, not on {given}"
        ):
            start_run(replace(plan, clips=others), logmel, Options(finished, resume=True))


def test_another_precision_or_number_of_processes_is_said(
    plan: Plan, logmel: LogMel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_before = Options(tmp_path, resume=True, precision="bfloat16")
    save(start_run(plan, logmel, replace(as_before, resume=False)), plan, as_before, final=True)
    start_run(plan, logmel, as_before)
    assert capsys.readouterr().err == ""
    two = replace(plan, world=World(rank=0, size=2, device=torch.device("cpu")))
    start_run(two, logmel, replace(as_before, precision="float32"))
    said = capsys.readouterr().err
    assert "trained with precision = bfloat16 and goes on with float32" in said
    assert "trained with processes = 1 and goes on with 2" in said


# Accidents


def test_embeddings_that_stay_collapsed_stop_the_run(seventh: Run) -> None:
    for _ in range(COLLAPSED_LOGS - 1):
        check(seventh, COLLAPSED)
    check(seventh, SPREAD)  # recovered: counted anew
    for _ in range(COLLAPSED_LOGS - 1):
        check(seventh, COLLAPSED)
    with pytest.raises(TrainingError, match=r"collapsed at step 7: their spread is 0\.0010"):
        check(seventh, COLLAPSED)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named(seventh: Run, loss: float) -> None:
    with pytest.raises(TrainingError, match=f"The loss is {loss} at step 7"):
        check(seventh, SPREAD | {"loss": loss})


def test_a_collapse_is_counted_on_across_an_interruption(plan: Plan, logmel: LogMel, tmp_path: Path) -> None:
    run = start_run(plan, logmel, Options(tmp_path))
    for _ in range(COLLAPSED_LOGS - 1):
        check(run, COLLAPSED)
    with pytest.raises(TrainingError, match="collapsed at step 0"):
        check(saved(run, plan, logmel, tmp_path), COLLAPSED)


@pytest.mark.parametrize(
    "name", ["online.encoder.fc.0.bias", "online.encoder.features.1.running_var", "target.encoder.fc.0.bias"]
)
def test_weights_that_are_no_numbers_are_not_saved(
    seventh: Run, plan: Plan, tmp_path: Path, name: str
) -> None:
    seventh.model.state_dict()[name][0] = math.nan
    with pytest.raises(TrainingError, match="The weights are no longer finite at step 7") as error:
        save(seventh, plan, Options(tmp_path), final=False)
    assert "continue with --resume --precision float32" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_average_or_an_optimiser_that_is_no_number_is_not_saved(
    seventh: Run, plan: Plan, tmp_path: Path
) -> None:
    bias = seventh.model.online.encoder.fc[0].bias
    bias.grad = torch.full_like(bias, math.inf)
    seventh.optimiser.step()
    bias.data.zero_()  # its moments alone are infinite now
    with pytest.raises(TrainingError, match="no longer finite"):
        save(seventh, plan, Options(tmp_path), final=False)
    seventh.optimiser.state.clear()
    save(seventh, plan, Options(tmp_path), final=False)
    seventh.average.state_dict()["fc.0.bias"][0] = math.nan
    with pytest.raises(TrainingError, match="no longer finite"):
        save(seventh, plan, Options(tmp_path), final=False)


def test_a_checkpoint_that_cannot_be_written_is_said_and_at_the_end_an_error(
    seventh: Run, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = Options(tmp_path / "nowhere")
    save(seventh, plan, nowhere, final=False)
    assert "The checkpoint of step 7 could not be written" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="Make room and continue with --resume"):
        save(seventh, plan, nowhere, final=True)


def test_the_first_process_alone_writes_the_checkpoint(seventh: Run, plan: Plan, tmp_path: Path) -> None:
    second = World(rank=1, size=2, device=torch.device("cpu"))
    save(seventh, replace(plan, world=second), Options(tmp_path), final=True)
    assert not list(tmp_path.iterdir())
    save(seventh, plan, Options(tmp_path), final=True)
    assert checkpoint.load(tmp_path)["step"] == 7
