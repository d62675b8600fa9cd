"""How known a sound is to a head."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.errors import ModelFolderError
from service.inference.heads import Head
from service.inference.known import KnownSounds
from service.inference.model import Model
from service.inference.tags import clip_scores
from service.inference.windows import Embedding, Segment
from tests.service.inference.test_card import MakeToy, accept_changed_file


def plane(min_known: float = 0.0) -> KnownSounds:
    """Of three numbers the first two count, the second twofold; two classes, at (0, 0) and (10, 0)."""
    return KnownSounds(
        projection=np.array([[1, 0, 0], [0, 2, 0]], dtype=np.float32),
        means=np.array([[0, 0], [10, 0]], dtype=np.float32),
        distances=np.array([1, 2, 3, 5], dtype=np.float32),
        min_known=min_known,
    )


def test_the_nearest_class_counts_and_the_share_of_clips_that_are_as_far() -> None:
    sounds = np.array(
        [[0, 0, 99], [3, 2, 0], [10, 0.5, 0], [12, 0, 0], [0, 2.75, 0]], dtype=np.float32
    )  # (3, 4), (0, 1), (2, 0) and (0, 5.5) away
    np.testing.assert_allclose(plane().distance(sounds), [0, 5, 1, 2, 5.5])
    assert plane()(sounds).tolist() == [1, 0.25, 1, 0.75, 0]


def head(known: KnownSounds | None) -> Head:
    zeros, ones = np.zeros(3, dtype=np.float32), np.ones(3, dtype=np.float32)
    weight = np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32)
    return Head("h", ("a", "b"), "multiclass", zeros, ones, weight, np.zeros(2, np.float32), known=known)


def clip(*sounds: tuple[float, float, float], of: Head) -> Embedding:
    """Passages of a second each."""
    rows = of.score_and_know(np.array(sounds, dtype=np.float32))
    passages = [Segment(i, i + 1, row) for i, row in enumerate(rows)]
    return Embedding(np.array(sounds[0], dtype=np.float32), passages=passages, segments=passages)


def test_what_is_not_known_has_no_say_and_the_best_known_passage_says_how_known_a_clip_is() -> None:
    of = head(plane())
    sound = clip((0, 0, 0), (0, 2, 0), (10, 0, 9), of=of)  # known 1, 0.25 and 1
    even = clip_scores(of, sound, min_known=0.3)
    np.testing.assert_allclose(
        even.scores, (of.score(np.zeros((1, 3), np.float32))[0] + [0, 1]) / 2, atol=1e-4
    )
    assert even.known == 1
    assert even.windows is not None
    assert even.windows.known.tolist() == [1, 0.25, 1]
    assert even.windows.is_known.tolist() == [True, False, True]
    assert even.windows.scores[1].tolist() == [0, 0]
    assert clip_scores(of, sound).windows.is_known.all()  # type: ignore[union-attr]


def test_a_clip_that_is_not_known_has_no_scores_and_says_so() -> None:
    of = head(plane(min_known=0.5))
    for sound in (Embedding(np.array([0, 2, 0], dtype=np.float32)), clip((0, 2, 0), (0, 2.5, 0), of=of)):
        scores = clip_scores(of, sound)
        assert (scores.known, scores.is_known, scores.scores.tolist()) == (0.25, False, [0, 0])
        assert clip_scores(of, sound, min_known=0.25).is_known
    cannot_tell = clip_scores(head(None), Embedding(np.array([0, 2, 0], dtype=np.float32)), min_known=1.0)
    assert (cannot_tell.known, cannot_tell.is_known) == (None, True)


@pytest.mark.parametrize(
    ("changes", "min_known", "sentence"),
    [
        (
            {"known_means": np.zeros((2, 4))},
            "0.1",
            r"`known_means` is float32 \(2, 4\), not float32 \(3, 4\)",
        ),
        ({"known_distances": np.array([2.0, 1.0])}, "0.1", "`known_distances` must ascend"),
        ({"known_distances": np.zeros(0)}, "0.1", r"`known_distances` is float32 \(0,\)"),
        ({}, "2", "`min_known` is '2', not a number from 0 to 1"),
        ({}, "much", "`min_known` is 'much', not a number from 0 to 1"),
    ],
)
def test_a_head_whose_known_sounds_do_not_fit_is_refused(
    changes: dict[str, np.ndarray], min_known: str, sentence: str, make_toy: MakeToy, tmp_path: Path
) -> None:
    folder = make_toy(tmp_path / "toy")
    path = folder / "heads" / "pets.safetensors"
    known = {
        "known_projection": np.zeros((4, 16)),
        "known_means": np.zeros((3, 4)),
        "known_distances": np.array([1.0, 2.0]),
    }
    halves = {name: x.astype(np.float16) for name, x in known.items()}
    metadata = {"labels": '["cat", "dog", "fish"]', "task": "multiclass"}
    plain = load_file(path)
    save_file(plain | halves, path, metadata | {"min_known": "0.25"})
    accept_changed_file(folder, "heads/pets.safetensors")
    good = Model.load(folder, device="cpu").heads["pets"].known
    assert good is not None
    assert (good.min_known, good.projection.dtype) == (0.25, np.float32)
    wrong = halves | {name: x.astype(np.float16) for name, x in changes.items()}
    save_file(plain | wrong, path, metadata | {"min_known": min_known})
    accept_changed_file(folder, "heads/pets.safetensors")
    with pytest.raises(ModelFolderError, match=sentence):
        Model.load(folder, device="cpu")
