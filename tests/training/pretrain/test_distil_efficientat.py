"""An EfficientAT from random weights, taught block by block: a tiny one by a tiny one, and served."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders.efficientat import EVERY, EfficientAT, map_sizes
from encoders.frontend import EFFICIENTAT
from model_export.__main__ import main as export
from model_export.errors import ExportError
from model_export.export import About
from model_export.export import export as write_folder
from model_export.sources.trained import Trained, fused
from model_export.sources.training_run import load_run
from service.inference.model import Model
from service.inference.windows import embed
from training.clips import Clips, find_audio, load_clips
from training.logmel import LogMel
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.distil import Distil
from training.pretrain.distributed import World
from training.pretrain.loop import pretrain
from training.pretrain.recipe import Recipe, RecipeError, as_tables, load_recipe, recipe_of
from training.pretrain.run import Options, refuse_another_recipe
from training.pretrain.teachers import MAP, Subject, Teacher, TeacherError, load_teachers
from training.probe.layers import load_probed

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
RATE = EFFICIENTAT.sample_rate
WIDTH = 0.1  # eight channels nearly everywhere
BLOCKS = (2, 4)  # what lies behind the last is not built, and exports the sooner
STEPS = 6
TINY = (  # 23 clips make 6 steps of 3 an epoch
    f"encoder.width={WIDTH}",
    "data.draws_power=0",
    "waveform.synthetic_share=0.2",
    "waveform.long_s=[1.9, 2.1]",
    "distil.statistics_crops=23",
    "optimisation.batch_size=4",
    "optimisation.epochs=1",
    "optimisation.warmup_steps=2",
)

MakeTeacher = Callable[..., Path]


def options_of(out: Path, **changes: Any) -> Options:
    return replace(Options(out=out, precision="float32", log_every=1, checkpoint_every_s=1e9), **changes)


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def clips(sounds: Path, cache: Path) -> Clips:
    return load_clips(find_audio(sounds), sample_rate=RATE, cache=cache)


@pytest.fixture(scope="module")
def crops(clips: Clips) -> np.ndarray:
    """(4, 1.0 s) of real sounds."""
    long_enough = np.flatnonzero(clips.lengths >= RATE)[:4]
    return np.stack([clips.segment(int(clip), 0, RATE) for clip in long_enough])


@pytest.fixture(scope="module")
def network() -> EfficientAT:
    """Blocks side by side, in eval mode, with random weights and what batch normalisation makes of noise."""
    torch.manual_seed(3)
    encoder = EfficientAT(WIDTH, fuse=BLOCKS)
    encoder(torch.randn(4, 1, 128, 64))
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def blockwise(network: EfficientAT, clips: Clips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a served folder."""
    out = tmp_path_factory.mktemp("teachers") / "blocks"
    trained = Trained(
        "efficientat", {"width": WIDTH, "fuse": [*BLOCKS]}, network, network.mean, network.std, training={}
    )
    words = dict.fromkeys(("description", "intended_use", "limitations"), "For tests.")
    about = About(name="blocks", version="1", licence="CC0-1.0", **words)
    write_folder(trained, out, about=about, clips=[clips.segment(0, 0, 2 * RATE)])
    return out


def teachers_of(*folders: Path, tags: bool = False, maps: bool = True) -> list[Teacher]:
    return load_teachers(
        folders, sample_rate=RATE, heads=None, needs_tags=tags, needs_maps=maps, threads=1, device="cpu"
    )


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("distil-efficientat", [*TINY])


@pytest.fixture(scope="module")
def taught(
    tmp_path_factory: pytest.TempPathFactory,
    clips: Clips,
    recipe: Recipe,
    blockwise: Path,
    make_teacher: MakeTeacher,
) -> tuple[Path, Path]:
    """A run of the whole recipe by one teacher's blocks and another's tags, and the other's folder."""
    toy = make_teacher(tmp_path_factory.mktemp("toy") / "toy")
    out = tmp_path_factory.mktemp("runs") / "taught"
    pretrain(clips, recipe, options_of(out), ALONE, teachers_of(blockwise, toy, tags=True))
    return out, toy


# What a teacher says of its blocks


