"""The fingerprint of the test signal: what it must not mind, and what it must notice."""

import numpy as np
import pytest

from service.inference.selftest import Fingerprint, SelfTest, complaint, distance, fingerprint, probe_sound


def vector(seed: int = 0, size: int = 3072) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=size).astype(np.float32)


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100])
def test_the_sound_is_a_second_that_fills_the_spectrum_and_ends_in_silence(sample_rate: int) -> None:
    sound = probe_sound(sample_rate)
    assert sound.shape == (sample_rate,)
    assert sound.dtype == np.float32
    assert 0.5 < np.abs(sound).max() < 1
    assert not sound[-sample_rate // 10 :].any()
    power = np.abs(np.fft.rfft(sound)) ** 2
    bands = [band.mean() for band in np.array_split(power[50 : int(0.45 * sample_rate)], 20)]
    assert min(bands) > 1e-3 * max(bands), "every band is heard"


def test_the_sound_is_the_same_for_ever() -> None:
    """Its samples by hand: should NumPy ever change the noise, every card's self-test would fail."""
    np.testing.assert_allclose(probe_sound(16_000)[[0, 1, 1000, 8000, 15_000]], SAMPLES, rtol=0, atol=1e-6)


SAMPLES = [0.05482741, 0.25597718, -0.15678681, -0.15948907, 0.0]


def test_a_distance_of_fingerprints_is_that_of_the_vectors() -> None:
    expected = fingerprint(vector())
    for size in (1e-4, 1e-3, 1e-2, 0.1):
        noise = np.random.default_rng(1).normal(size=3072)
        moved = vector() + size * np.linalg.norm(vector()) * noise / np.linalg.norm(noise)
        assert distance(moved, expected) == pytest.approx(size, rel=0.5)
    assert distance(vector(), expected) < 1e-6


def test_rounding_is_not_noticed_and_one_lost_number_of_3072_is() -> None:
    expected = fingerprint(vector())
    rounded = vector().astype(np.float16).astype(np.float32)
    assert complaint(rounded, expected) is None
    lost = vector()
    lost[np.argsort(lost)[len(lost) // 2 :][0]] = 30  # a number of middle size has become large
    assert "of its norm from the one in the card" in str(complaint(lost, expected))
    assert complaint(vector(seed=1), expected) is not None


def test_nan_is_noticed_even_where_the_card_knows_nothing() -> None:
    assert complaint(vector(), None) is None
    assert "NaN" in str(complaint(np.full(4, np.nan), None))


def test_a_card_keeps_what_it_was_given() -> None:
    written = SelfTest(expected={"float32": fingerprint(vector())})
    assert SelfTest.model_validate_json(written.model_dump_json()) == written
    with pytest.raises(ValueError, match="16 items"):
        Fingerprint(norm=1.0, projections=(1.0,))
