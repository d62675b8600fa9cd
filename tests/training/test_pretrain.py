"""Pre-training of a tiny encoder on real sounds: what a run leaves, how it is interrupted and goes on."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import encoders
from training import checkpoint
from training.__main__ import main
from training.augmentations import MixupMemory
from training.byol import BYOL
from training.clips import Clips, DataError, find_audio, load_clips
from training.distributed import World
from training.logmel import LogMel
from training.pretrain import (
    COLLAPSED_LOGS,
    Options,
    Plan,
    Run,
    Statistics,
    TrainingError,
    autocast_of,
    check,
    embedding_std,
    frontend_of,
    learning_rate,
    measure_statistics,
    plan_of,
    pretrain,
    seeded,
    two_views,
    update_average,
)
from training.recipe import Recipe, RecipeError, as_toml, load_recipe, recipe_of

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
STEPS_PER_EPOCH, STEPS = 6, 12
REPOSITORY = Path(__file__).parents[2]

Execute = Callable[[list[str]], "subprocess.CompletedProcess[str]"]
Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def recipe(tiny: tuple[str, ...]) -> Recipe:
    return load_recipe("byola-2022", list(tiny))


def options_of(out: Path, **changes: Any) -> Options:
    return replace(Options(out=out, precision="float32", log_every=1, checkpoint_every_s=1e9), **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, clips: Clips, recipe: Recipe) -> Path:
    """A run of the whole recipe in one go, which others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    pretrain(clips, recipe, options_of(out), ALONE)
    return out


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in lines_of(run)}


