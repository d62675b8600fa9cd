"""Served models as teachers: they say what the server would, at their own rate, or why they cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soxr

from service.inference.card import load_card, write_card
from service.inference.model import Model
from service.inference.windows import embed
from training.clips import Clips
from training.pretrain.recipe import RecipeError
from training.pretrain.teachers import (
    Subject,
    Teacher,
    TeacherError,
    load_teachers,
    restriction_of,
)

MakeTeacher = Callable[..., Path]
RATE = 16_000


@pytest.fixture(scope="module")
def crops(clips: Clips) -> np.ndarray:
    """(5, 1.5 s) of real sounds."""
    long_enough = np.flatnonzero(clips.lengths >= 24_000)[:5]
    return np.stack([clips.segment(int(clip), 0, 24_000) for clip in long_enough])


def taught(*folders: Path, heads: tuple[str, ...] | None = None, needs_tags: bool = True) -> list[Teacher]:
    return load_teachers(
        folders, sample_rate=RATE, heads=heads, needs_tags=needs_tags, threads=1, device="cpu"
    )


def without_heads(folder: Path) -> Path:
    card = load_card(folder)
    files = {name: sha for name, sha in card.files.items() if not name.startswith("heads/")}
    write_card(folder, card.model_copy(update={"files": files}))
    return folder


# What they say


def test_a_teacher_says_what_the_server_would(teacher_folder: Path, crops: np.ndarray) -> None:
    (teacher,) = taught(teacher_folder)
    embedding, moods = teacher.answers(crops, embedding=True, tags=True)
    served = Model.load(teacher_folder, device="cpu")
    for crop, vector, scores in zip(crops, embedding, moods, strict=True):
        expected = embed(served.run, served.card, [served.logmel(crop)]).vector
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)  # in a batch and alone
        np.testing.assert_allclose(scores, served.heads["moods"].score(expected[None])[0], atol=1e-5)


def test_a_crop_longer_than_its_windows_is_cut_and_pooled_as_in_service(
    make_teacher: MakeTeacher, tmp_path: Path, crops: np.ndarray
) -> None:
    windows = {"kind": "independent", "stride": 4, "frames": 48, "min_frames": 8}
    folder = make_teacher(tmp_path / "short-windows", windows=windows, min_samples=1280)
    (teacher,) = taught(folder)
    found = teacher.embed(crops)
    served = Model.load(folder, device="cpu")
    for crop, vector in zip(crops, found, strict=True):
        expected = embed(served.run, served.card, [served.logmel(crop)]).vector
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)


def test_a_teacher_of_another_rate_hears_the_crop_at_its_own(
    make_teacher: MakeTeacher, tmp_path: Path, crops: np.ndarray
) -> None:
    (teacher,) = taught(make_teacher(tmp_path / "high", sample_rate=32_000, min_samples=1280))
    served = Model.load(tmp_path / "high", device="cpu")
    for crop, vector in zip(crops, teacher.embed(crops), strict=True):
        heard = soxr.resample(crop, RATE, 32_000)
        expected = embed(served.run, served.card, [served.logmel(heard)]).vector
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)


def test_several_threads_say_the_same(teacher_folder: Path, crops: np.ndarray) -> None:
    one = Teacher(teacher_folder, sample_rate=RATE, heads=None, threads=1, device="cpu")
    two = Teacher(teacher_folder, sample_rate=RATE, heads=None, threads=2, device="cpu")
    np.testing.assert_array_equal(one.embed(crops), two.embed(crops))


# Subjects


def test_it_teaches_its_embedding_and_its_heads_of_several_labels(teacher_folder: Path) -> None:
    (teacher,) = taught(teacher_folder)
    assert teacher.subjects(embedding=True, tags=True) == [
        Subject("toy", "embedding", 16),
        Subject("toy/moods", "multilabel", 2),
    ]
    assert teacher.subjects(embedding=True, tags=False) == [Subject("toy", "embedding", 16)]


def test_heads_are_chosen_by_name_those_of_one_label_too(teacher_folder: Path) -> None:
    (teacher,) = taught(teacher_folder, heads=("pets", "moods"))
    assert teacher.subjects(embedding=False, tags=True) == [
        Subject("toy/pets", "multiclass", 3),
        Subject("toy/moods", "multilabel", 2),
    ]


# What they cannot


def test_a_head_that_nobody_has_is_said(teacher_folder: Path) -> None:
    with pytest.raises(TeacherError, match="No teacher has a head 'birds': the heads are moods, pets"):
        taught(teacher_folder, heads=("birds",))


def test_a_teacher_without_a_head_cannot_teach_tags(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    folder = without_heads(make_teacher(tmp_path / "headless"))
    with pytest.raises(
        TeacherError, match=r"toy cannot teach tags: it has no head\..*set distil\.tag_weight=0"
    ):
        taught(folder)
    assert taught(folder, needs_tags=False)[0].heads == []


def test_one_whose_heads_give_one_label_each_must_be_asked_for(
    make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    folder = make_teacher(tmp_path / "toy")
    card = load_card(folder)
    files = {name: sha for name, sha in card.files.items() if "moods" not in name}
    write_card(folder, card.model_copy(update={"files": files}))
    with pytest.raises(TeacherError, match="its heads pets give one label each"):
        taught(folder)
    assert [head.name for head in taught(folder, heads=("pets",))[0].heads] == ["pets"]


def test_nobody_teaches_nothing_and_two_of_one_name_cannot_be_told_apart(teacher_folder: Path) -> None:
    with pytest.raises(TeacherError, match="--teacher"):
        taught()
    with pytest.raises(TeacherError, match="Two teachers are called toy"):
        taught(teacher_folder, teacher_folder)


def test_crops_shorter_than_its_shortest_input_are_refused(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    (teacher,) = taught(make_teacher(tmp_path / "high", sample_rate=32_000, min_samples=32_000))
    with pytest.raises(
        RecipeError,
        match=r"data\.segment_s = 0\.975 is too short for the teacher toy, whose shortest input is 1 s",
    ):
        teacher.refuse_short(15_600)
    teacher.refuse_short(16_000)


# Who they are


def test_a_teacher_is_described_to_the_bit(teacher_folder: Path, tmp_path: Path) -> None:
    (teacher,) = taught(teacher_folder)
    described = teacher.described()
    card = load_card(teacher_folder)
    assert json.loads(json.dumps(described)) == described
    assert described == {
        "name": "toy",
        "version": "1",
        "licence": "Apache-2.0",
        "heads": ["moods"],
        "sha256": {
            name: card.files[name]
            for name in ("encoder.onnx", "frontend.safetensors", "heads/moods.safetensors")
        },
    }
    moved = Path(shutil.copytree(teacher_folder, tmp_path / "elsewhere"))
    assert taught(moved)[0].described() == described  # where it lies is nobody's business


@pytest.mark.parametrize(
    ("licence", "is_restricted"),
    [
        ("MIT", False),
        ("Apache-2.0", False),
        ("CC-BY-SA-4.0", False),
        ("CC-BY-4.0", False),
        ("CC-BY-NC-4.0", True),
        ("CC-BY-NC-ND-4.0", True),
        ("for non-commercial use", True),
        ("Proprietary", True),
        ("All rights reserved.", True),
        ("research only", True),
        ("Not for distillation", True),
    ],
)
def test_a_licence_that_forbids_something_is_told(
    licence: str, is_restricted: bool, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    (teacher,) = taught(make_teacher(tmp_path / "toy", licence=licence))
    sentence = restriction_of(teacher.card)
    assert (sentence is not None) == is_restricted
    assert teacher.described().get("restriction") == sentence
    if sentence:
        assert f"toy ({licence})" in sentence
