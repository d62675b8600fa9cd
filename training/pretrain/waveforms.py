"""What teacher and student both hear of a crop: waveforms (B, samples) in, and out, float32 in [-1, 1].

    crop ─► synthetic sound ─► mixed with others ─► filter, room ─► gain ─► no louder than full scale
            (a share of all)   (half of them)       (one FFT)

Each crop has draws of its own. NumPy on one thread, so that it runs beside the step and gives the same bits.
"""

import numpy as np
import scipy.fft
from numpy.random import Generator
from numpy.typing import NDArray

from training.pretrain.recipe import WaveformRecipe
from training.pretrain.synthetic import synthetic_sound

Waveforms = NDArray[np.float32]

SILENT_POWER = 1e-10  # mean square, -100 dB of full scale: below, a ratio of powers says nothing
CORNER_HZ = (150.0, 4000.0)  # of a high-pass; a low-pass has its own from the same range, an octave higher
ORDERS = (1, 2, 4)  # of the Butterworth filters: 6, 12 or 24 dB per octave
EQUALISER_DB = 12.0  # a bell lifts or cuts by at most so much
DIRECT_DB = (0.0, 15.0)  # the direct sound's energy over that of the room's tail


def augmented(
    waveforms: Waveforms, recipe: WaveformRecipe, *, sample_rate: int, is_long: bool, random: Generator
) -> Waveforms:
    """The recipe's augmentation. is_long: a crop of several seconds is a mixture of several others."""
    x = with_synthetic(waveforms, recipe.synthetic_share, sample_rate, random)
    x = mixtures(
        x, recipe.mix_share, recipe.mix_snr_db, n_others=recipe.long_mixtures if is_long else 1, random=random
    )
    x = in_rooms(x, recipe, sample_rate, random)
    return limited(gained(x, recipe.gain_db, random))


def with_synthetic(x: Waveforms, share: float, sample_rate: int, random: Generator) -> Waveforms:
    """A share of the crops replaced by tones, noises, chirps, clicks and silence."""
    rows = np.flatnonzero(random.random(len(x)) < share)
    if not len(rows):
        return x
    x = x.copy()
    for row in rows:
        x[row] = synthetic_sound(x.shape[1], sample_rate, random)
    return x


def mixtures(
    x: Waveforms, share: float, snr_db: tuple[float, float], *, n_others: int, random: Generator
) -> Waveforms:
    """A share of the crops with `n_others` other crops of the batch added, each snr_db below the crop itself;
    several begin at other moments."""
    mixed = x
    for _ in range(n_others):
        others = x[(np.arange(len(x)) + random.integers(1, max(2, len(x)))) % len(x)]
        if n_others > 1:  # a long crop's clips are shorter than it: they begin anywhere in it
            others = np.stack([np.roll(other, random.integers(len(other))) for other in others])
        chosen = random.random(len(x)) < share
        snr = random.uniform(*snr_db, len(x))
        mixed = np.where(chosen[:, None], mixed + levelled(others, x, snr), mixed)
    return mixed


def levelled(other: Waveforms, x: Waveforms, snr_db: NDArray[np.float64]) -> Waveforms:
    """The other (B, samples), so loud that x's power is snr_db (B,) above its own; as it is where one of them
    is silent and there is no ratio."""
    power, other_power = power_of(x), power_of(other)
    heard = (power > SILENT_POWER) & (other_power > SILENT_POWER)
    ratio = power / np.maximum(other_power, SILENT_POWER) / 10 ** (snr_db / 10)
    gain = np.where(heard, np.sqrt(ratio), 1.0).astype(np.float32)
    return gain[:, None] * other


def power_of(x: Waveforms) -> NDArray[np.float64]:
    """(B, n) -> (B,): the mean square."""
    return np.einsum("bn,bn->b", x, x, dtype=np.float64) / x.shape[1]


def in_rooms(x: Waveforms, recipe: WaveformRecipe, sample_rate: int, random: Generator) -> Waveforms:
    """A share of the crops filtered, a share in a room, both by one multiplication of spectra; each keeps its
    power."""
    filtered = random.random(len(x)) < recipe.filter_share
    reverberant = random.random(len(x)) < recipe.reverb_share
    rows = np.flatnonzero(filtered | reverberant)
    if not len(rows):
        return x
    n = x.shape[1]
    tail = min(n, int(recipe.reverb_rt60_s[1] * sample_rate))
    size = scipy.fft.next_fast_len(n + tail, real=True)
    hz = np.arange(size // 2 + 1) * (sample_rate / size)
    responses = np.ones((len(rows), len(hz)), dtype=np.complex64)
    for response, row in zip(responses, rows, strict=True):
        if reverberant[row]:
            rt60_s = random.uniform(*recipe.reverb_rt60_s)
            room = room_response(tail, rt60_s, random.uniform(*DIRECT_DB), sample_rate, random)
            response *= scipy.fft.rfft(room, size)
        if filtered[row]:
            response *= filter_response(hz, random)
    out = x.copy()
    heard = scipy.fft.irfft(scipy.fft.rfft(x[rows], size) * responses, size)[:, :n]
    out[rows] = heard * np.sqrt(power_of(x[rows]) / np.maximum(power_of(heard), 1e-20))[:, None]
    return out


def room_response(
    length: int, rt60_s: float, direct_db: float, sample_rate: int, random: Generator
) -> NDArray[np.float32]:
    """(length,): the direct sound, then noise that falls by 60 dB in rt60_s."""
    times_s = np.arange(1, length) / sample_rate
    tail = random.standard_normal(length - 1, dtype=np.float32) * 10 ** (-3 * times_s / rt60_s)
    tail *= np.sqrt(10 ** (-direct_db / 10) / max(float(tail @ tail), 1e-20))
    return np.concatenate([[1.0], tail]).astype(np.float32)


def filter_response(hz: NDArray[np.float64], random: Generator) -> NDArray[np.float32]:
    """(F,): a high-pass, a low-pass, both (a telephone, a small loudspeaker) or a bell, without phase."""
    kind = random.integers(4)
    order = int(random.choice(ORDERS))
    low = np.exp(random.uniform(*np.log(CORNER_HZ)))
    high = 2 * np.exp(random.uniform(*np.log(CORNER_HZ)))
    if kind == 3:
        gain_db = random.uniform(-EQUALISER_DB, EQUALISER_DB)
        octaves = np.log2(np.maximum(hz, 1.0) / low)
        return (10 ** (gain_db / 20 * np.exp(-(octaves**2)))).astype(np.float32)
    response = np.ones_like(hz)
    if kind in (0, 2):
        response *= high_pass(hz, min(low, high / 2), order)
    if kind in (1, 2):
        response *= low_pass(hz, high, order)
    return response.astype(np.float32)


def low_pass(hz: NDArray[np.float64], corner_hz: float, order: int) -> NDArray[np.float64]:
    """Butterworth's magnitude: -3 dB at the corner, then 6 dB per octave and order."""
    return 1 / np.sqrt(1 + (hz / corner_hz) ** (2 * order))


def high_pass(hz: NDArray[np.float64], corner_hz: float, order: int) -> NDArray[np.float64]:
    return 1 / np.sqrt(1 + (corner_hz / np.maximum(hz, 1e-3)) ** (2 * order))


def gained(x: Waveforms, gain_db: tuple[float, float], random: Generator) -> Waveforms:
    gain = 10 ** (random.uniform(*gain_db, len(x)) / 20)
    return x * gain[:, None].astype(np.float32)


def limited(x: Waveforms) -> Waveforms:
    """A crop that exceeds full scale is brought down to it as a whole."""
    return x / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1).astype(np.float32)
