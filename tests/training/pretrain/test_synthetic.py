"""Sounds of no recording are what their names say, by their spectra."""

import numpy as np
import pytest

from training.pretrain.synthetic import (
    KINDS,
    Waveform,
    chirp,
    clicks,
    harmonics,
    noise,
    silence,
    synthetic_sound,
    tone,
)

RATE = 16_000


def spectrum(wave: Waveform) -> np.ndarray:
    """Power per Hz of a second, under a Hann window."""
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2


@pytest.mark.parametrize("seed", range(5))
def test_a_tone_is_one_frequency_within_the_range(seed: int) -> None:
    power = spectrum(tone(RATE, RATE, np.random.default_rng(seed)))
    peak = int(power.argmax())
    assert 50 <= peak <= 0.45 * RATE
    assert power[max(0, peak - 3) : peak + 4].sum() / power.sum() > 0.999


@pytest.mark.parametrize("seed", range(5))
def test_harmonics_are_multiples_of_the_lowest(seed: int) -> None:
    power = spectrum(harmonics(RATE, RATE, np.random.default_rng(seed)))
    peaks = [
        f
        for f in range(20, len(power) - 1)
        if power[f] > 1e-3 * power.max() and power[f] == power[f - 3 : f + 4].max()
    ]
    fundamental = peaks[0]
    assert 50 <= fundamental <= 1000
    assert len(peaks) >= 2
    for peak in peaks:  # a peak's place is known to half a Hz, the fundamental's too
        k = round(peak / fundamental)
        assert abs(peak - k * fundamental) <= 0.5 * (k + 1)


def test_a_chirp_goes_from_its_first_to_its_last_frequency() -> None:
    wave = chirp(RATE, RATE, np.random.default_rng(3))
    parts = [int(spectrum(part).argmax()) for part in np.split(wave, 8)]
    assert parts in (sorted(parts), sorted(parts, reverse=True))
    assert parts[0] != parts[-1]


def test_noise_falls_at_a_slope_between_white_and_brown() -> None:
    slopes = []
    for seed in range(20):
        power = spectrum(noise(4 * RATE, RATE, np.random.default_rng(seed)))
        f = np.arange(200, 20_000)
        slopes.append(np.polyfit(np.log(f), np.log(power[f]), 1)[0])
    assert -2.1 < min(slopes) < -1.2
    assert -0.6 < max(slopes) < 0.1


def test_clicks_are_short_and_apart() -> None:
    wave = clicks(2 * RATE, RATE, np.random.default_rng(1))
    loud = np.abs(wave) > 0.05 * np.abs(wave).max()
    assert 0 < loud.mean() < 0.5


def test_silence_is_nothing_or_nearly() -> None:
    levels = {float(np.abs(silence(RATE, RATE, np.random.default_rng(seed))).max()) for seed in range(20)}
    assert 0 in levels
    assert 0 < max(levels) < 2e-3  # -70 dB, and noise's peaks are 13 dB above its level at most


def test_every_kind_comes_and_none_is_louder_than_full_scale() -> None:
    random = np.random.default_rng(0)
    sounds = [synthetic_sound(RATE, RATE, random) for _ in range(60)]
    peaks = np.array([np.abs(sound).max() for sound in sounds])
    assert peaks.max() <= 1
    assert (peaks < 2e-3).sum() >= 60 / len(KINDS) / 3  # silence
    assert (peaks > 0.01).sum() > 30
    assert all(sound.dtype == np.float32 and len(sound) == RATE for sound in sounds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_gives_finite_samples_of_any_length(kind: object) -> None:
    for length in (15_600, 80_001):
        wave = kind(length, RATE, np.random.default_rng(7))  # type: ignore[operator]
        assert wave.shape == (length,)
        assert np.isfinite(wave).all()
