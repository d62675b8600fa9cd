"""Samples in, log-mel frames out: one routine for every encoder, driven by the card.

    samples ─frames─► (T, win_length) ─mean, pre-emphasis, window─► (T, n_fft) ─rfft─► (T, n_bins)
            ─power─► @ filterbank, band by band ─► (n_mels, T) ─log

    centred           reflected | samples ........................ | reflected      frame t is centred on
    (n_fft/2 each)    [     frame 0    ]                                            sample t * hop_length:
                               [     frame 1    ]                                   1 + n // hop_length

    not centred                 | samples ........................ |                frame t starts there:
                                [frame 0]                                           1 + (n - win_length)
                                   [frame 1]                                            // hop_length

Pre-emphasis is of each frame, as drawn, or of the whole waveform before it is framed (`preemphasis_of`),
which leaves one sample less.

The window and the filterbank are arrays of the model folder, so that no mel formula lives here and the
server cannot drift from training. The window sits in the middle of n_fft when centred (as in torch.stft) and
at its start otherwise (as in Kaldi and VGGish), the rest is zero.

The work is done in float32 in chunks of CHUNK_FRAMES at multiples of CHUNK_FRAMES: they stay in the cache,
and a clip that comes in blocks gives exactly, to the bit, what it gives as a whole.

A filter is zero but for its triangle: BAND_FILTERS neighbours at a time are multiplied by the bins that they
share, which takes a quarter of the time of the whole matrix (`python -m benchmarks.logmel`).
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

Array = NDArray[np.float32]

CHUNK_FRAMES = 128
BAND_FILTERS = 16


class Frontend(BaseModel):
    """The card's `frontend`. Lengths in samples. The last four inform: the arrays decide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_fft: PositiveInt
    win_length: PositiveInt
    hop_length: PositiveInt
    n_mels: PositiveInt
    centred: bool
    remove_frame_mean: bool = False
    preemphasis: float = 0.0  # x[i] - preemphasis * x[i - 1]; 0 is none
    # A frame's first sample precedes itself; a waveform's precedes the first and is gone.
    preemphasis_of: Literal["frame", "waveform"] = "frame"
    power: Literal[1, 2] = 2  # 1: magnitude
    log: Literal["ln_add", "ln_max", "db"]  # ln(x + floor), ln(max(x, floor)), 10 log10(max(x, floor))
    log_floor: PositiveFloat
    f_min_hz: NonNegativeFloat
    f_max_hz: PositiveFloat
    mel_scale: str
    mel_norm: str

    @model_validator(mode="after")
    def _window_fits(self) -> "Frontend":
        if self.n_fft % 2 or self.win_length > self.n_fft:
            raise ValueError(f"n_fft = {self.n_fft} must be even and hold a window of {self.win_length}")
        return self

    @property
    def n_rows(self) -> int:
        return self.n_mels

    @property
    def emphasises_waveform(self) -> bool:
        return self.preemphasis != 0 and self.preemphasis_of == "waveform"

    def n_frames(self, n_samples: int) -> int:
        """The frames of a clip; 0 if it is too short for one."""
        n_samples -= self.emphasises_waveform
        if self.centred:  # reflection needs one sample more than it mirrors
            return 1 + n_samples // self.hop_length if n_samples > self.n_fft // 2 else 0
        return max(0, 1 + (n_samples - self.win_length) // self.hop_length)


class LogMel:
    """window: (win_length,) float32; filterbank: (n_fft // 2 + 1, n_mels) float32."""

    def __init__(self, frontend: Frontend, window: Array, filterbank: Array) -> None:
        self.frontend = frontend
        self._window = np.ascontiguousarray(window, dtype=np.float32)
        self._bands = bands_of(np.ascontiguousarray(filterbank, dtype=np.float32))
        # Where the window begins within n_fft.
        self._left = (frontend.n_fft - frontend.win_length) // 2 if frontend.centred else 0

    def __call__(self, waveform: Array) -> Array:
        """(n,) float32 mono in [-1, 1] -> (n_mels, T) float32.

        Raises ValueError for a clip that is too short for one frame; the card's `min_samples` is long enough.
        """
        T = self.frontend.n_frames(len(waveform))
        if T == 0:
            raise ValueError(f"{len(waveform)} samples are too few for one frame")
        if self.frontend.emphasises_waveform:
            waveform = emphasised(waveform, self.frontend.preemphasis)
        padded = reflected(waveform, self.frontend.n_fft // 2) if self.frontend.centred else waveform
        mel = np.empty((self.frontend.n_mels, T), dtype=np.float32)
        self._fill(mel, np.ascontiguousarray(padded, dtype=np.float32))
        return mel

    def stream(self, *, min_samples: int = 0) -> "LogMelStream":
        """For a clip that comes in blocks; padded with zeros at its end up to `min_samples`."""
        return LogMelStream(self, min_samples)

    def _fill(self, mel: Array, padded: Array) -> None:
        """All frames of `padded`, chunk by chunk, into mel (n_mels, T)."""
        for start in range(0, mel.shape[1], CHUNK_FRAMES):
            stop = min(start + CHUNK_FRAMES, mel.shape[1])
            first = padded[start * self.frontend.hop_length :]
            mel[:, start:stop] = self._chunk(first, stop - start).T

    def _chunk(self, padded: Array, n_frames: int) -> Array:
        """The first n_frames frames of `padded` -> (n_frames, n_mels)."""
        spectrum = scipy.fft.rfft(self._windowed(padded, n_frames), overwrite_x=True)  # (n, bins) complex64
        parts = spectrum.view(np.float32)
        np.square(parts, out=parts)
        power = parts[:, 0::2] + parts[:, 1::2]
        if self.frontend.power == 1:
            np.sqrt(power, out=power)
        return self._log(self._filtered(power))

    def _filtered(self, power: Array) -> Array:
        """(n_frames, n_bins) -> (n_frames, n_mels)."""
        mel = np.zeros((len(power), self.frontend.n_mels), dtype=np.float32)
        for band in self._bands:
            np.matmul(power[:, band.bins], band.filters, out=mel[:, band.mels])
        return mel

    def _windowed(self, padded: Array, n_frames: int) -> Array:
        """(n_frames, n_fft): each frame times the window, zero around it."""
        f = self.frontend
        step = padded.itemsize
        frames = as_strided(
            padded[self._left :], (n_frames, f.win_length), (f.hop_length * step, step), writeable=False
        )
        if f.remove_frame_mean:
            frames = frames - frames.mean(axis=1, keepdims=True, dtype=np.float32)
        if f.preemphasis and not f.emphasises_waveform:
            frames = emphasised(np.concatenate([frames[:, :1], frames], axis=1), f.preemphasis)
        if f.win_length == f.n_fft:
            return frames * self._window
        windowed = np.zeros((n_frames, f.n_fft), dtype=np.float32)
        np.multiply(frames, self._window, out=windowed[:, self._left : self._left + f.win_length])
        return windowed

    def _log(self, mel: Array) -> Array:
        """In place."""
        floor = np.float32(self.frontend.log_floor)
        if self.frontend.log == "ln_add":
            mel += floor
        else:
            np.maximum(mel, floor, out=mel)
        if self.frontend.log == "db":
            np.log10(mel, out=mel)
            mel *= np.float32(10)
            return mel
        return np.log(mel, out=mel)


class LogMelStream:
    """Blocks of samples in, blocks of frames out; together they are exactly LogMel of the whole clip.

    `push` gives them in chunks, as they are complete; `add` and `take` leave it to the caller how many frames
    are computed at a time, which to the last bit decides what they are.
    """

    def __init__(self, logmel: LogMel, min_samples: int) -> None:
        self._logmel = logmel
        self._frontend = logmel.frontend
        self._min_samples = min_samples
        self._n_samples = 0  # as they came, before any pre-emphasis
        self._n_frames = 0
        self._mirror = self._frontend.n_fft // 2 if self._frontend.centred else 0
        self._start_is_open = self._mirror > 0
        self._waiting = np.empty(0, dtype=np.float32)  # padded samples from the next frame on
        self._last = np.empty(0, dtype=np.float32)  # as many samples as the mirror at the end needs
        self._before = np.empty(0, dtype=np.float32)  # the one that precedes the next block

    def push(self, block: Array) -> Iterator[Array]:
        """(n,) samples -> the chunks (n_mels, CHUNK_FRAMES) that are complete now, if any."""
        self.add(block)
        return self._complete_chunks()

    def add(self, block: Array) -> None:
        """(n,) samples, without computing anything yet."""
        self._n_samples += len(block)
        if self._frontend.emphasises_waveform:
            block = self._emphasised(block)
        self._waiting = np.concatenate([self._waiting, block])
        if self._mirror:
            self._last = np.concatenate([self._last, block])[-self._mirror - 1 :]
        if self._start_is_open and len(self._waiting) > self._mirror:
            self._waiting = np.concatenate([self._waiting[self._mirror : 0 : -1], self._waiting])
            self._start_is_open = False

    @property
    def n_ready(self) -> int:
        """The frames of which all samples are there and that were not taken."""
        if self._start_is_open:
            return 0
        return max(0, 1 + (len(self._waiting) - self._frontend.n_fft) // self._frontend.hop_length)

    def n_missing(self, n: int) -> int:
        """The samples without which n frames cannot be ready."""
        needed = self._frontend.n_fft + (n - 1) * self._frontend.hop_length
        mirrored = self._mirror if self._start_is_open else 0
        return max(0, needed - mirrored - len(self._waiting))

    def take(self, n: int) -> Array:
        """(n_mels, n): the next n of the frames that are ready."""
        mel = np.empty((self._frontend.n_mels, n), dtype=np.float32)
        self._logmel._fill(mel, self._waiting)
        self._n_frames += n
        self._waiting = self._waiting[n * self._frontend.hop_length :]
        return mel

    def close(self) -> Iterator[Array]:
        """The rest of the frames. Raises ValueError if the clip is too short for one."""
        if (missing := self._min_samples - self._n_samples) > 0:
            self.add(np.zeros(missing, dtype=np.float32))
        n_rest = self._frontend.n_frames(self._n_samples) - self._n_frames
        if self._n_frames + n_rest == 0:
            raise ValueError(f"{self._n_samples} samples are too few for one frame")
        if n_rest > 0:
            rest = np.empty((self._frontend.n_mels, n_rest), dtype=np.float32)
            self._logmel._fill(rest, np.concatenate([self._waiting, self._last[:-1][::-1]]))
            yield rest

    def _complete_chunks(self) -> Iterator[Array]:
        while self.n_ready >= CHUNK_FRAMES:
            yield self.take(CHUNK_FRAMES)

    def _emphasised(self, block: Array) -> Array:
        """The block after the sample before it; of the very first sample nothing comes."""
        joined = np.concatenate([self._before, block])
        self._before = joined[-1:]
        return emphasised(joined, self._frontend.preemphasis)


class Band(NamedTuple):
    """Neighbouring filters and the bins outside of which all of them are zero."""

    mels: slice
    bins: slice
    filters: Array  # (bins, mels)


def bands_of(filterbank: Array) -> list[Band]:
    """(n_bins, n_mels) -> BAND_FILTERS filters a band; filters without any bin are left out."""
    bands = []
    for first in range(0, filterbank.shape[1], BAND_FILTERS):
        mels = slice(first, min(first + BAND_FILTERS, filterbank.shape[1]))
        used = np.flatnonzero(filterbank[:, mels].any(axis=1))
        if len(used):
            bins = slice(int(used[0]), int(used[-1]) + 1)
            bands.append(Band(mels, bins, np.ascontiguousarray(filterbank[bins, mels])))
    return bands


def reflected(samples: Array, n: int) -> Array:
    """(s,) -> (n + s + n,), s > n: mirrored at its first and last sample, as np.pad does it, slowly."""
    padded = np.empty(len(samples) + 2 * n, dtype=np.float32)
    padded[n : n + len(samples)] = samples
    padded[:n] = samples[n:0:-1]
    padded[n + len(samples) :] = samples[-2 : -n - 2 : -1]
    return padded


def emphasised(samples: Array, factor: float) -> Array:
    """(..., n + 1) -> (..., n) float32: each sample less so much of the one before it."""
    return np.subtract(samples[..., 1:], np.float32(factor) * samples[..., :-1], dtype=np.float32)