def test_a_teachers_maps_are_the_frames_of_each_block(
    blockwise: Path, network: EfficientAT, crops: np.ndarray
) -> None:
    (teacher,) = teachers_of(blockwise)
    said = teacher.answers(crops, embedding=True, tags=False, maps=True)
    x = (LogMel(EFFICIENTAT)(torch.from_numpy(crops)) - network.mean) / network.std
    _, expected = network.with_maps(x, BLOCKS)
    subjects = teacher.subjects(embedding=True, tags=False, maps=True)
    assert [(each.name, each.kind, each.block) for each in subjects] == [
        ("blocks/2", MAP, 2),
        ("blocks/4", MAP, 4),
    ]
    for subject, found, wanted in zip(subjects, said, expected, strict=True):
        assert found.shape == (4, -(-100 // EVERY[subject.block]), subject.size)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=2e-3)


def test_without_maps_it_says_its_embedding_as_every_other(blockwise: Path, crops: np.ndarray) -> None:
    (teacher,) = teachers_of(blockwise)
    (vectors,) = teacher.answers(crops, embedding=True, tags=False)
    assert vectors.shape == (4, sum(map_sizes(WIDTH)[block] for block in BLOCKS))


# The losses


def distil(encoder: EfficientAT, subjects: list[Subject], recipe: Recipe) -> Distil:
    assert recipe.distil
    return Distil(encoder, subjects, recipe.distil)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    blockwise: Path, network: EfficientAT, crops: np.ndarray, recipe: Recipe
) -> None:
    (teacher,) = teachers_of(blockwise)
    student = EfficientAT(WIDTH).requires_grad_(False)
    student.load_state_dict(network.state_dict(), strict=False)
    model = distil(student.eval(), teacher.subjects(embedding=True, tags=False, maps=True), recipe)
    answers = [torch.from_numpy(each) for each in teacher.maps(crops)]
    x = (LogMel(EFFICIENTAT)(torch.from_numpy(crops)) - network.mean) / network.std
    model.measure([x], answers)
    step = model(x, answers)
    assert set(step.parts) == {"blocks/2", "blocks/4"}
    assert float(step.loss) < 1e-4
    student.features[4].block[-1][1].bias += 0.1  # type: ignore[index, union-attr]
    parts = model(x, answers).parts
    assert float(parts["blocks/2"]) < 1e-4 < 1e-2 < float(parts["blocks/4"])


def test_a_wider_teachers_block_is_reached_by_a_linear_map(recipe: Recipe) -> None:
    student = EfficientAT(WIDTH)
    subject = Subject("wide/9", MAP, map_sizes(1.0)[9], block=9)
    model = distil(student, [subject], recipe)
    x, answer = torch.randn(4, 1, 128, 64), torch.randn(4, 4, subject.size)
    model.measure([x], [answer])
    step = model(x, [answer])
    step.loss.backward()
    (weight, _) = model.maps[0].parameters()
    assert weight.shape == (640, 64)  # 80 channels of 8 bands, and 8 of 8
    assert weight.grad is not None


def test_by_the_batch_the_students_scale_does_not_matter(recipe: Recipe) -> None:
    """Random weights have no scale worth keeping: ten times the numbers, the same loss."""
    subject = Subject("toy", "embedding", 5)
    model = distil(EfficientAT(WIDTH), [subject], recipe)
    x, answer = torch.randn(8, 1, 128, 64), torch.randn(8, 5)
    model.measure([x], [answer])
    embedding = 1 + torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    said = [model.maps[0](model.standardise(scale * embedding)) for scale in (1.0, 10.0)]
    torch.testing.assert_close(*said, rtol=1e-3, atol=1e-3)


# A run


def test_an_interrupted_run_goes_on_to_the_same_result(
    clips: Clips, recipe: Recipe, taught: tuple[Path, Path], blockwise: Path, tmp_path: Path
) -> None:
    whole, toy = taught
    for parts in (2, STEPS):
        options = options_of(tmp_path, stop_after_steps=parts, resume=parts == STEPS)
        pretrain(clips, recipe, options, ALONE, teachers_of(blockwise, toy, tags=True))
    mine, theirs = checkpoint.load(tmp_path), checkpoint.load(whole)
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(mine[part][name], value), name
    assert [line["loss"] for line in lines_of(tmp_path)] == [line["loss"] for line in lines_of(whole)]


def test_every_block_and_teacher_has_its_loss(taught: tuple[Path, Path]) -> None:
    lines = lines_of(taught[0])
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        maps = [line[f"loss/blocks/{block}"] for block in BLOCKS]
        weighted = 0.3 * sum(maps) + line["loss/toy"] + 0.02 * line["loss/toy/moods"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-4)


def test_its_blocks_become_those_of_its_teacher(clips: Clips, blockwise: Path, tmp_path: Path) -> None:
    more = ["optimisation.epochs=8", "optimisation.learning_rate=1e-2", "distil.tag_weight=0"]
    longer = load_recipe("distil-efficientat", [*TINY, *more, "distil.different_batches=4"])
    pretrain(clips, longer, options_of(tmp_path), ALONE, teachers_of(blockwise))
    lines = lines_of(tmp_path)
    for block in BLOCKS:
        first, last = ([line[f"loss/blocks/{block}"] for line in some] for some in (lines[:8], lines[-8:]))
        assert sum(last) < 0.7 * sum(first), block


# What comes of it


def test_it_is_served_with_blocks_fused(taught: tuple[Path, Path], crops: np.ndarray, tmp_path: Path) -> None:
    run, _ = taught
    line = ["export", "--run", str(run), "--out", str(tmp_path / "model"), "--licence", "CC0-1.0"]
    assert export([*line, "--fuse", "2,4"]) == 0
    model = Model.load(tmp_path / "model", device="cpu")
    assert model.card.encoder.parameters == {"width": WIDTH, "fuse": [2, 4]}
    assert model.card.description.startswith("efficientat #2 #4, trained by viola, taught by blocks 1 (CC0")

    encoder = EfficientAT(WIDTH, fuse=(2, 4)).eval()
    assert model.card.embedding_size == encoder.embedding_size
    average = checkpoint.load(run)["average"]
    encoder.load_state_dict({name: average[name] for name in encoder.state_dict()})
    x = (LogMel(EFFICIENTAT)(torch.from_numpy(crops)) - encoder.mean) / encoder.std
    with torch.no_grad():
        expected = encoder.pool(encoder(x)).numpy()
    for crop, wanted in zip(crops, expected, strict=True):
        found = embed(model.run, model.card, [model.logmel(crop)]).vector
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * float(np.abs(expected).max()))


