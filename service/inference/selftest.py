"""A sound that every machine can make in, the fingerprint of its embedding out: is this model what it was?

    probe_sound ─► log-mel ─► graph ─► vector (D,) ─► 16 sums of its numbers with random signs ─► card.json

A hash would not do: another CPU adds in another order, so that the last bits of an embedding differ. The
distance between two vectors survives a projection onto a few random directions (Johnson and Lindenstrauss
1984): with 16 of them it is estimated within a fifth. The card therefore holds 16 numbers and the vector's
norm instead of its thousands, and a tolerance on the relative distance, which no rounding comes near (1e-6 in
float32, 1e-3 in int8 or TF32) and which a wrong graph, damaged weights or another front-end exceed.

The noise and the signs are taken from the raw bits of PCG64, which NumPy promises never to change.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

Array = NDArray[np.float32]

SIGNAL_S = 1.0
DIRECTIONS = 16
SEED = 20_261_121
TOLERANCE = 0.01  # int8 lies 0.02 from float32 with the default model, so that even the two are told apart
PROJECTED_TOLERANCE = 0.1  # around a centre, distances are larger in relation; a wrong centre is 1 away


class Fingerprint(BaseModel):
    """Of one vector. projections: its sums with random signs; tolerance: of a distance, relative to norm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norm: PositiveFloat
    projections: tuple[float, ...] = Field(min_length=DIRECTIONS, max_length=DIRECTIONS)
    tolerance: PositiveFloat = TOLERANCE


class SelfTest(BaseModel):
    """The card's `self_test`. signal: the name of the sound; expected: precision → fingerprint; projected:
    the same of the normalised vector, where the folder has a projection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signal: Literal["sweeps-1"] = "sweeps-1"
    expected: Mapping[str, Fingerprint]
    projected: Mapping[str, Fingerprint] = {}


def probe_sound(sample_rate: int) -> Array:
    """`sweeps-1`, (n,) float32 in [-1, 1]: a rising and a falling sweep over decaying noise, the last tenth
    silent, so that every mel band is heard and the padding too."""
    n = round(SIGNAL_S * sample_rate)
    t = np.arange(n) / n
    top = 0.45 * sample_rate * SIGNAL_S  # cycles per signal: the highest frequency is 0.9 of Nyquist
    bottom = 50.0
    ratio = np.log(top / bottom)
    rising = np.sin(2 * np.pi * bottom * np.expm1(ratio * t) / ratio)  # equal time per octave
    falling = np.sin(2 * np.pi * (top * t - (top - bottom) * t**2 / 2))  # equal time per hertz
    sound = 0.4 * rising + 0.2 * falling + 0.2 * np.exp(-4 * t) * _noise(n)
    sound[-n // 10 :] = 0
    return sound.astype(np.float32)


def fingerprint(vector: NDArray[np.floating], *, tolerance: float = TOLERANCE) -> Fingerprint:
    """Of a vector (D,), rounded to seven digits."""
    exact = vector.astype(np.float64)
    return Fingerprint(
        norm=_rounded(float(np.linalg.norm(exact))),
        projections=tuple(_rounded(float(each)) for each in _signs(len(exact)) @ exact),
        tolerance=tolerance,
    )


def distance(vector: NDArray[np.floating], expected: Fingerprint) -> float:
    """The estimated distance from the vector that `expected` was made of, relative to that one's norm."""
    found = _signs(len(vector)) @ vector.astype(np.float64)
    moved = np.linalg.norm(found - np.array(expected.projections)) / np.sqrt(DIRECTIONS)
    return float(moved / expected.norm)


def complaint(
    vector: NDArray[np.floating], expected: Fingerprint | None, *, of: str = "embedding"
) -> str | None:
    """What is wrong with the embedding of the test signal; None if nothing, or if nothing is known of it."""
    if not np.isfinite(vector).all():
        return "its graph gives NaN or infinite values for the test signal"
    if expected is None:
        return None
    moved = distance(vector, expected)
    if not moved <= expected.tolerance:
        return (
            f"its {of} of the test signal lies {moved:.2g} of its norm from the one in the card, more "
            f"than {expected.tolerance:g}: graph, front-end or hardware do not compute what was exported"
        )
    return None


def _noise(n: int) -> NDArray[np.float64]:
    """(n,) uniform in [-1, 1)."""
    return np.random.PCG64(SEED).random_raw(n) / 2.0**63 - 1.0


def _signs(size: int) -> NDArray[np.float64]:
    """(DIRECTIONS, size) of 1 and -1."""
    words = np.random.PCG64(SEED + 1).random_raw(size)
    bits = (words[None, :] >> np.arange(48, 48 + DIRECTIONS, dtype=np.uint64)[:, None]) & np.uint64(1)
    return 1.0 - 2.0 * bits.astype(np.float64)


def _rounded(number: float) -> float:
    return float(f"{number:.7g}")
