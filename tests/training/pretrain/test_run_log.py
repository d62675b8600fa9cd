"""What is told of a run: its log, its curves, its speed and how far apart its embeddings are."""

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.pretrain.run_log import Clock, RunLog, embedding_std

CPU = torch.device("cpu")


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def write_steps(folder: Path, first: int, last: int, *, after: int) -> None:
    with RunLog(folder, after, active=True) as log:
        for step in range(first, last + 1):
            log.write({"step": step, "loss": 1 / step})


def test_each_line_is_a_line_of_json_and_a_point_of_a_curve(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3, after=0)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(
        {1: 1, 2: 1 / 2, 3: 1 / 3}
    )


def test_a_continued_log_drops_what_came_after_the_checkpoint_and_a_line_cut_off(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 6, after=0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # as a killed process leaves it
    write_steps(tmp_path, 5, 6, after=4)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 3, after=0)  # it ended before its first checkpoint
    write_steps(tmp_path, 1, 1, after=0)
    assert steps_in(tmp_path) == [1]


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, active=False) as log:
        log.write({"step": 1})
    assert not list(tmp_path.iterdir())


def test_a_line_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, 0, active=True) as log:
        log.path.unlink()
        log.path.mkdir()
        log.write({"step": 1})
    assert "The log of step 1 could not be written" in capsys.readouterr().err


def test_the_speed_is_that_of_the_whole_step() -> None:
    clock = Clock(CPU, active=True)
    clock.laps = {"wait": 0.25, "data": 0.5, "network": 1.25}
    assert clock.speed(64) == {"segments_per_s": 32, "data_share": 0.375}


def test_laps_follow_each_other() -> None:
    clock = Clock(CPU, active=True)
    clock.lap("data")
    clock.lap("network")
    assert list(clock.laps) == ["data", "network"]
    assert all(seconds >= 0 for seconds in clock.laps.values())
    assert sum(clock.laps.values()) <= clock.now() - clock.began


def test_a_clock_that_is_not_active_takes_no_time() -> None:
    clock = Clock(CPU, active=False)
    clock.lap("data")
    assert clock.laps == {}


def test_the_spread_of_embeddings_runs_from_0_to_1() -> None:
    direction = torch.randn(1, 64)
    assert embedding_std(direction * torch.tensor([[1.0], [2.0], [9.0]])) == pytest.approx(0, abs=1e-3)
    assert embedding_std(torch.cat([direction, -direction])) == pytest.approx(1)
    assert embedding_std(torch.eye(4)) == pytest.approx(math.sqrt(1 - 1 / 4))