def test_it_is_exported_plain_as_it_was_trained(taught: tuple[Path, Path]) -> None:
    trained = load_run(taught[0])
    assert isinstance(trained.encoder, EfficientAT)
    assert (trained.name, trained.parameters, trained.encoder.fuse) == ("efficientat", {"width": WIDTH}, ())
    assert (trained.mean, trained.std) == (-4.5, 5.0)
    for name, value in checkpoint.load(taught[0])["average"].items():
        assert torch.equal(trained.encoder.state_dict()[name], value), name
    with pytest.raises(ExportError, match="--fuse: efficientat has no layer 17"):
        fused(trained, (17,))


def test_a_run_begins_with_another_runs_weights(
    clips: Clips, recipe: Recipe, taught: tuple[Path, Path], blockwise: Path, tmp_path: Path
) -> None:
    plain = replace(recipe, distil=replace(recipe.distil, tag_weight=0.0))  # type: ignore[type-var]
    options = options_of(tmp_path, init=taught[0], stop_after_steps=1)
    pretrain(clips, plain, options, ALONE, teachers_of(blockwise))
    assert "its encoder alone" in json.loads((tmp_path / "data.json").read_text())["started_from"]
    given, kept = checkpoint.load(taught[0])["model"], checkpoint.load(tmp_path)["model"]
    first = "online.encoder.features.0.0.weight"
    torch.testing.assert_close(kept[first], given[first], rtol=0, atol=0.01)


# What is refused


def test_teachers_without_fused_blocks_are_refused(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    with pytest.raises(
        TeacherError, match="toy cannot teach block by block: import an efficientat with --fuse"
    ):
        teachers_of(make_teacher(tmp_path / "toy"))


def test_crops_longer_than_a_teachers_window_are_refused(
    clips: Clips, blockwise: Path, tmp_path: Path
) -> None:
    long = load_recipe("distil-efficientat", [*TINY, "waveform.long_s=[2, 11]"])
    with pytest.raises(
        RecipeError, match=r"long_s = 11 is too long for the maps of the teacher blocks: it hears"
    ):
        pretrain(clips, long, options_of(tmp_path / "run"), ALONE, teachers_of(blockwise))
    assert not (tmp_path / "run").exists()


def test_an_efficientat_is_taught_not_trained_alone() -> None:
    tables = as_tables(load_recipe("byola-2022"))
    with pytest.raises(RecipeError, match=r"learns from teachers alone, not by \[byol\] or \[cola\]"):
        recipe_of({**tables, "encoder": {"name": "efficientat", "width": 0.4}})


def test_blocks_are_not_taught_to_another_encoder() -> None:
    with pytest.raises(
        RecipeError, match=r"map_weight teaches the blocks of an efficientat .* for byola-2022"
    ):
        load_recipe("distil", ["distil.map_weight=1"])


def test_a_models_folder_is_no_start_and_a_run_has_no_layers_to_probe(
    clips: Clips, recipe: Recipe, taught: tuple[Path, Path], blockwise: Path, tmp_path: Path
) -> None:
    plain = replace(recipe, distil=replace(recipe.distil, tag_weight=0.0))  # type: ignore[type-var]
    with pytest.raises(
        CheckpointError, match="whose graph keeps no weights apart: begin with a run's folder"
    ):
        pretrain(clips, plain, options_of(tmp_path, init=blockwise), ALONE, teachers_of(blockwise))
    with pytest.raises(CheckpointError, match="holds an efficientat, whose layers are not told apart here"):
        load_probed(taught[0])


def test_a_run_from_before_a_key_came_goes_on(recipe: Recipe) -> None:
    tables = as_tables(recipe)
    older = {name: {**table} for name, table in tables.items()}
    del older["optimisation"]["weight_decay"]  # 0 then
    unchanged = replace(recipe, optimisation=replace(recipe.optimisation, weight_decay=0.0))
    refuse_another_recipe(older, unchanged)
    with pytest.raises(CheckpointError, match=r"optimisation\.weight_decay = 0\.0, not 0\.01"):
        refuse_another_recipe(older, recipe)
