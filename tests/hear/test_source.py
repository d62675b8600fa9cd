"""A folder and a server of it give benchmarks the same numbers."""

from pathlib import Path

import numpy as np
import pytest

from hear.source import Folder, Source, open_source
from service.errors import ModelFolderError, NoText
from service.inference.windows import embed
from tests.service.text_towers import vector_of

CLOSE = 1e-5  # of vectors of about 1: both compute in float32, in batches of other sizes


@pytest.fixture(params=["folder", "server"])
def open_toy(request: pytest.FixtureRequest, toys: Path, server: str) -> object:
    """name -> the toy of that name, from either."""

    def opened(name: str) -> Source:
        return open_source(str(toys / name) if request.param == "folder" else f"{server}/?model={name}")

    return opened


def test_every_sound_has_the_vector_that_it_has_alone(open_toy, noises) -> None:  # type: ignore[no-untyped-def]
    source = open_toy("toy")
    vectors = source.vectors(noises)
    assert vectors.shape == (len(noises), source.card.embedding_size)
    assert vectors.dtype == np.float32
    for noise, vector in zip(noises, vectors, strict=True):
        np.testing.assert_allclose(source.vectors([noise])[0], vector, rtol=CLOSE, atol=CLOSE)


def test_a_vector_is_that_of_the_pipeline_clip_by_clip(open_toy, toys: Path, noises) -> None:  # type: ignore[no-untyped-def]
    source, folder = open_toy("toy"), open_source(str(toys / "toy"))
    assert isinstance(folder, Folder)
    model = folder.model
    expected = [
        embed(model.run, model.card, model.logmel_blocks([noise.clip(-1, 1)])).vector for noise in noises
    ]
    np.testing.assert_allclose(source.vectors(noises), expected, rtol=CLOSE, atol=CLOSE)


def test_frames_end_with_the_sound(open_toy, toys: Path, noises) -> None:  # type: ignore[no-untyped-def]
    source, folder = open_toy("toy"), open_source(str(toys / "toy"))
    for noise in noises:
        frames, times_s = source.frames([noise, noise / 2])
        assert frames.shape == (2, len(times_s), source.card.embedding_size)
        assert (np.diff(times_s) > 0).all()
        assert times_s[-1] <= len(noise) / source.card.sample_rate
        expected, their_times_s = folder.frames([noise, noise / 2])
        np.testing.assert_allclose(frames, expected, rtol=CLOSE, atol=CLOSE)
        np.testing.assert_array_equal(times_s, their_times_s)


def test_vectors_may_be_normalized_where_the_model_can(open_toy, noises) -> None:  # type: ignore[no-untyped-def]
    lengths = np.linalg.norm(open_toy("centred").vectors(noises, normalize=True), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_texts_have_the_vectors_worked_out_by_hand(open_toy) -> None:  # type: ignore[no-untyped-def]
    source = open_toy("words")
    assert source.has_text
    texts = ["a dog barks", "rain on the roof", "cat"] * 30  # more than a request holds
    expected = [vector_of(text) for text in texts]
    np.testing.assert_allclose(source.text_vectors(texts), expected, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(source.text_vectors(texts[:3], normalize=True), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_a_model_without_a_text_tower_says_so(toys: Path) -> None:
    source = open_source(str(toys / "toy"))
    assert not source.has_text
    with pytest.raises(NoText, match="`toy` has no text tower"):
        source.text_vectors(["a dog"])


def test_a_server_tells_what_it_serves(toys: Path, server: str) -> None:
    source, folder = open_source(server), open_source(str(toys / "toy"))
    assert source.card == folder.card
    assert source.precision == folder.precision == "float32"
    with pytest.raises(ValueError, match="serves no model `bird`; it serves centred, toy, words"):
        open_source(f"{server}/?model=bird")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError):
        open_source(str(tmp_path))
