"""Pre-training of a tiny encoder on real sounds: what a run leaves, how it is interrupted and goes on."""

import json
import math
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from encoders.frontend import frontend_of
from model_export.__main__ import main as export
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import decode
from training.clips import Clips
from training.logmel import LogMel
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.distributed import World
from training.pretrain.loop import (
    autocast_of,
    learning_rate,
    normalised,
    precision_of,
    pretrain,
    seeded,
    two_views,
    update_average,
    warn_of_few_steps,
)
from training.pretrain.recipe import Recipe, as_toml, load_recipe
from training.pretrain.run import COLLAPSED_LOGS, Options, TrainingError, new_run
from training.pretrain.sampler import Plan, Statistics, plan_of

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
STEPS = 12
REPOSITORY = Path(__file__).parents[3]

Execute = Callable[[list[str]], "subprocess.CompletedProcess[str]"]
Command = Callable[..., list[str]]


def options_of(out: Path, **changes: Any) -> Options:
    return replace(Options(out=out, precision="float32", log_every=1, checkpoint_every_s=1e9), **changes)


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in lines_of(run)}


def cola_of(overrides: list[str]) -> list[str]:
    """The overrides of a tiny BYOL for a COLA as tiny."""
    return [*(one for one in overrides if not one.startswith("byol.")), "cola.projection_size=8"]


@pytest.fixture(scope="module")
def cola(tiny: tuple[str, ...]) -> Recipe:
    return load_recipe("cola", cola_of([*tiny]))


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
    for name in ("step", "segments_seen", "collapsed_logs", "statistics", "recipe", "corpus"):
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


def test_the_weights_have_moved_and_the_target_follows(finished: Path, recipe: Recipe) -> None:
    state = checkpoint.load(finished)
    start = new_run(recipe, ALONE.device).model.state_dict()
    name = "encoder.fc.0.weight"
    moved = (state["model"][f"online.{name}"] - start[f"online.{name}"]).norm()
    followed = (state["model"][f"target.{name}"] - start[f"target.{name}"]).norm()
    assert 0 < followed < 0.2 * moved
    assert state["model"]["online.encoder.features.1.num_batches_tracked"] == 2 * STEPS
    assert len(state["memory"]) == recipe.augmentation.mixup_memory
    assert torch.equal(
        state["average"]["fc.0.weight"], state["model"][f"online.{name}"]
    )  # average_decay is 0


def test_the_first_encoder_trains_too(clips: Clips, tiny: tuple[str, ...], tmp_path: Path) -> None:
    overrides = [*tiny, "encoder.d=32", "optimisation.epochs=0.5"]
    pretrain(clips, load_recipe("byola-2020", overrides), options_of(tmp_path), ALONE)
    assert len(lines_of(tmp_path)) == 3


