from pathlib import Path

import numpy as np
import pytest

from service.inference.model import Model
from training.clips import DataError
from training.probe.embeddings import described, embed_once, logmel_statistics, served, untrained

FIXTURES = Path("tests/fixtures")
CLIPS = [FIXTURES / name for name in ("digit3_8k_mono_ulaw.wav", "sitar_44k1_mono_pcm16.aiff")]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(Path("models/byola"), precision="float32")


def test_statistics_of_a_log_mel_by_hand():
    logmel = np.array([[0, 2, 4], [1, 1, 1]], dtype=np.float32)
    mean, deviation, highest, change = logmel_statistics(logmel).reshape(4, 2).tolist()
    assert mean == [2, 1]
    assert deviation == pytest.approx([np.sqrt(8 / 3), 0])
    assert highest == [4, 1]
    assert change == [0, 0]  # the first band rises evenly


def test_a_log_mel_of_one_frame_has_statistics_too():
    assert np.isfinite(logmel_statistics(np.ones((64, 1), dtype=np.float32))).all()


def test_the_untrained_encoder_is_the_same_every_time_and_not_the_trained_one(model):
    first, again = untrained(model)(CLIPS), untrained(model)(CLIPS)
    assert first.shape == (2, model.card.embedding_size)
    assert (first == again).all()
    trained = served(model)(CLIPS)
    assert np.abs(first - trained).max() > 0.1


def test_each_path_is_embedded_once():
    asked: list[Path] = []

    def embed(paths: list[Path]) -> np.ndarray:
        asked.extend(paths)
        return np.arange(len(paths), dtype=np.float32)[:, None]

    vectors = embed_once(embed, [Path("a"), Path("b"), Path("a")])
    assert asked == [Path("a"), Path("b")]
    assert vectors[Path("b")].tolist() == [1]


def test_a_file_that_is_no_sound_is_named(model):
    embed = described(model, logmel_statistics, name="statistics")
    with pytest.raises(DataError, match=r"text\.wav cannot be embedded"):
        embed([FIXTURES / "invalid/text.wav"])
