"""How loud a sound is, from when to when."""

import numpy as np
import pytest

from service.sound.level import SILENT, Levels


def levels(samples: np.ndarray, block: int) -> Levels:
    heard = Levels(16_000)
    blocks = [samples[start : start + block] for start in range(0, len(samples), block)]
    assert np.array_equal(np.concatenate(list(heard.listen(blocks))), samples)
    return heard


@pytest.mark.parametrize("block", [7, 1600, 5000, 100_000])
def test_the_peak_is_that_of_the_second_that_is_asked_for_whatever_the_blocks(block: int) -> None:
    samples = np.zeros(32_000 + 800, np.float32)
    samples[20_000] = -0.5
    heard = levels(samples, block)
    assert heard.peak() == 0.5
    assert heard.peak(0, 1) == 0
    assert heard.peak(1, 2) == 0.5
    assert heard.peak(2, 2.05) == 0


def test_the_last_bit_of_16_is_silent_and_a_whisper_is_not() -> None:
    assert levels(np.full(1600, 2**-15, np.float32), 1600).peak() < SILENT
    assert levels(np.full(1600, 0.001, np.float32), 1600).peak() > SILENT
    assert Levels(16_000).peak() == 0