def test_two_views_of_a_clip_may_come_from_two_places(
    clips: Clips, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = [*tiny, "data.view_distance_s=2.0", "data.draws_power=0.5", "optimisation.epochs=0.2"]
    two_places = load_recipe("byola-2022", overrides)
    waveforms = next(plan_of(clips, two_places, ALONE).batches(0, 1)).waveforms
    assert len(waveforms) == 2
    x = normalised(LogMel(frontend_of(16)), waveforms, Statistics(mean=-9.0, std=5.0))
    views, _ = two_views(x, lambda place, _: place, torch.Generator())
    assert not torch.equal(views[0], views[1])
    pretrain(clips, two_places, options_of(tmp_path), ALONE)
    assert all(math.isfinite(loss) for loss in losses_of(tmp_path).values())


def test_waiting_for_segments_is_part_of_the_share_of_the_data(
    clips: Clips, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = Plan.batch

    def from_a_slow_disk(plan: Plan, *place: Any) -> Any:
        time.sleep(0.5)
        return at_once(plan, *place)

    monkeypatch.setattr(Plan, "batch", from_a_slow_disk)
    pretrain(clips, recipe, options_of(tmp_path, stop_after_steps=2), ALONE)
    first = lines_of(tmp_path)[0]
    assert first["data_share"] > 0.5
    assert first["segments_per_s"] < 3 / 0.5


def test_no_checkpoint_is_written_over_a_good_one_while_the_embeddings_are_collapsed(
    clips: Clips, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread = iter([0.5, 0.5, *[0.0] * COLLAPSED_LOGS])
    monkeypatch.setattr("training.pretrain.loop.embedding_std", lambda _: next(spread))
    with pytest.raises(TrainingError, match="collapsed at step 7"):
        pretrain(clips, recipe, options_of(tmp_path, checkpoint_every_s=0.0), ALONE)
    assert checkpoint.load(tmp_path)["step"] == 2


def test_a_warm_up_that_takes_much_of_the_run_is_said(
    clips: Clips, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(clips, recipe, ALONE)
    warn_of_few_steps(plan)
    assert capsys.readouterr().err == ""
    warm = replace(recipe, optimisation=replace(recipe.optimisation, warmup_steps=2))
    warn_of_few_steps(replace(plan, recipe=warm))
    assert "warm-up of 2 steps takes more than a tenth of the run's 12" in capsys.readouterr().err


def test_a_recipe_from_a_file_is_the_one_that_is_used(recipe: Recipe, tmp_path: Path, clips: Clips) -> None:
    (tmp_path / "mine.toml").write_text(as_toml(recipe))
    pretrain(
        clips,
        load_recipe(str(tmp_path / "mine.toml")),
        options_of(tmp_path / "run", stop_after_steps=1),
        ALONE,
    )
    assert (tmp_path / "run" / "recipe.toml").read_text() == as_toml(recipe)


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


def test_a_run_of_cola_in_parts_is_the_run_in_one_go(clips: Clips, cola: Recipe, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(clips, cola, options_of(whole), ALONE)
    pretrain(clips, cola, options_of(parts, stop_after_steps=5), ALONE)
    pretrain(clips, cola, options_of(parts, resume=True), ALONE)
    assert_same_result(parts, whole)
    assert all(math.isfinite(loss) for loss in losses_of(whole).values())
    state = checkpoint.load(whole)
    assert "byol" not in state["recipe"]
    start = new_run(cola, ALONE.device).model.state_dict()
    for name in ("similarity", "online.projector.0.weight", "online.encoder.fc.0.weight"):
        assert not torch.equal(state["model"][name], start[name]), name


def test_a_run_is_not_continued_by_another_method(
    clips: Clips, cola: Recipe, tmp_path: Path, finished: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"started with the method \[byol\], not \[cola\]"):
        pretrain(clips, cola, options_of(finished, resume=True), ALONE)


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("method", ["byola-2022", "cola"])
def test_a_killed_run_goes_on_to_the_same_result(
    method: str,
    command: Command,
    run: Execute,
    environment: dict[str, str],
    clips: Clips,
    tiny: tuple[str, ...],
    tmp_path: Path,
) -> None:
    overrides = [*tiny, "optimisation.epochs=8"]
    if method == "cola":
        overrides = cola_of(overrides)
    out, reference = tmp_path / "killed", tmp_path / "reference"
    given = [word for one in overrides for word in ("--set", one)]
    line = [*command(out, overrides=()), "--recipe", method, *given]
    process = subprocess.Popen(
        [*line, "--checkpoint-every", "0.1"],
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

    resumed = run([*line, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert "48/48" in resumed.stderr
    pretrain(clips, load_recipe(method, overrides), options_of(reference), ALONE)
    assert_same_result(out, reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_told_to_stop_saves_the_step_it_is_in(
    number: signal.Signals,
    command: Command,
    environment: dict[str, str],
    run: Execute,
    tiny: tuple[str, ...],
    tmp_path: Path,
) -> None:
    line = command(tmp_path, "--checkpoint-every", "1e9", overrides=(*tiny, "optimisation.epochs=200"))
    process = subprocess.Popen(line, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "log.jsonl"
    try:
        wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) > 3, process)
    finally:
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == 128 + number
    saved = checkpoint.load(tmp_path)["step"]
    assert saved >= 4
    assert f"step {saved} of 1200 is saved; the same command with --resume" in said
    resumed = run([*line, "--resume", "--stop-after", "1"])
    assert resumed.returncode == 0, resumed.stderr
    assert checkpoint.load(tmp_path)["step"] == saved + 1


# Accidents


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    clips: Clips, recipe: Recipe, tmp_path: Path
) -> None:
    absurd = replace(recipe, optimisation=replace(recipe.optimisation, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"last checkpoint is kept.*learning_rate"):
        pretrain(clips, absurd, options_of(tmp_path, checkpoint_every_s=0.0), ALONE)
    state = checkpoint.load(tmp_path)
    assert state["step"] >= 1
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    assert all(math.isfinite(line["loss"]) for line in lines_of(tmp_path))


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
    assert not list(out.glob(".new-*"))

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
    assert lines_of(tmp_path / "run")[-1]["segments_seen"] == 4 * 7  # of 4 and 3
    assert len(checkpoint.load(tmp_path / "run")["memory"]) == 16  # both processes' sounds


# What comes of it


def test_an_encoder_trained_by_cola_is_exported_and_served(
    clips: Clips, cola: Recipe, fixtures_dir: Path, tmp_path: Path
) -> None:
    averaged = replace(cola, optimisation=replace(cola.optimisation, average_decay=0.9))
    pretrain(clips, averaged, options_of(tmp_path / "run", stop_after_steps=6), ALONE)
    line = ["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "model")]
    assert export([*line, "--licence", "CC0-1.0"]) == 0
    model = Model.load(tmp_path / "model", device="cpu")
    assert model.card.training["recipe"]["cola"] == {"projection_size": 8}
    logmel = model.logmel(decode(fixtures_dir / "dog_bark_44k1_mono.ogg", sample_rate=16_000).samples)
    served = embed(model.run, model.card, [logmel]).vector

    state = checkpoint.load(tmp_path / "run")
    encoder = new_run(cola, ALONE.device).model.online.encoder
    encoder.load_state_dict(state["average"])
    x = (torch.from_numpy(logmel)[None, None] - state["statistics"]["mean"]) / state["statistics"]["std"]
    with torch.no_grad():
        trained = encoder.eval().pool(encoder(x))[0]
    np.testing.assert_allclose(served, trained, rtol=1e-4, atol=1e-4)


# The parts


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
    run = new_run(recipe, ALONE.device)
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
    with autocast_of("bfloat16", ALONE.device):
        assert layer(x).dtype == torch.bfloat16
    with autocast_of("float32", ALONE.device):
        assert layer(x).dtype == torch.float32


def test_the_precision_has_a_reason() -> None:
    assert precision_of("float32", ALONE.device) == ("float32", "--precision asks for it")
    assert precision_of("auto", torch.device("cuda")) == ("bfloat16", "it trains on a GPU")
    assert "this CPU has" in precision_of("auto", ALONE.device)[1]
