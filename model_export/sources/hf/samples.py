"""Samples in columns in, in a row again out; hidden states in, their sum out: for networks of samples."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from encoders.frontend import Waveform

Array = NDArray[np.float32]

COLUMN_S = 0.01  # samples are handed on in columns of so long


def columns(sample_rate: int) -> Waveform:
    """Every sample counts: what fills no column at a clip's end has NaN behind it."""
    return Waveform(sample_rate, max(1, round(sample_rate * COLUMN_S)), rest="nan")


def in_a_row(x: Tensor) -> Tensor:
    """(B, 1, column, T) -> (B, samples)."""
    return x[:, 0].transpose(1, 2).flatten(start_dim=1)


def one_clip(x: Tensor, *, shortest: int = 1) -> Array:
    """(1, 1, column, T), the last with NaN where there is no sound, -> (samples,), `shortest` at least."""
    (samples,) = in_a_row(x).numpy()
    samples = samples[~np.isnan(samples)]
    return np.pad(samples, (0, max(0, shortest - len(samples))))


def weighted(states: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The sum of hidden states, each times its weight."""
    total = states[0] * weights[0].to(states[0].dtype)
    for weight, state in zip(weights[1:], states[1:], strict=True):
        total = total + state * weight.to(state.dtype)
    return total
