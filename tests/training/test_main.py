"""The command pretrain: what it reads from its line, what it reports, and the sentences it fails with."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.__main__ import main

REPOSITORY = Path(__file__).parents[2]

Command = Callable[..., list[str]]


def test_the_command_reports_unreadable_files_and_progress(
    command: Command, fixtures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = command(tmp_path / "run", "--stop-after", "1")[3:]
    line[line.index("--data") + 1] = str(fixtures_dir)
    line[line.index("--cache") + 1] = str(tmp_path / "cache")
    assert main(line) == 0
    errors = capsys.readouterr().err
    assert "5 of 38 files cannot be read and are skipped:" in errors
    assert "nan_inf_float32.wav: " in errors
    assert "33 clips, 0.02 hours, on cpu (1 processes)" in errors
    assert "1/16" in errors
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


def test_resume_refuses_another_data_folder(
    command: Command, finished: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fewer").mkdir()
    for path in sorted(sounds.iterdir())[:10]:
        (tmp_path / "fewer" / path.name).symlink_to(path)
    line = command(finished, "--resume")[3:]
    line[line.index("--data") + 1] = str(tmp_path / "fewer")
    assert "error: The run was started on 23 clips" in sentence_of(line, capsys)


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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--log-every", "0"], "'0' is no whole number from 1 on"),
        (["--log-every", "x"], "'x' is no whole number from 1 on"),
        (["--checkpoint-every", "-1"], "'-1' is no number of seconds from 0 on"),
        (["--device", "gpu"], "'gpu' is none of auto, cpu and cuda"),
        (["--stop-after", "0"], "'0' is no whole number from 1 on"),
    ],
)
def test_a_value_that_does_not_fit_is_said(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit):
        main(command(tmp_path / "run", *words)[3:])
    assert sentence in capsys.readouterr().err


def test_seeds_that_are_no_numbers_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "m", "--data", "d", "--out", "o", "--seeds", "x"])
    assert "'x' is no list of whole numbers such as 42,43,44" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(command(tmp_path / "run", "--device", "cuda")[3:])
    assert "torch finds no CUDA GPU on this machine" in capsys.readouterr().err


def test_ctrl_c_speaks_of_checkpoints_in_pretraining_alone(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.__main__.find_audio", interrupt)
    monkeypatch.setattr("training.__main__.read_tasks", interrupt)
    assert main(command(tmp_path / "run")[3:]) == 130
    assert "--resume" in capsys.readouterr().err
    for line in (["fit-head", "--head", "h"], ["evaluate", "--out", "o"]):
        assert main([*line, "--model", "m", "--data", "d"]) == 130
        said = capsys.readouterr().err
        assert said.startswith("Interrupted")
        assert "checkpoint" not in said


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


# Distillation


def test_the_command_distil_teaches_reports_and_resumes(
    distil_command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = distil_command(tmp_path / "run")[3:]
    assert main([*line, "--stop-after", "3"]) == 0
    said = capsys.readouterr().err
    assert "toy 1 teaches its 16 numbers and the tags of moods." in said
    assert "3/12" in said
    plain = [word for i, word in enumerate(line) if "--set" not in (word, line[i - 1])]
    assert main([*plain, "--resume", "--stop-after", "2"]) == 0
    assert "5/12" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "distil.keep_weight=0.6"], "distil.keep_weight = 0.6 keeps what the start knew: say with"),
        (["--set", "distil.temperature=2"], "There is no key 'distil.temperature'"),
        (["--teacher-head", "birds"], "No teacher has a head 'birds': the heads are moods, pets."),
        (["--set", "data.segment_s=0.03"], "data.segment_s = 0.03 is too short"),
        (["--set", "distil.byol_weight=0.5"], "needs the sections [augmentation] and [byol]"),
        (["--set", "waveform.gain_db=[6, -6]"], "waveform.gain_db must be the smaller number"),
        (["--set", "waveform.mix_share=1.5"], "waveform.mix_share must be 0 or more and at most 1"),
        (["--set", "waveform.gain_db=[-6, inf]"], "must be a finite number of decibels"),
    ],
)
def test_what_distil_cannot_do_is_said(
    words: list[str],
    sentence: str,
    distil_command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sentence in sentence_of([*distil_command(tmp_path / "run")[3:], *words], capsys)


def test_each_method_has_its_command(
    command: Command, distil_command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = command(tmp_path / "run", "--recipe", "distil", overrides=())[3:]
    assert "The recipe's method is [distil]: run it with `distil --teacher" in sentence_of(line, capsys)
    line = distil_command(tmp_path / "run")[3:]
    line = [word for i, word in enumerate(line) if "--set" not in (word, line[i - 1])]
    assert "The recipe has no [distil]" in sentence_of([*line, "--recipe", "byola-2022"], capsys)


def test_a_teacher_whose_licence_forbids_something_is_told(
    distil_command: Command,
    make_teacher: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = distil_command(tmp_path / "run", "--stop-after", "1")[3:]
    folder = make_teacher(tmp_path / "toy", licence="CC-BY-NC-4.0")
    line[line.index("--teacher") + 1] = str(folder)
    assert main(line) == 0
    told = "The licence of the teacher toy (CC-BY-NC-4.0) restricts what is made with it"
    assert told in capsys.readouterr().err
    (teacher,) = json.loads((tmp_path / "run" / "data.json").read_text())["teachers"]
    assert teacher["restriction"].startswith(told)
