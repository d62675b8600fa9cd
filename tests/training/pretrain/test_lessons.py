"""What a step is given when teachers teach: the same crops for all, and answers that are asked for once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.clips import Clips
from training.pretrain.distributed import World
from training.pretrain.lessons import Lessons, first_lessons
from training.pretrain.recipe import Recipe, load_recipe
from training.pretrain.sampler import Batch, Plan, plan_of
from training.pretrain.teachers import Answers, Teacher, load_teachers

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def recipe(tiny_distil: tuple[str, ...]) -> Recipe:
    return load_recipe("distil", [*tiny_distil])


@pytest.fixture
def teacher(teacher_folder: Path) -> Teacher:
    (teacher,) = load_teachers(
        [teacher_folder], sample_rate=16_000, heads=None, needs_tags=True, threads=1, device="cpu"
    )
    return teacher


def batches_of(plan: Plan, lessons: Lessons, first: int, last: int) -> list[Batch]:
    return list(plan.batches(first, last, lessons.prepare))


def assert_same(mine: Batch, theirs: Batch) -> None:
    assert np.array_equal(mine.clips, theirs.clips)
    assert torch.equal(mine.waveforms, theirs.waveforms)
    for a, b in zip(mine.answers, theirs.answers, strict=True):
        assert torch.equal(a, b)


def test_the_answers_are_to_what_the_student_hears(clips: Clips, recipe: Recipe, teacher: Teacher) -> None:
    plan, lessons = plan_of(clips, recipe, ALONE), Lessons([teacher], recipe, 16_000)
    (batch,) = batches_of(plan, lessons, 3, 4)
    embedding, moods = batch.answers
    np.testing.assert_array_equal(embedding, teacher.embed(batch.waveforms[0].numpy()))
    assert moods.shape == (len(batch.clips), 2)
    plain = next(plan.batches(3, 4))
    assert not torch.equal(batch.waveforms, plain.waveforms)  # augmented
    assert 0 < batch.teachers_s <= batch.prepared_s


def test_lessons_are_the_same_from_any_step_on(clips: Clips, recipe: Recipe, teacher: Teacher) -> None:
    plan, lessons = plan_of(clips, recipe, ALONE), Lessons([teacher], recipe, 16_000)
    whole, later = batches_of(plan, lessons, 0, 8), batches_of(plan, lessons, 5, 8)
    for mine, theirs in zip(later, whole[5:], strict=True):
        assert_same(mine, theirs)


def test_some_steps_have_longer_crops_and_fewer_of_them(
    clips: Clips, tiny_distil: tuple[str, ...], teacher: Teacher
) -> None:
    recipe = load_recipe("distil", [*tiny_distil, "optimisation.batch_size=12", "waveform.long_s=[1.5, 4.0]"])
    plan, lessons = plan_of(clips, recipe, ALONE), Lessons([teacher], recipe, 16_000)
    shapes = [tuple(batch.waveforms.shape[1:]) for batch in batches_of(plan, lessons, 0, 20)]
    usual = {shape for shape in shapes if shape[1] == plan.segment}
    long = {shape for shape in shapes if shape[1] != plan.segment}
    assert usual == {(plan.batch_size, 15_600)}
    assert len(long) > 1
    for crops, samples in long:
        assert samples % 8000 == 0  # a multiple of half a second
        assert 24_000 <= samples <= 64_000
        assert crops * samples <= plan.batch_size * plan.segment or crops == 2
    assert [plan.segments_in(step) for step in range(20)] == [crops for crops, _ in shapes]


def test_two_processes_have_crops_of_one_length_and_augmentations_of_their_own(
    clips: Clips, tiny_distil: tuple[str, ...], teacher: Teacher
) -> None:
    recipe = load_recipe("distil", [*tiny_distil, "optimisation.batch_size=8"])
    plans = [plan_of(clips, recipe, World(rank, 2, torch.device("cpu"))) for rank in (0, 1)]
    lessons = Lessons([teacher], recipe, 16_000)
    first, second = (batches_of(plan, lessons, 0, 9) for plan in plans)
    assert [b.waveforms.shape[-1] for b in first] == [b.waveforms.shape[-1] for b in second]
    assert len({b.waveforms.shape[-1] for b in first}) > 1
    for step, (mine, theirs) in enumerate(zip(first, second, strict=True)):
        assert not set(mine.clips) & set(theirs.clips)
        assert plans[0].segments_in(step) == len(mine.clips) + len(theirs.clips)


class CountedTeacher(Teacher):
    """A real one that counts how often it is asked."""

    asked = 0

    def answers(self, *arguments: Any, **options: Any) -> Answers:
        self.asked += 1
        return super().answers(*arguments, **options)


def test_batches_that_come_again_ask_the_teacher_once(
    clips: Clips, tiny_distil: tuple[str, ...], teacher_folder: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("distil", [*tiny_distil, "distil.different_batches=4"])
    plan = plan_of(clips, recipe, ALONE)
    teacher = CountedTeacher(teacher_folder, sample_rate=16_000, heads=None, threads=1, device="cpu")
    kept = Lessons([teacher], recipe, 16_000, answers=tmp_path)
    batches = batches_of(plan, kept, 0, 12)
    assert teacher.asked == 4
    assert len(list(tmp_path.iterdir())) == 4
    for step in range(4):
        assert_same(batches[step + 4], batches[step])
        assert_same(batches[step + 8], batches[step])
    assert not torch.equal(batches[0].waveforms[0, 0], batches[1].waveforms[0, 0])

    broken = sorted(tmp_path.iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:100])  # what a killed disk leaves is asked for again
    again = batches_of(plan, kept, 0, 4)
    assert teacher.asked == 5
    for mine, theirs in zip(again, batches[:4], strict=True):
        assert_same(mine, theirs)
    batches_of(plan, kept, 0, 4)
    assert teacher.asked == 5


def test_batches_that_all_differ_leave_nothing_on_disk(
    clips: Clips, recipe: Recipe, teacher: Teacher, tmp_path: Path
) -> None:
    batches_of(plan_of(clips, recipe, ALONE), Lessons([teacher], recipe, 16_000, answers=tmp_path), 0, 3)
    assert not list(tmp_path.iterdir())


def test_the_first_lessons_have_every_clip_once_and_are_the_same_for_all(
    clips: Clips, recipe: Recipe, teacher: Teacher
) -> None:
    lessons = Lessons([teacher], recipe, 16_000)
    alone = list(first_lessons(plan_of(clips, recipe, ALONE), lessons))
    assert sum(len(waveforms) for waveforms, _ in alone) == len(clips)
    other = replace(plan_of(clips, recipe, ALONE), world=World(1, 2, torch.device("cpu")))
    for (waveforms, answers), (same, same_answers) in zip(alone, first_lessons(other, lessons), strict=True):
        assert torch.equal(waveforms, same)
        assert all(torch.equal(a, b) for a, b in zip(answers, same_answers, strict=True))
