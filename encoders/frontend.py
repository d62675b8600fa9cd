"""The analysis in front of the encoders: what turns a waveform into a log-mel, as numbers and as arrays.

The arrays are exported with every model, so that the server holds no mel formula. Training computes the
same log-mel on its own device; a test holds the two together.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

# Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above.
HZ_PER_MEL = 200 / 3
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / HZ_PER_MEL  # 15
LOG_STEP = np.log(6.4) / 27


@dataclass(frozen=True)
class Frontend:
    """A centred log-mel with reflect padding: (samples,) -> (n_mels, 1 + samples // hop_length).

    The filters follow Slaney in scale and norm; the logarithm is natural, with `log_floor` added before it.
    """

    sample_rate: int = 16_000  # Hz
    n_fft: int = 1024  # samples, 64 ms
    win_length: int = 1024  # samples, 64 ms
    hop_length: int = 160  # samples, 10 ms
    n_mels: int = 64
    f_min_hz: float = 60.0
    f_max_hz: float = 7800.0
    log_floor: float = float(np.finfo(np.float32).eps)

    @property
    def min_samples(self) -> int:
        """The shortest waveform that reflect padding of n_fft / 2 on both sides allows."""
        return self.n_fft // 2 + 1


BYOLA = Frontend()  # arXiv 2103.06695, section V-A, with the Slaney filters of the published pre-training


def frontend_of(n_mels: int) -> Frontend:
    """That of BYOL-A with so many mel bands."""
    return replace(BYOLA, n_mels=n_mels)


def hann_window(length: int) -> NDArray[np.float32]:
    """(length,) periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def mel_of_hz(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequency in Hz -> Slaney mel."""
    return np.where(
        hz < BREAK_HZ, hz / HZ_PER_MEL, BREAK_MEL + np.log(np.maximum(hz, BREAK_HZ) / BREAK_HZ) / LOG_STEP
    )


def hz_of_mel(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney mel -> frequency in Hz."""
    return np.where(
        mel < BREAK_MEL,
        mel * HZ_PER_MEL,
        BREAK_HZ * np.exp((np.maximum(mel, BREAK_MEL) - BREAK_MEL) * LOG_STEP),
    )


def mel_filterbank(frontend: Frontend) -> NDArray[np.float32]:
    """(n_fft // 2 + 1, n_mels): triangles linear in Hz, of area one (Slaney's norm: height 2 / width)."""
    bins_hz = np.linspace(0, frontend.sample_rate / 2, frontend.n_fft // 2 + 1)
    ends = mel_of_hz(np.array([frontend.f_min_hz, frontend.f_max_hz]))
    corners_hz = hz_of_mel(np.linspace(ends[0], ends[1], frontend.n_mels + 2))
    low, centre, high = corners_hz[:-2], corners_hz[1:-1], corners_hz[2:]
    rising = (bins_hz[:, None] - low) / (centre - low)
    falling = (high - bins_hz[:, None]) / (high - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (high - low)).astype(np.float32)
