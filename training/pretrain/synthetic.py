"""Sounds of no recording, for what recordings lack: a length and draws in, a waveform (samples,) out.

Tones, harmonic tones, chirps, noises, clicks, and silence, digital or nearly: float32, at most full scale.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Waveform = NDArray[np.float32]

LOWEST_HZ = 50.0
LEVEL_DB = (-40.0, 0.0)  # of the peak
FAINT_DB = (-100.0, -70.0)  # of the noise that is nearly silence


def synthetic_sound(length: int, sample_rate: int, random: Generator) -> Waveform:
    """One of the kinds below, each as likely as another, at a random level."""
    kind = KINDS[random.integers(len(KINDS))]
    wave = kind(length, sample_rate, random)
    if kind is silence:
        return wave
    level = 10 ** (random.uniform(*LEVEL_DB) / 20)
    return (wave * (level / max(float(np.abs(wave).max()), 1e-9))).astype(np.float32)


def tone(length: int, sample_rate: int, random: Generator) -> Waveform:
    return _sine(np.full(length, _frequency(sample_rate, random)), sample_rate, random)


def harmonics(length: int, sample_rate: int, random: Generator) -> Waveform:
    """A fundamental up to 1 kHz and its multiples below half the rate, falling by a random slope."""
    fundamental = np.exp(random.uniform(np.log(LOWEST_HZ), np.log(1000.0)))
    slope = random.uniform(0.5, 2.0)
    count = min(20, int(0.45 * sample_rate / fundamental))
    waves = [
        _sine(np.full(length, fundamental * k), sample_rate, random) * np.float32(k**-slope)
        for k in range(1, count + 1)
    ]
    return np.sum(waves, axis=0, dtype=np.float32)


def chirp(length: int, sample_rate: int, random: Generator) -> Waveform:
    """From one frequency to another, in equal octaves per second."""
    first, last = (_frequency(sample_rate, random) for _ in range(2))
    return _sine(np.geomspace(first, last, length), sample_rate, random)


def noise(length: int, sample_rate: int, random: Generator) -> Waveform:
    """White, pink, brown or between: power that falls as 1 / f^slope."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    frequency = np.maximum(np.arange(len(spectrum)), 1)
    return np.fft.irfft(spectrum * frequency ** (-random.uniform(0, 2) / 2), length).astype(np.float32)


def clicks(length: int, sample_rate: int, random: Generator) -> Waveform:
    """One to thirty a second, each a decaying burst of a few milliseconds, regular or not."""
    count = max(1, int(random.uniform(1, 30) * length / sample_rate))
    regular = np.linspace(0, length, count, endpoint=False)
    starts = regular if random.random() < 0.5 else random.uniform(0, length, count)
    decay_s = random.uniform(0.0005, 0.01)
    burst = random.standard_normal(int(8 * decay_s * sample_rate) + 1)
    burst *= np.exp(-np.arange(len(burst)) / (decay_s * sample_rate))
    wave = np.zeros(length + len(burst), dtype=np.float32)
    for start in starts.astype(int):
        wave[start : start + len(burst)] += burst
    return wave[:length]


def silence(length: int, sample_rate: int, random: Generator) -> Waveform:
    """Half of the time zeros, else noise that nobody hears."""
    if random.random() < 0.5:
        return np.zeros(length, dtype=np.float32)
    level = np.float32(10 ** (random.uniform(*FAINT_DB) / 20))
    return random.standard_normal(length, dtype=np.float32) * level


Kind = Callable[[int, int, Generator], Waveform]
KINDS: tuple[Kind, ...] = (tone, harmonics, chirp, noise, clicks, silence)


def _frequency(sample_rate: int, random: Generator) -> float:
    """In Hz, every octave as likely as another, up to 0.45 of the rate."""
    return float(np.exp(random.uniform(np.log(LOWEST_HZ), np.log(0.45 * sample_rate))))


def _sine(hz: NDArray[np.float64], sample_rate: int, random: Generator) -> Waveform:
    """(n,) frequencies -> (n,) a sine of these, from a random phase on."""
    phase = 2 * np.pi * (np.cumsum(hz) / sample_rate + random.random())
    return np.sin(phase).astype(np.float32)
