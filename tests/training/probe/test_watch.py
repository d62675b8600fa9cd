"""Looking at an encoder while it trains tells how good it is, and changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import encoders
from encoders.frontend import frontend_of
from training.__main__ import main
from training.clips import Clips, DataError
from training.pretrain import checkpoint
from training.pretrain.distributed import World
from training.pretrain.loop import pretrain
from training.pretrain.recipe import Recipe, load_recipe
from training.pretrain.run import Options
from training.pretrain.teachers import load_teachers
from training.probe.labelled import LabelledClip, LabelledTask, read_tasks
from training.probe.watch import TEST, TRAIN, Watch, some_of, watch_of

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
RATE = 16_000


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Low and high tones, which any encoder tells apart, and noises that nobody can: a CSV of two tasks."""
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    rows = ["file_name,task,label,fold,split"]
    for i in range(40):
        low_or_high = ("low", 200 + 20 * random.random()) if i % 2 else ("high", 3000 + 200 * random.random())
        label, hz = low_or_high
        wave = 0.3 * np.sin(2 * np.pi * hz * np.arange(8000 + 400 * i) / RATE)
        soundfile.write(folder / f"tone{i}.wav", wave, RATE)
        rows.append(f"tone{i}.wav,pitch,{label},{1 + i // 8},")
        soundfile.write(folder / f"noise{i}.wav", 0.1 * random.standard_normal(8000), RATE)
        rows.append(f"noise{i}.wav,luck,{'heads' if i % 2 else 'tails'},,{'test' if i >= 20 else 'train'}")
    (folder / "tasks.csv").write_text("\n".join(rows) + "\n")
    return folder / "tasks.csv"


@pytest.fixture(scope="module")
def watch(tones: Path, cache: Path) -> Watch:
    return watch_of(read_tasks(tones), frontend=frontend_of(16), cache=cache, device=ALONE.device)


def test_what_an_encoder_tells_apart_shows_and_what_nobody_can_does_not(watch: Watch) -> None:
    torch.manual_seed(0)
    figures = watch(encoders.build("byola-2022", n_mels=16, d=320), -9.0, 5.0)
    assert figures["probe/pitch"] == 1.0
    assert figures["probe/luck"] == pytest.approx(0.5, abs=0.35)  # of 20: further, one draw in 500
    assert figures["probe"] == pytest.approx((figures["probe/pitch"] + figures["probe/luck"]) / 2)


def test_looking_changes_neither_the_encoder_nor_a_random_number(watch: Watch) -> None:
    encoder = encoders.build("byola-2022", n_mels=16, d=320)
    encoder.features[0].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    modes = [module.training for module in encoder.modules()]
    torch.manual_seed(1)
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = watch(encoder, -9.0, 5.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert [module.training for module in encoder.modules()] == modes
    assert watch(encoder, -9.0, 5.0) == first


def test_the_last_fold_or_the_split_test_is_tested_on(tones: Path) -> None:
    for task in read_tasks(tones):
        train, test = some_of(task)
        assert {task.clips[i].part for i in test} == ({"5"} if task.name == "pitch" else {"test"})
        assert not set(train) & set(test)


def test_of_a_large_task_some_clips_stand_for_all_of_every_class_alike() -> None:
    labels = ["common"] * 2000 + ["rare"] * 100
    (template,) = read_tasks_of(labels)
    train, test = some_of(template)
    assert (len(train), len(test)) == (TRAIN, TEST)
    rare = sum(template.clips[i].labels == ("rare",) for i in train)
    assert rare == sum(clip.labels == ("rare",) and clip.part == "train" for clip in template.clips)
    again = some_of(template)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(again, (train, test), strict=True))


def read_tasks_of(labels: list[str]) -> list[LabelledTask]:
    clips = tuple(
        LabelledClip(Path(f"{i}.wav"), (label,), "test" if i % 5 == 0 else "train")
        for i, label in enumerate(labels)
    )
    return [LabelledTask("many", clips)]


def test_a_clip_that_cannot_be_read_is_said(tones: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    table = tmp_path / "list.csv"
    table.write_text(tones.read_text().replace("tone3.wav", str(tmp_path / "broken.wav")))
    for name in ("tone", "noise"):
        for path in tones.parent.glob(f"{name}*.wav"):
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"broken\.wav cannot be read"):
        watch_of(read_tasks(table), frontend=frontend_of(16), cache=cache, device=ALONE.device)


# In a run


@pytest.mark.parametrize("method", ["byol", "cola", "distil"])
def test_a_run_that_is_watched_has_the_result_of_one_that_is_not(
    method: str,
    clips: Clips,
    tiny: tuple[str, ...],
    tiny_distil: tuple[str, ...],
    teacher_folder: Path,
    watch: Watch,
    tmp_path: Path,
) -> None:
    recipe = recipe_of_method(method, tiny, tiny_distil)
    teachers = (
        load_teachers(
            [teacher_folder], sample_rate=RATE, heads=None, needs_tags=True, threads=1, device="cpu"
        )
        if method == "distil"
        else []
    )
    for name, looks in (("alone", None), ("watched", watch)):
        options = Options(
            tmp_path / name,
            precision="float32",
            log_every=4,
            probe_every=5,
            checkpoint_every_s=1e9,
            stop_after_steps=8,
        )
        pretrain(clips, recipe, options, ALONE, teachers, looks)
    alone, watched = (checkpoint.load(tmp_path / name) for name in ("alone", "watched"))
    for part in ("model", "average"):
        for name, value in alone[part].items():
            assert torch.equal(watched[part][name], value), name

    lines = lines_of(tmp_path / "watched")
    looked = {int(line["step"]): line for line in lines if "probe" in line}
    assert set(looked) == {1, 5, 8}  # the first, every fifth, the last
    assert all({"probe/pitch", "probe/luck", "probe_s"} <= set(line) for line in looked.values())
    assert not any("probe" in line for line in lines_of(tmp_path / "alone"))
    curves = EventAccumulator(str(tmp_path / "watched" / "tensorboard"))
    curves.Reload()
    drawn = {event.step: event.value for event in curves.Scalars("probe/pitch")}
    assert drawn == pytest.approx({step: line["probe/pitch"] for step, line in looked.items()})


def recipe_of_method(method: str, tiny: tuple[str, ...], tiny_distil: tuple[str, ...]) -> Recipe:
    if method == "distil":
        return load_recipe("distil", [*tiny_distil])
    if method == "byol":
        recipe = load_recipe("byola-2022", [*tiny])
        return replace(recipe, optimisation=replace(recipe.optimisation, average_decay=0.9))
    return load_recipe(
        "cola", [*(one for one in tiny if not one.startswith("byol.")), "cola.projection_size=8"]
    )


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_command_watches_the_tasks_that_are_named(
    command: Callable[..., list[str]], tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--probe", str(tones), "--probe-task", "pitch", "--stop-after", "2"]
    assert main([*command(tmp_path / "run")[3:], *words]) == 0
    last = lines_of(tmp_path / "run")[-1]
    assert 0 <= last["probe/pitch"] <= 1
    assert "probe/luck" not in last
    capsys.readouterr()
    words = ["--probe", str(tones), "--probe-task", "birds"]
    assert main([*command(tmp_path / "other")[3:], *words]) == 1
    assert "lacks some of the tasks birds" in capsys.readouterr().err
