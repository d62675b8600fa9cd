"""The analysis in front of the encoders: what turns a waveform into a log-mel, as numbers and as arrays.

    BYOLA, CNN14, MSM_MAE    centred frames, power,     Slaney's scale, triangles linear in Hz, of area one
    EFFICIENTAT              centred frames, power,     HTK's scale, triangles linear in mel, of height one
    VGGISH, AST              frames without padding,    the same
    Waveform                 no analysis: networks that take samples

The arrays are exported with every model, so that the server holds no mel formula. Training computes the
same log-mel on its own device; a test holds the two together.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EPS = float(np.finfo(np.float32).eps)

# Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, logarithmic above.
HZ_PER_MEL = 200 / 3
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / HZ_PER_MEL  # 15
LOG_STEP = np.log(6.4) / 27

# HTK's scale, as VGGish and Kaldi write it: m = 1127 ln(1 + f / 700).
HTK_MELS = 1127.0
HTK_HZ = 700.0


@dataclass(frozen=True)
class Frontend:
    """A log-mel: (samples,) -> (n_mels, frames). The names and their values are those of the card."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 1024  # samples, 64 ms
    win_length: int = 1024  # samples, 64 ms
    hop_length: int = 160  # samples, 10 ms
    n_mels: int = 64
    f_min_hz: float = 60.0
    f_max_hz: float = 7800.0
    log_floor: float = EPS
    centred: bool = True  # frame t is centred on sample t * hop_length; reflect padding at both ends
    window: Literal["periodic", "symmetric", "povey"] = "periodic"  # Hann; Kaldi's is between it and a box
    remove_frame_mean: bool = False
    preemphasis: float = 0.0
    # Of each frame, whose first sample precedes itself; or of the waveform, which loses its first sample.
    preemphasis_of: Literal["frame", "waveform"] = "frame"
    power: Literal[1, 2] = 2  # 1: magnitude
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["slaney", "none"] = "slaney"
    log: Literal["ln_add", "ln_max", "db"] = "ln_add"  # ln(x + floor), ln(max(x, floor)), 10 log10(…)

    @property
    def min_samples(self) -> int:
        """The shortest waveform that gives a frame: reflection needs one sample more than it mirrors."""
        return self._shortens + (self.n_fft // 2 + 1 if self.centred else self.win_length)

    def samples_for(self, n_frames: int) -> int:
        """The shortest waveform that gives so many frames."""
        first = 0 if self.centred else self.win_length
        return max(self.min_samples, self._shortens + first + (n_frames - 1) * self.hop_length)

    @property
    def _shortens(self) -> int:
        """The samples that the pre-emphasis takes."""
        return int(self.preemphasis != 0 and self.preemphasis_of == "waveform")


@dataclass(frozen=True)
class Waveform:
    """No analysis: samples go to a network as they are, `hop_length` of them in a column, which stands where
    a log-mel has a frame. rest: of samples that fill none; with NaN behind them the graph can count them."""

    sample_rate: int  # Hz
    hop_length: int  # samples
    rest: Literal["dropped", "nan"] = "dropped"

    @property
    def f_max_hz(self) -> float:
        return self.sample_rate / 2

    def samples_for(self, n_frames: int) -> int:
        """The shortest waveform that gives so many columns."""
        return n_frames * self.hop_length if self.rest == "dropped" else (n_frames - 1) * self.hop_length + 1


BYOLA = Frontend()  # arXiv 2103.06695, section V-A, with the Slaney filters of the published pre-training

VGGISH = Frontend(  # AudioSet's recipe, arXiv 1609.09430: frames of 25 ms, magnitude
    n_fft=512,
    win_length=400,
    f_min_hz=125.0,
    f_max_hz=7500.0,
    log_floor=0.01,
    centred=False,
    power=1,
    mel_scale="htk",
    mel_norm="none",
)

CNN14 = Frontend(  # PANNs at 16 kHz, arXiv 1912.10211: frames of 32 ms, decibel
    n_fft=512, win_length=512, f_min_hz=50.0, f_max_hz=8000.0, log="db", log_floor=1e-10
)

# Kaldi's fbank as arXiv 2104.01778 uses it. Its paper says Hamming, its code computes the symmetric Hann.
# It also removes the mean of the whole waveform, which changes nothing: each frame loses its own.
AST = Frontend(
    n_fft=512,
    win_length=400,
    n_mels=128,
    f_min_hz=20.0,
    f_max_hz=8000.0,
    centred=False,
    window="symmetric",
    remove_frame_mean=True,
    preemphasis=0.97,
    mel_scale="htk",
    mel_norm="none",
    log="ln_max",
)

EFFICIENTAT = Frontend(  # arXiv 2211.04772: 32 kHz, Kaldi's mel formula, frames of 25 ms
    sample_rate=32_000,
    win_length=800,
    hop_length=320,
    n_mels=128,
    f_min_hz=0.0,
    f_max_hz=15_000.0,
    log_floor=1e-5,
    window="symmetric",
    preemphasis=0.97,
    preemphasis_of="waveform",
    mel_scale="htk",
    mel_norm="none",
)

MSM_MAE = Frontend(n_fft=400, win_length=400, n_mels=80, f_min_hz=50.0, f_max_hz=8000.0)  # arXiv 2204.12260


def frontend_of(n_mels: int) -> Frontend:
    """That of BYOL-A with so many mel bands."""
    return replace(BYOLA, n_mels=n_mels)


def window_of(frontend: Frontend) -> NDArray[np.float32]:
    """(win_length,) the Hann window; the symmetric one ends on a zero too, and so does Povey's."""
    if frontend.window == "periodic":
        return hann_window(frontend.win_length)
    window = np.hanning(frontend.win_length)
    return (window**0.85 if frontend.window == "povey" else window).astype(np.float32)


def hann_window(length: int) -> NDArray[np.float32]:
    """(length,) periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def mel_filterbank(frontend: Frontend) -> NDArray[np.float32]:
    """(n_fft // 2 + 1, n_mels): triangles between points at equal distances on the mel scale."""
    bins_hz = np.linspace(0, frontend.sample_rate / 2, frontend.n_fft // 2 + 1)
    ends_hz = np.array([frontend.f_min_hz, frontend.f_max_hz])
    if frontend.mel_scale == "htk":
        corners = _equally_spaced(htk_mel_of_hz(ends_hz), frontend.n_mels)
        triangles = _triangles(htk_mel_of_hz(bins_hz), corners)
        corners_hz = hz_of_htk_mel(corners)
    else:
        corners_hz = hz_of_mel(_equally_spaced(mel_of_hz(ends_hz), frontend.n_mels))
        triangles = _triangles(bins_hz, corners_hz)
    if frontend.mel_norm == "slaney":  # area one: height 2 / width
        triangles *= 2 / (corners_hz[2:] - corners_hz[:-2])
    return triangles.astype(np.float32)


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


def htk_mel_of_hz(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frequency in Hz -> HTK mel."""
    return HTK_MELS * np.log1p(hz / HTK_HZ)


def hz_of_htk_mel(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """HTK mel -> frequency in Hz."""
    return HTK_HZ * np.expm1(mel / HTK_MELS)


def _equally_spaced(ends: NDArray[np.float64], n_mels: int) -> NDArray[np.float64]:
    """(n_mels + 2,): each band's corners are three neighbours."""
    return np.linspace(ends[0], ends[1], n_mels + 2)


def _triangles(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """points (n,), corners (n_mels + 2,) on one axis -> (n, n_mels): 1 at each centre, linear, 0 outside."""
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (points[:, None] - low) / (centre - low)
    falling = (high - points[:, None]) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling))
