"""A clip's log-mel as a picture, whatever its length and however it comes in blocks."""

import base64

import numpy as np
import pytest

from service.sound.picture import Drawing, Picture


def draw(blocks: list[np.ndarray], *, columns: int) -> Picture:
    drawing = Drawing(n_mels=4, columns=columns)
    for block in blocks:
        drawing.add(block)
    return drawing.picture()


def ramp(frames: int, n_mels: int = 4) -> np.ndarray:
    """Rises by one a frame, and by 1000 a band."""
    return (np.arange(frames)[None] + 1000 * np.arange(n_mels)[:, None]).astype(np.float32)


def test_a_short_clip_keeps_its_frames() -> None:
    picture = draw([ramp(10)], columns=10)
    assert picture.pixels.shape == (4, 10)
    assert picture.frames_per_column == 1
    assert (picture.low, picture.high) == (0, 3009)
    assert picture.pixels[0, 0] == 0
    assert picture.pixels[3, 9] == 255


@pytest.mark.parametrize("frames", [11, 19, 20, 21, 100, 1001, 4096])
@pytest.mark.parametrize("columns", [10, 16])
def test_a_long_clip_is_averaged_into_at_most_so_many_columns(frames: int, columns: int) -> None:
    picture = draw([ramp(frames)], columns=columns)
    assert columns / 2 <= picture.pixels.shape[1] <= columns
    assert picture.frames_per_column >= frames / columns
    rising = picture.pixels[0].astype(int)
    assert (np.diff(rising) >= 0).all()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_blocks_leave_no_trace(size: int) -> None:
    logmel = np.random.default_rng(0).normal(size=(4, 500)).astype(np.float32)
    blocks = [logmel[:, at : at + size] for at in range(0, 500, size)]
    whole, parts = draw([logmel], columns=40), draw(blocks, columns=40)
    assert whole.frames_per_column == parts.frames_per_column
    # a half column that waited for its other half counts as its mean: the same but for rounding
    assert np.abs(whole.pixels.astype(int) - parts.pixels.astype(int)).max() <= 1


def test_silence_is_one_colour_and_no_division_by_zero() -> None:
    picture = draw([np.full((4, 30), -15.9, np.float32)], columns=30)
    assert set(picture.pixels.ravel()) == {0}


def test_the_content_holds_the_pixels_band_after_band() -> None:
    content = draw([ramp(10)], columns=10).content()
    pixels = np.frombuffer(base64.b64decode(content["pixels"]), np.uint8).reshape(4, 10)
    assert content["n_mels"] == 4
    assert pixels[3, 9] == 255
