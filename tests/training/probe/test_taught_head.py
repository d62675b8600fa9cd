"""A head that learns what a teacher's says: by hand on made-up numbers, and by the command on real sounds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from service.inference.card import load_card, write_card
from service.inference.model import Model
from training.__main__ import main
from training.clips import Clips
from training.pretrain.teachers import Teacher, TeacherError
from training.probe.linear import Embeddings
from training.probe.taught_head import (
    TAGGED,
    Heard,
    best_threshold,
    fit_taught_head,
    hear_augmented,
    sigmoid,
    teacher_head,
    thresholds_of,
)

MakeTeacher = Callable[..., Path]


def made_up(n: int = 4000, size: int = 12, labels: int = 4) -> Heard:
    """Embeddings, and a teacher whose logits are linear in them."""
    random = np.random.default_rng(0)
    embeddings = (5 + random.standard_normal((n, size))).astype(np.float32)
    weight = random.standard_normal((size, labels))
    scores = sigmoid(((embeddings - 5) @ weight - 1.5).astype(np.float32))
    return Heard(embeddings, scores, [])


def test_a_head_says_what_the_teacher_said_of_clips_it_has_not_heard() -> None:
    heard = made_up()
    fitted = fit_taught_head(heard, ("a", "b", "c", "d"))
    assert fitted.head.task == "multilabel"
    assert fitted.results["test_clips"] == 400
    assert fitted.results["train_clips"] == 3600
    assert fitted.results["value"] > 0.9  # type: ignore[operator]
    assert fitted.results["first_in_teachers_five"] == 1.0  # of four
    assert fitted.results["f1_at_thresholds"] > 0.8  # type: ignore[operator]
    found = sigmoid(fitted.head.logits(heard.embeddings))
    assert np.corrcoef(found.ravel(), heard.scores.ravel())[0, 1] > 0.9
    again = fit_taught_head(heard, ("a", "b", "c", "d"))
    np.testing.assert_array_equal(again.head.weight, fitted.head.weight)


def test_a_hidden_layer_learns_what_no_line_parts() -> None:
    random = np.random.default_rng(0)
    embeddings = (5 + random.standard_normal((3000, 6))).astype(np.float32)
    alike = (embeddings[:, 0] - 5) * (embeddings[:, 1] - 5) > 0
    heard = Heard(embeddings, np.stack([alike, ~alike], axis=1) * np.float32(0.98) + np.float32(0.01), [])
    linear = fit_taught_head(heard, ("alike", "apart"))
    deep = fit_taught_head(heard, ("alike", "apart"), hidden=32)
    assert linear.results["value"] < 0.7  # type: ignore[operator]
    assert deep.results["value"] > 0.9  # type: ignore[operator]
    assert deep.head.hidden is not None
    assert deep.head.hidden.weight.shape == (32, 6)


def test_more_is_asked_of_the_clips_that_are_learnt_from_alone() -> None:
    heard = made_up()
    asked: list[NDArray[np.bool_]] = []

    def more_of(learnt: NDArray[np.bool_]) -> tuple[Embeddings, Embeddings]:
        asked.append(learnt)
        return heard.embeddings[learnt][:10], heard.scores[learnt][:10]

    fit_taught_head(heard, ("a", "b", "c", "d"), more_of=more_of)
    (learnt,) = asked
    assert learnt.sum() == 3600


def test_student_and_teacher_hear_the_same_crops(teacher_folder: Path, clips: Clips) -> None:
    """The toy as its own teacher: what its head says of the embedding is what the teacher said."""
    toy = Teacher(teacher_folder, sample_rate=16_000, heads=["moods"], threads=1, device="cpu")
    (head,) = toy.heads
    embeddings, scores = hear_augmented(toy, toy, head, clips, 3)
    assert len(embeddings) == len(scores) == 3 * len(clips)
    np.testing.assert_allclose(head.score(embeddings), scores, atol=1e-6)
    again, _ = hear_augmented(toy, toy, head, clips, 3)
    np.testing.assert_array_equal(again, embeddings)
    assert len(np.unique(embeddings.round(4), axis=0)) > 2.5 * len(clips)  # no crop is heard twice


def test_a_threshold_lies_between_what_is_there_and_what_is_not() -> None:
    scores = np.array([0.9, 0.6, 0.1, 0.4, 0.05], dtype=np.float32)
    truth = np.array([True, True, False, True, False])
    assert best_threshold(scores, truth) == pytest.approx(0.25)
    assert best_threshold(scores, ~np.zeros(5, dtype=bool)) == pytest.approx(0.025)
    assert best_threshold(scores, np.zeros(5, dtype=bool)) == 0.5


def test_no_other_threshold_has_a_better_f1() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        truth = random.random(60) < 0.3
        scores = np.round(np.where(truth, 0.2, 0.0) + 0.8 * random.random(60), 1).astype(np.float32)  # ties

        def f1(threshold: float, scores: Embeddings = scores, truth: np.ndarray = truth) -> float:
            taken = scores >= threshold
            return float(2 * (taken & truth).sum() / max(1, taken.sum() + truth.sum()))

        found = f1(best_threshold(scores, truth))
        assert found == pytest.approx(max(f1(t) for t in np.linspace(0, 1.05, 211)))


def test_a_tag_with_few_examples_takes_the_threshold_common_to_all() -> None:
    random = np.random.default_rng(0)
    truth = np.zeros((50, 2), dtype=bool)
    truth[:20, 0] = True
    truth[0, 1] = True
    scores = (np.where(truth, 0.6, 0.2) + 0.1 * random.random((50, 2))).astype(np.float32)
    scores[0, 1] = 0.9
    own, common = thresholds_of(scores, truth)
    assert common == best_threshold(scores.ravel(), truth.ravel())
    assert own == best_threshold(scores[:, 0], truth[:, 0])
    assert own != common or best_threshold(scores[:, 1], truth[:, 1]) != common


# Whose head


def test_the_only_head_of_several_labels_teaches_unless_another_is_named(teacher_folder: Path) -> None:
    teacher = Model.load(teacher_folder, device="cpu")
    assert teacher_head(teacher, None).name == "moods"
    assert teacher_head(teacher, "moods").name == "moods"
    with pytest.raises(TeacherError, match="toy has no head 'birds': its heads are moods, pets"):
        teacher_head(teacher, "birds")
    with pytest.raises(TeacherError, match="The head pets of toy gives one label: fit such a head on labels"):
        teacher_head(teacher, "pets")


def test_a_teacher_without_such_a_head_is_refused(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    folder = make_teacher(tmp_path / "toy")
    card = load_card(folder)
    files = {name: sha for name, sha in card.files.items() if not name.startswith("heads/")}
    write_card(folder, card.model_copy(update={"files": files}))
    with pytest.raises(TeacherError, match="toy has 0 heads of several labels, not one: its heads are none"):
        teacher_head(Model.load(folder, device="cpu"), None)


# The command


def test_the_command_writes_a_head_with_thresholds_that_is_served(
    sounds: Path,
    teacher_folder: Path,
    make_teacher: MakeTeacher,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    student = make_teacher(tmp_path / "student", name="student")
    teacher = make_teacher(tmp_path / "toy", licence="CC-BY-NC-4.0")
    with_broken = tmp_path / "sounds"
    shutil.copytree(sounds, with_broken)
    (with_broken / "broken.wav").write_bytes(b"no sound")
    line = ["fit-head", "--model", str(student), "--data", str(with_broken), "--head", "taught"]
    assert main([*line, "--teacher", str(teacher)]) == 0
    said = capsys.readouterr()
    assert "taught.safetensors: 2 labels, mAP against the teacher" in said.out
    assert "on 2 clips held out" in said.out
    assert "broken.wav" in said.err
    assert "The licence of the teacher toy (CC-BY-NC-4.0) restricts" in said.err
    head = Model.load(student, device="cpu").heads["taught"]
    assert head.labels == ("calm", "wild")
    assert head.task == "multilabel"
    assert head.training_data == "23 clips without labels; taught by toy 1 (CC-BY-NC-4.0), head moods"
    with safe_open(student / "heads" / "taught.safetensors", framework="numpy") as file:
        thresholds = json.loads(file.metadata()["thresholds"])
    assert len(thresholds) == 2
    assert all(0 <= threshold <= 1 for threshold in thresholds)
    assert 0 < TAGGED < 1


def test_a_deep_head_from_augmented_clips_is_served(
    sounds: Path, teacher_folder: Path, make_teacher: MakeTeacher, cache: Path, tmp_path: Path
) -> None:
    student = make_teacher(tmp_path / "student")
    line = ["fit-head", "--model", str(student), "--data", str(sounds), "--head", "taught"]
    line += ["--teacher", str(teacher_folder), "--hidden", "8", "--augmented", "2", "--cache", str(cache)]
    assert main(line) == 0
    head = Model.load(student, device="cpu").heads["taught"]
    assert head.hidden is not None
    assert head.hidden.weight.shape == (8, 16)
    scores = head.score(np.zeros((1, 16), dtype=np.float32))
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--teacher-head", "moods"], "--teacher-head is for a head that is taught: name --teacher too"),
        (["--teacher", "TOY", "--test-fold", "5"], "a tenth of the clips tests a taught head"),
        (["--hidden", "8"], "--hidden is for a head that is taught: name --teacher too"),
        (["--augmented", "1"], "--augmented is for a head that is taught: name --teacher too"),
        (["--teacher", "TOY", "--teacher-head", "birds"], "toy has no head 'birds'"),
        (["--teacher", "nowhere"], "card.json cannot be read"),
    ],
)
def test_words_that_do_not_fit_are_said(
    words: list[str], sentence: str, sounds: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["fit-head", "--model", str(teacher_folder), "--data", str(sounds), "--head", "h", *words]
    assert main([str(teacher_folder) if word == "TOY" else word for word in line]) == 1
    assert sentence in capsys.readouterr().err


def test_too_few_clips_are_said(
    sounds: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(sounds.iterdir())[:3]:
        (tmp_path / path.name).symlink_to(path)
    line = ["fit-head", "--model", str(teacher_folder), "--data", str(tmp_path), "--head", "h"]
    assert main([*line, "--teacher", str(teacher_folder)]) == 1
    assert "3 clips that can be read are too few to fit a head on" in capsys.readouterr().err
