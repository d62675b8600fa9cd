"""A run that is taught: a tiny encoder learns what toy models say, is interrupted, and goes on."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_export.__main__ import main as export
from service.errors import ModelFolderError
from service.inference.card import load_card, sha256_of, write_card
from service.inference.model import Model
from training.clips import Clips
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.distributed import World
from training.pretrain.loop import pretrain
from training.pretrain.recipe import Recipe, RecipeError, as_tables, load_recipe, recipe_of
from training.pretrain.run import Options
from training.pretrain.sampler import plan_of
from training.pretrain.teachers import Teacher, load_teachers

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
STEPS = 12
SHIPPED = Path(__file__).parents[3] / "models" / "byola"

MakeTeacher = Callable[..., Path]
Command = Callable[..., list[str]]
Execute = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def options_of(out: Path, **changes: Any) -> Options:
    return replace(Options(out=out, precision="float32", log_every=1, checkpoint_every_s=1e9), **changes)


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def teachers_of(*folders: Path, heads: tuple[str, ...] | None = None) -> list[Teacher]:
    return load_teachers(folders, sample_rate=16_000, heads=heads, needs_tags=True, threads=1, device="cpu")


def assert_same_weights(run: Path, reference: Path) -> None:
    mine, theirs = checkpoint.load(run), checkpoint.load(reference)
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(mine[part][name], value), name
    assert [line["loss"] for line in lines_of(run)] == [line["loss"] for line in lines_of(reference)]


@pytest.fixture(scope="module")
def recipe(tiny_distil: tuple[str, ...]) -> Recipe:
    return load_recipe("distil", [*tiny_distil])


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory, clips: Clips, recipe: Recipe, teacher_folder: Path
) -> Path:
    """A run of the whole recipe in one go."""
    out = tmp_path_factory.mktemp("runs") / "taught"
    pretrain(clips, recipe, options_of(out), ALONE, teachers_of(teacher_folder))
    return out


def test_an_interrupted_run_goes_on_to_the_same_result(
    clips: Clips, recipe: Recipe, taught: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    for parts in (5, STEPS):
        options = options_of(tmp_path, stop_after_steps=parts, resume=parts == STEPS)
        pretrain(clips, recipe, options, ALONE, teachers_of(teacher_folder))
    assert_same_weights(tmp_path, taught)


def test_what_is_learned_becomes_less_wrong(
    clips: Clips, tiny_distil: tuple[str, ...], teacher_folder: Path, tmp_path: Path
) -> None:
    more = ["optimisation.epochs=20", "optimisation.learning_rate=3e-3", "distil.tag_weight=0.5"]
    longer = load_recipe("distil", [*tiny_distil, *more, "distil.different_batches=6"])
    pretrain(clips, longer, options_of(tmp_path), ALONE, teachers_of(teacher_folder))
    lines = lines_of(tmp_path)
    for part in ("loss/toy", "loss/toy/moods"):
        first, last = ([line[part] for line in some] for some in (lines[:12], lines[-12:]))
        assert sum(last) < 0.8 * sum(first), part


# What a run leaves


def test_a_run_tells_who_taught_it_and_every_loss(
    clips: Clips, recipe: Recipe, taught: Path, teacher_folder: Path
) -> None:
    said = json.loads((taught / "data.json").read_text())
    (teacher,) = teachers_of(teacher_folder)
    assert said["teachers"] == [teacher.described()]
    assert "restriction" not in said["teachers"][0]
    lines = lines_of(taught)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert {"loss/toy", "loss/toy/moods", "embedding_std", "data_share", "teachers_share"} <= set(line)
        weighted = line["loss/toy"] + 0.02 * line["loss/toy/moods"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-5)
    seen = [line["segments_seen"] for line in lines]
    plan = plan_of(clips, recipe, ALONE)
    assert seen == list(np.cumsum([plan.segments_in(step) for step in range(STEPS)]))
    assert len({b - a for a, b in pairwise([0, *seen])}) > 1  # steps of long crops have fewer


def test_two_teachers_teach_one_student_with_and_without_heads(
    clips: Clips,
    tiny_distil: tuple[str, ...],
    teacher_folder: Path,
    make_teacher: MakeTeacher,
    tmp_path: Path,
) -> None:
    high = make_teacher(tmp_path / "high", name="high", sample_rate=32_000, min_samples=1280)
    recipe = load_recipe("distil", [*tiny_distil, "optimisation.epochs=0.5"])
    pretrain(
        clips,
        recipe,
        options_of(tmp_path / "run"),
        ALONE,
        teachers_of(teacher_folder, high, heads=("pets", "moods")),
    )
    parts = {name for name in lines_of(tmp_path / "run")[-1] if name.startswith("loss/")}
    of_each = ("{}", "{}/pets", "{}/moods")
    assert parts == {f"loss/{name.format(teacher)}" for teacher in ("toy", "high") for name in of_each}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("distil.tag_weight=0", {"loss/toy"}),
        ("distil.embedding_weight=0", {"loss/toy/moods"}),
    ],
)
def test_a_weight_of_zero_leaves_its_part_out(
    override: str,
    parts: set[str],
    clips: Clips,
    tiny_distil: tuple[str, ...],
    teacher_folder: Path,
    tmp_path: Path,
) -> None:
    recipe = load_recipe("distil", [*tiny_distil, override, "optimisation.epochs=0.5"])
    pretrain(clips, recipe, options_of(tmp_path), ALONE, teachers_of(teacher_folder))
    assert {name for name in lines_of(tmp_path)[-1] if name.startswith("loss/")} == parts


# Beside other losses


@pytest.fixture(scope="module")
def with_byol(tiny: tuple[str, ...], tiny_distil: tuple[str, ...]) -> Recipe:
    """The recipe distil with the sections of byola-2022 beside it."""
    tables = as_tables(load_recipe("distil", [*tiny_distil, "distil.keep_weight=0.5"]))
    byola = as_tables(load_recipe("byola-2022", [*tiny]))
    tables |= {"byol": byola["byol"], "augmentation": byola["augmentation"]}
    tables["distil"]["byol_weight"] = 0.2
    return recipe_of(tables)


def test_with_byol_and_a_start_to_keep_it_goes_on_to_the_same_result_too(
    clips: Clips, with_byol: Recipe, teacher_folder: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    begun = tmp_path / "begun"
    pretrain(clips, with_byol, options_of(begun, stop_after_steps=2), ALONE, teachers_of(teacher_folder))
    pretrain(clips, with_byol, options_of(whole, init=begun), ALONE, teachers_of(teacher_folder))
    assert {"loss/toy", "loss/toy/moods", "loss/start", "loss/byol"} <= set(lines_of(whole)[-1])
    for steps in (4, STEPS):
        options = options_of(parts, stop_after_steps=steps)
        options = replace(options, **({"init": begun} if steps == 4 else {"resume": True}))
        pretrain(clips, with_byol, options, ALONE, teachers_of(teacher_folder))
    assert_same_weights(parts, whole)
    begins_with = checkpoint.load(begun)["model"]
    kept = checkpoint.load(whole)["model"]
    for name, value in begins_with.items():
        if name.startswith("online.encoder."):
            assert torch.equal(kept["start." + name.removeprefix("online.encoder.")], value), name


def test_a_start_from_a_served_model_is_kept(clips: Clips, teacher_folder: Path, tmp_path: Path) -> None:
    small = ["optimisation.batch_size=4", "optimisation.epochs=1", "distil.statistics_crops=23"]
    recipe = load_recipe("distil", [*small, "waveform.long_share=0"])
    options = options_of(tmp_path, init=SHIPPED, stop_after_steps=2)
    pretrain(clips, recipe, options, ALONE, teachers_of(teacher_folder))
    first = lines_of(tmp_path)[0]
    assert first["loss/start"] < 0.5  # what dropout and the statistics of a batch of four change
    assert first["loss/toy"] == pytest.approx(1, abs=0.3)  # nothing is known yet
    assert "the model byola " in json.loads((tmp_path / "data.json").read_text())["started_from"]


def test_a_run_with_other_teachers_gives_its_encoder(
    clips: Clips,
    recipe: Recipe,
    taught: Path,
    teacher_folder: Path,
    make_teacher: MakeTeacher,
    tmp_path: Path,
) -> None:
    another = make_teacher(tmp_path / "another")
    out = tmp_path / "run"
    options = options_of(out, init=taught, stop_after_steps=1)
    pretrain(clips, recipe, options, ALONE, [*teachers_of(teacher_folder), *teachers_of(another)])
    assert "its encoder alone" in json.loads((out / "data.json").read_text())["started_from"]
    given, kept = checkpoint.load(taught)["model"], checkpoint.load(out)["model"]
    first = "online.encoder.features.0.weight"
    torch.testing.assert_close(kept[first], given[first], rtol=0, atol=0.01)  # one step of learning away
    assert len([name for name in kept if name.startswith("maps.")]) > len(
        [name for name in given if name.startswith("maps.")]
    )


# What is refused


def test_teachers_that_changed_or_are_others_are_refused(
    clips: Clips, recipe: Recipe, taught: Path, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    folder = make_teacher(tmp_path / "toy")
    options = options_of(taught, resume=True)

    head = folder / "heads" / "moods.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 0x01
    head.write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"moods\.safetensors is not the file of the card"):
        teachers_of(folder)
    card = load_card(folder)
    write_card(
        folder,
        card.model_copy(update={"files": {**card.files, "heads/moods.safetensors": sha256_of(head)}}),
    )
    with pytest.raises(
        CheckpointError,
        match=r"The teacher toy is no longer the one .* heads/moods\.safetensors changed\. Restore",
    ):
        pretrain(clips, recipe, options, ALONE, teachers_of(folder))

    newer = make_teacher(tmp_path / "newer", version="2")
    with pytest.raises(CheckpointError, match="started with the teachers toy 1, not with toy 2"):
        pretrain(clips, recipe, options, ALONE, teachers_of(newer))


def test_crops_too_short_for_a_teacher_are_refused_before_anything_is_written(
    clips: Clips, recipe: Recipe, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    slow = make_teacher(tmp_path / "slow", min_samples=20_000)
    with pytest.raises(RecipeError, match=r"too short for the teacher toy, whose shortest input is 1\.25 s"):
        pretrain(clips, recipe, options_of(tmp_path / "run"), ALONE, teachers_of(slow))
    assert not (tmp_path / "run").exists()


# Several processes, and what comes of it


def test_two_processes_are_taught_as_one(
    distil_command: Command, run: Execute, environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = distil_command(tmp_path / "run", "--set", "optimisation.batch_size=8", "--stop-after", "4")
    done = run([*torchrun, *line[1:]])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("toy 1 teaches its 16 numbers and the tags of moods.") == 1
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert checkpoint.load(tmp_path / "run")["step"] == 4


def test_a_taught_encoder_is_exported_and_its_card_says_by_whom(
    clips: Clips, tiny_distil: tuple[str, ...], make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    teacher = make_teacher(tmp_path / "toy", licence="CC-BY-NC-4.0")
    recipe = load_recipe("distil", [*tiny_distil, "optimisation.epochs=0.5"])
    pretrain(clips, recipe, options_of(tmp_path / "run"), ALONE, teachers_of(teacher))
    line = ["export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "model")]
    assert export([*line, "--licence", "CC0-1.0"]) == 0
    card = Model.load(tmp_path / "model", device="cpu").card
    assert card.description == "byola-2022, trained by viola, taught by toy 1 (CC-BY-NC-4.0)"
    assert card.training["taught_by"] == "toy 1 (CC-BY-NC-4.0)"
    (said,) = card.training["teachers"]  # type: ignore[misc]
    assert said["sha256"]["encoder.onnx"] == load_card(teacher).files["encoder.onnx"]
    assert "The licence of the teacher toy (CC-BY-NC-4.0) restricts what is made with it" in card.limitations