def assert_same_result(run: Path, reference: Path) -> None:
    assert losses_of(run) == losses_of(reference)
    mine, theirs = checkpoint.load(run), checkpoint.load(reference)
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(mine[part][name], value), name
    for number, moments in theirs["optimiser"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(mine["optimiser"]["state"][number][name], value)
    assert torch.equal(mine["memory"], theirs["memory"])
    for name in ("step", "segments_seen", "statistics", "recipe"):
        assert mine[name] == theirs[name]


# What a run leaves


def test_a_run_is_a_folder_of_recipe_data_log_curves_and_checkpoint(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == [
        "checkpoint.pt",
        "data.json",
        "log.jsonl",
        "recipe.toml",
        "tensorboard",
    ]


def test_the_recipe_is_kept_as_it_was_used(finished: Path, recipe: Recipe) -> None:
    assert recipe_of(tomllib.loads((finished / "recipe.toml").read_text())) == recipe
    assert recipe_of(checkpoint.load(finished)["recipe"]) == recipe


def test_the_data_are_described(finished: Path, clips: Clips) -> None:
    described = json.loads((finished / "data.json").read_text())
    assert described["clips"] == 23
    assert described["hours"] == pytest.approx(clips.hours, abs=5e-4)
    assert described["unreadable"] == []


def test_the_log_has_a_line_per_step_with_finite_numbers(finished: Path) -> None:
    lines = lines_of(finished)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert set(lines[0]) == {
        "step",
        "epoch",
        "segments_seen",
        "loss",
        "embedding_std",
        "learning_rate",
        "view_mean",
        "view_std",
        "segments_per_s",
        "data_share",
        "time_s",
    }
    for line in lines:
        assert all(math.isfinite(value) for value in line.values())
        assert 0 <= line["loss"] <= 8
        assert 0 < line["embedding_std"] <= 1
        assert 0 < line["data_share"] < 1
        assert line["segments_per_s"] > 0
        assert line["learning_rate"] == 1e-4
    assert lines[-1]["epoch"] == 2
    assert lines[-1]["segments_seen"] == STEPS * 3


def test_the_first_the_last_and_every_so_many_steps_are_logged(
    clips: Clips, recipe: Recipe, tmp_path: Path, finished: Path
) -> None:
    pretrain(clips, recipe, options_of(tmp_path, log_every=5), ALONE)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 6, 11, 12]
    assert all(line["segments_per_s"] > 0 for line in lines_of(tmp_path))
    assert losses_of(tmp_path).items() <= losses_of(finished).items()


def test_the_curves_are_those_of_the_log(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    curve = {event.step: event.value for event in events.Scalars("loss")}
    assert curve == pytest.approx(losses_of(finished))


def test_the_weights_have_moved_and_the_target_follows(finished: Path, recipe: Recipe, clips: Clips) -> None:
    state = checkpoint.load(finished)
    torch.manual_seed(recipe.optimisation.seed)
    start = BYOL(load_encoder(recipe), recipe.byol.hidden_size, recipe.byol.projection_size).state_dict()
    name = "encoder.fc.0.weight"
    moved = (state["model"][f"online.{name}"] - start[f"online.{name}"]).norm()
    followed = (state["model"][f"target.{name}"] - start[f"target.{name}"]).norm()
    assert 0 < followed < 0.2 * moved
    assert state["model"]["online.encoder.features.1.num_batches_tracked"] == 2 * STEPS
    assert len(state["memory"]) == recipe.augmentation.mixup_memory
    assert torch.equal(
        state["average"]["fc.0.weight"], state["model"][f"online.{name}"]
    )  # average_decay is 0


def load_encoder(recipe: Recipe) -> Any:
    return encoders.build(recipe.encoder.name, n_mels=recipe.encoder.n_mels, d=recipe.encoder.d)


def test_the_first_encoder_trains_too(clips: Clips, tiny: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [*tiny, "encoder.d=32", "optimisation.epochs=0.5"]
    pretrain(clips, load_recipe("byola-2020", overrides), options_of(tmp_path), ALONE)
    assert len(lines_of(tmp_path)) == 3


def test_two_views_of_a_clip_may_come_from_two_places(
    clips: Clips, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = [*tiny, "data.view_distance_s=2.0", "data.draws_power=0.5", "optimisation.epochs=0.2"]
    pretrain(clips, load_recipe("byola-2022", overrides), options_of(tmp_path), ALONE)
    assert all(math.isfinite(loss) for loss in losses_of(tmp_path).values())


# Interruption


def test_a_run_in_parts_is_the_run_in_one_go(
    clips: Clips, recipe: Recipe, tmp_path: Path, finished: Path
) -> None:
    pretrain(clips, recipe, options_of(tmp_path, stop_after_steps=5), ALONE)
    assert len(lines_of(tmp_path)) == 5
    pretrain(clips, recipe, options_of(tmp_path, stop_after_steps=3, resume=True), ALONE)
    pretrain(clips, recipe, options_of(tmp_path, resume=True), ALONE)
    assert_same_result(tmp_path, finished)


def test_a_finished_run_resumed_stays_as_it_is(
    clips: Clips, recipe: Recipe, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    pretrain(clips, recipe, options_of(tmp_path / "run", resume=True), ALONE)
    assert_same_result(tmp_path / "run", finished)


def test_log_lines_after_the_checkpoint_and_a_line_cut_off_are_dropped(
    clips: Clips, recipe: Recipe, tmp_path: Path, finished: Path
) -> None:
    pretrain(clips, recipe, options_of(tmp_path, stop_after_steps=4), ALONE)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 99.0}\n{"step": 6, "lo')  # as a killed process leaves it
    pretrain(clips, recipe, options_of(tmp_path, resume=True), ALONE)
    assert_same_result(tmp_path, finished)


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_run_goes_on_to_the_same_result(
    command: Command,
    run: Execute,
    environment: dict[str, str],
    clips: Clips,
    tiny: tuple[str, ...],
    tmp_path: Path,
) -> None:
    longer = ("--set", "optimisation.epochs=8")
    out, reference = tmp_path / "killed", tmp_path / "reference"
    process = subprocess.Popen(
        command(out, *longer, "--checkpoint-every", "0.1"),
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = out / "log.jsonl"
    try:
        wait_until(
            lambda: (out / "checkpoint.pt").is_file() and len(log.read_text().splitlines()) > 10, process
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < checkpoint.load(out)["step"] < 48

    resumed = run(command(out, *longer, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert "48/48" in resumed.stderr
    pretrain(clips, load_recipe("byola-2022", [*tiny, "optimisation.epochs=8"]), options_of(reference), ALONE)
    assert_same_result(out, reference)


def test_a_run_is_not_continued_with_another_recipe(
    clips: Clips, recipe: Recipe, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    other = replace(recipe, optimisation=replace(recipe.optimisation, learning_rate=1.0))
    with pytest.raises(checkpoint.CheckpointError, match=r"optimisation\.learning_rate = 0\.0001, not 1\.0"):
        pretrain(clips, other, options_of(tmp_path / "run", resume=True), ALONE)
    assert_same_result(tmp_path / "run", finished)


# Accidents


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    clips: Clips, recipe: Recipe, tmp_path: Path
) -> None:
    absurd = replace(recipe, optimisation=replace(recipe.optimisation, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"last checkpoint is kept.*learning_rate"):
        pretrain(clips, absurd, options_of(tmp_path, checkpoint_every_s=0.0), ALONE)
    state = checkpoint.load(tmp_path)
    assert state["step"] >= 1
    assert all(torch.isfinite(value).all() for name, value in state["model"].items() if "running" not in name)
    assert all(math.isfinite(line["loss"]) for line in lines_of(tmp_path))


def tiny_run(recipe: Recipe) -> Run:
    model = BYOL(load_encoder(recipe), 8, 4)
    return Run(
        model=model,
        average=load_encoder(recipe),
        optimiser=torch.optim.Adam(model.online.parameters()),
        memory=MixupMemory(4),
        statistics=Statistics(0.0, 1.0),
        step=7,
    )


def test_embeddings_that_stay_collapsed_stop_the_run(recipe: Recipe) -> None:
    run = tiny_run(recipe)
    for _ in range(COLLAPSED_LOGS - 1):
        check(run, {"loss": 0.1, "embedding_std": 0.001})
    check(run, {"loss": 0.1, "embedding_std": 0.2})  # recovered: counted anew
    for _ in range(COLLAPSED_LOGS - 1):
        check(run, {"loss": 0.1, "embedding_std": 0.001})
    with pytest.raises(TrainingError, match=r"collapsed at step 7: their spread is 0\.0010"):
        check(run, {"loss": 0.1, "embedding_std": 0.001})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_named(recipe: Recipe, loss: float) -> None:
    with pytest.raises(TrainingError, match=f"The loss is {loss} at step 7"):
        check(tiny_run(recipe), {"loss": loss, "embedding_std": 0.2})


def test_the_spread_of_embeddings_runs_from_0_to_1() -> None:
    direction = torch.randn(1, 64)
    assert embedding_std(direction * torch.tensor([[1.0], [2.0], [9.0]])) == pytest.approx(0, abs=1e-3)
    assert embedding_std(torch.cat([direction, -direction])) == pytest.approx(1)
    assert embedding_std(torch.eye(4)) == pytest.approx(math.sqrt(1 - 1 / 4))


def test_a_full_disk_stops_nothing_and_loses_nothing(
    command: Command, run: Execute, environment: dict[str, str], tmp_path: Path
) -> None:
    out, longer = tmp_path / "run", ("--set", "optimisation.epochs=8")
    process = subprocess.Popen(
        command(out, *longer, "--checkpoint-every", "0.02"),
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,  # a file's would be full too
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until((out / "checkpoint.pt").is_file, process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))  # from now on no file can grow
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "The checkpoint of step" in errors
    assert "the one before is kept. Training goes on; make room on the disk." in errors
    assert "Make room and continue with --resume." in errors
    assert "48/48" in errors  # it went on to the end
    assert 0 < checkpoint.load(out)["step"] < 48
    assert not list(out.glob("*.part"))

    resumed = run(command(out, *longer, "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    assert checkpoint.load(out)["step"] == 48
    assert max(losses_of(out)) == 48


# Several processes


def test_two_processes_train_one_network_and_the_first_logs(
    command: Command, run: Execute, environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = command(tmp_path / "run", "--set", "optimisation.batch_size=8", "--stop-after", "4")
    done = run([*torchrun, *line[1:]])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(2 processes)") == 1
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert len(checkpoint.load(tmp_path / "run")["memory"]) == 16  # both processes' sounds


# The command


def test_the_command_reports_unreadable_files_and_progress(
    command: Command, fixtures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = command(tmp_path / "run", "--stop-after", "1")[3:]
    line[line.index("--data") + 1] = str(fixtures_dir)
    line[line.index("--cache") + 1] = str(tmp_path / "cache")
    assert main(line) == 0
    errors = capsys.readouterr().err
    assert "5 of 28 files cannot be read and are skipped:" in errors
    assert "nan_inf_float32.wav: " in errors
    assert "23 clips, 0.02 hours, on cpu (1 processes)" in errors
    assert "1/12" in errors
    assert "loss " in errors
    assert "segments/s" in errors
    assert len(json.loads((tmp_path / "run" / "data.json").read_text())["unreadable"]) == 5


def sentence_of(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(line) == 1
    return capsys.readouterr().err


def test_the_rows_of_a_csv_are_chosen_on_the_command_line(
    command: Command, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{path},{'yes' if i % 2 else 'no'}\n" for i, path in enumerate(sorted(sounds.iterdir()))]
    (tmp_path / "list.csv").write_text("file_name,free\n" + "".join(rows))
    line = command(tmp_path / "run", "--stop-after", "1", "--where", "free=yes")[3:]
    line[line.index("--data") + 1] = str(tmp_path / "list.csv")
    assert main(line) == 0
    assert "11 clips" in capsys.readouterr().err
    other = [*command(tmp_path / "other")[3:], "--where", "free"]
    assert "--where takes COLUMN=VALUE, not 'free'" in sentence_of(other, capsys)


def test_an_empty_folder_is_said(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nothing").mkdir()
    line = command(tmp_path / "run")[3:]
    line[line.index("--data") + 1] = str(tmp_path / "nothing")
    assert sentence_of(line, capsys).startswith(f"error: {tmp_path / 'nothing'} holds no audio")


def test_a_run_is_neither_overwritten_nor_continued_from_nothing(
    command: Command, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds a run already: continue it with --resume" in sentence_of(command(finished)[3:], capsys)
    line = command(tmp_path, "--resume")[3:]
    assert "holds no checkpoint.pt to continue from: start without --resume" in sentence_of(line, capsys)


def test_resume_takes_the_runs_own_recipe_and_refuses_another(
    command: Command, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    plain = command(tmp_path / "run", "--resume")[3:]
    without_overrides = [word for i, word in enumerate(plain) if "--set" not in (word, plain[i - 1])]
    assert main(without_overrides) == 0
    assert "error" not in capsys.readouterr().err
    assert "The run was started with encoder.name" in sentence_of([*plain, "--recipe", "byola-2020"], capsys)
    assert "The run was started with byol.target_decay = 0.99, not 0.5" in sentence_of(
        [*plain, "--set", "byol.target_decay=0.5"], capsys
    )


def test_an_encoder_that_cannot_be_built_is_said(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, sentence in (
        ("encoder.name=byola-2024", "There is no encoder 'byola-2024'"),
        ("encoder.d=100", "d = 100 leaves nothing for the MLP"),
        ("data.segment_s=0.01", "data.segment_s = 0.01 is too short"),
    ):
        assert sentence in sentence_of(command(tmp_path / "run", "--set", override)[3:], capsys)


def test_a_cache_that_cannot_be_written_is_said(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = command(tmp_path / "run")[3:]
    line[line.index("--cache") + 1] = str(tmp_path / "file")
    assert sentence_of(line, capsys).startswith("error: ")


# The parts


def plan_for(clips: Clips, recipe: Recipe, world: World = ALONE) -> Plan:
    return plan_of(clips, recipe, frontend_of(recipe), world)


def batches_of(plan: Plan, clips: Clips, steps: int) -> list[list[int]]:
    return [[int(clip) for clip in order] for order, _ in plan.batches(clips, 0, steps)]


def test_an_epoch_is_dealt_out_in_batches_of_one_size_without_repetition(
    clips: Clips, recipe: Recipe
) -> None:
    plan = plan_for(clips, recipe)
    assert (plan.steps_per_epoch, plan.steps, plan.segment) == (STEPS_PER_EPOCH, STEPS, 15_200)
    batches = batches_of(plan, clips, STEPS)
    assert {len(batch) for batch in batches} == {3}
    for epoch in (batches[:STEPS_PER_EPOCH], batches[STEPS_PER_EPOCH:]):
        drawn = [clip for batch in epoch for clip in batch]
        assert len(set(drawn)) == len(drawn) == 18
    assert batches[:STEPS_PER_EPOCH] != batches[STEPS_PER_EPOCH:]


def test_two_processes_share_the_batches_of_one(clips: Clips, tiny: tuple[str, ...]) -> None:
    recipe = load_recipe("byola-2022", [*tiny, "optimisation.batch_size=8"])  # 3 batches of 7: 4 and 3
    alone = batches_of(plan_for(clips, recipe), clips, 6)
    halves = [
        batches_of(plan_for(clips, recipe, World(rank, 2, torch.device("cpu"))), clips, 6) for rank in (0, 1)
    ]
    assert [sorted(first + second) for first, second in zip(*halves, strict=True)] == [
        sorted(batch) for batch in alone
    ]


def test_a_batch_is_never_too_small_for_its_normalisation(clips: Clips, tiny: tuple[str, ...]) -> None:
    for size in (1, 2, 3, 5, 100):
        recipe = load_recipe("byola-2022", [*tiny, f"optimisation.batch_size={size}"])
        assert all(len(batch) >= 2 for batch in batches_of(plan_for(clips, recipe), clips, 3))


def test_one_clip_is_too_little(sounds: Path, cache: Path, recipe: Recipe) -> None:
    one = load_clips(find_audio(sounds)[:1], sample_rate=16_000, cache=cache)
    with pytest.raises(DataError, match="1 segments an epoch are too few"):
        plan_for(one, recipe)


def test_batches_read_ahead_are_the_same_from_any_step_on(clips: Clips, recipe: Recipe) -> None:
    plan = plan_for(clips, recipe)
    whole, later = list(plan.batches(clips, 0, 9)), list(plan.batches(clips, 4, 9))
    for (order, waveforms), (same_order, same_waveforms) in zip(whole[4:], later, strict=True):
        assert np.array_equal(order, same_order)
        assert torch.equal(waveforms, same_waveforms)
    assert waveforms.shape == (1, 3, 15_200)


def test_the_statistics_are_those_of_all_elements_in_float64(clips: Clips, recipe: Recipe) -> None:
    logmel = LogMel(frontend_of(recipe))
    plan = plan_for(clips, recipe)
    short = Clips(np.tile(clips.segment(0, 0, 15_200), 3), np.array([0, 1, 2, 3]) * 15_200, 16_000, [])
    short = replace(short, samples=np.rint(short.samples * 32768).astype(np.int16))  # one place to crop each
    x = logmel(torch.from_numpy(short.segment(0, 0, 15_200))[None]).double().numpy()
    statistics = measure_statistics(short, logmel, recipe.data, plan, ALONE)
    assert statistics.mean == pytest.approx(x.mean(), rel=1e-9)
    assert statistics.std == pytest.approx(x.std(), rel=1e-7)


def test_the_statistics_are_of_as_many_crops_as_the_recipe_says(clips: Clips, recipe: Recipe) -> None:
    logmel, plan = LogMel(frontend_of(recipe)), plan_for(clips, recipe)

    def measured(crops: int) -> Statistics:
        return measure_statistics(clips, logmel, replace(recipe.data, statistics_crops=crops), plan, ALONE)

    assert measured(3) == measured(3) != measured(4)
    assert measured(23) == measured(10_000)


def test_every_step_and_process_has_draws_of_its_own() -> None:
    worlds = [World(rank, 2, torch.device("cpu")) for rank in (0, 1)]
    draws = {float(torch.rand(1, generator=seeded(42, step, world))) for step in range(3) for world in worlds}
    assert len(draws) == 6
    assert torch.rand(1, generator=seeded(42, 1, ALONE)) == torch.rand(1, generator=seeded(42, 1, ALONE))


def test_both_views_are_normalised_together(recipe: Recipe) -> None:
    x = torch.randn(2, 3, 1, 8, 8)
    views, monitor = two_views(x, lambda view, _: 2 * view + 5, torch.Generator())
    assert views.mean() == pytest.approx(0, abs=1e-6)
    assert views.std() == pytest.approx(1)
    assert monitor["view_mean"] == pytest.approx(float(2 * x.mean() + 5), rel=1e-5)
    assert not torch.equal(views[0], views[1])


def test_the_learning_rate_is_constant_or_warms_up_and_falls(recipe: Recipe) -> None:
    assert {learning_rate(recipe, step, 100) for step in range(100)} == {1e-4}
    shaped = replace(recipe, optimisation=replace(recipe.optimisation, schedule="cosine", warmup_steps=10))
    rates = [learning_rate(shaped, step, 110) / 1e-4 for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1)
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_average_forgets_as_the_recipe_says_and_faster_while_young(recipe: Recipe) -> None:
    run = tiny_run(recipe)
    name = "fc.0.bias"
    for weights, value in (
        (run.average.state_dict()[name], 1.0),
        (run.model.online.encoder.state_dict()[name], 3.0),
    ):
        weights.fill_(value)
    run.step = 10**9
    update_average(run, 0.9)
    torch.testing.assert_close(run.average.state_dict()[name][0], torch.tensor(0.9 * 1 + 0.1 * 3))
    run.average.state_dict()[name].fill_(1.0)
    run.step = 8
    update_average(run, 0.9)
    torch.testing.assert_close(run.average.state_dict()[name][0], torch.tensor(0.5 * 1 + 0.5 * 3))
    assert run.average.state_dict()["features.1.num_batches_tracked"] == 0
    update_average(run, 0.0)
    for name, value in run.model.online.encoder.state_dict().items():
        assert torch.equal(run.average.state_dict()[name], value)


def test_bfloat16_is_used_when_asked_for_and_never_otherwise() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with autocast_of("bfloat16", ALONE):
        assert layer(x).dtype == torch.bfloat16
    with autocast_of("float32", ALONE):
        assert layer(x).dtype == torch.float32


def test_training_keeps_the_threads_that_torch_found() -> None:
    script = (
        "import torch; found = torch.get_num_threads()\n"
        "import training.__main__; print(found, torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found, kept = done.stdout.split()
    assert found == kept


def test_a_recipe_from_a_file_is_the_one_that_is_used(recipe: Recipe, tmp_path: Path, clips: Clips) -> None:
    (tmp_path / "mine.toml").write_text(as_toml(recipe))
    pretrain(
        clips,
        load_recipe(str(tmp_path / "mine.toml")),
        options_of(tmp_path / "run", stop_after_steps=1),
        ALONE,
    )
    assert (tmp_path / "run" / "recipe.toml").read_text() == as_toml(recipe)


def test_a_segment_too_short_for_a_log_mel_is_refused(clips: Clips, recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"needs 0\.0320625 s"):
        plan_for(clips, replace(recipe, data=replace(recipe.data, segment_s=0.02)))
