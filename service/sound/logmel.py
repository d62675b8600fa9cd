"""Samples in, log-mel frames out: one routine for every encoder, driven by the card.

    samples ─frames─► (T, win_length) ─mean, pre-emphasis, window─► (T, n_fft) ─rfft─► (T, n_bins)
            ─power─► @ filterbank ─► (n_mels, T) ─log

    centred           reflected | samples ........................ | reflected      frame t is centred on
    (n_fft/2 each)    [     frame 0    ]                                            sample t * hop_length:
                               [     frame 1    ]                                   1 + n // hop_length

    not centred                 | samples ........................ |                frame t starts there:
                                [frame 0]                                           1 + (n - win_length)
                                   [frame 1]                                            // hop_length

The window and the filterbank are arrays of the model folder, so that no mel formula lives here and the
server cannot drift from training. The window sits in the middle of n_fft when centred (as in torch.stft) and
at its start otherwise (as in Kaldi and VGGish), the rest is zero.

The work is done in float32 in chunks of CHUNK_FRAMES at multiples of CHUNK_FRAMES: they stay in the cache,
and a clip that comes in blocks gives exactly, to the bit, what it gives as a whole.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

Array = NDArray[np.float32]

CHUNK_FRAMES = 128


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

    def n_frames(self, n_samples: int) -> int:
        """The frames of a clip; 0 if it is too short for one."""
        if self.centred:  # reflection needs one sample more than it mirrors
            return 1 + n_samples // self.hop_length if n_samples > self.n_fft // 2 else 0
        return max(0, 1 + (n_samples - self.win_length) // self.hop_length)


class LogMel:
    """window: (win_length,) float32; filterbank: (n_fft // 2 + 1, n_mels) float32."""

    def __init__(self, frontend: Frontend, window: Array, filterbank: Array) -> None:
        self.frontend = frontend
        self._window = np.ascontiguousarray(window, dtype=np.float32)
        self._filters = np.ascontiguousarray(filterbank.T, dtype=np.float32)  # (n_mels, n_bins)
        # Where the window begins within n_fft.
        self._left = (frontend.n_fft - frontend.win_length) // 2 if frontend.centred else 0

    def __call__(self, waveform: Array) -> Array:
        """(n,) float32 mono in [-1, 1] -> (n_mels, T) float32.

        Raises ValueError for a clip that is too short for one frame; the card's `min_samples` is long enough.
        """
        T = self.frontend.n_frames(len(waveform))
        if T == 0:
            raise ValueError(f"{len(waveform)} samples are too few for one frame")
        half = self.frontend.n_fft // 2
        padded = np.pad(waveform, half, mode="reflect") if self.frontend.centred else waveform
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
            mel[:, start:stop] = self._chunk(first, stop - start)

    def _chunk(self, padded: Array, n_frames: int) -> Array:
        """The first n_frames frames of `padded` -> (n_mels, n_frames)."""
        spectrum = scipy.fft.rfft(self._windowed(padded, n_frames), overwrite_x=True)  # (n, bins) complex64
        parts = spectrum.view(np.float32)
        np.square(parts, out=parts)
        power = parts[:, 0::2] + parts[:, 1::2]
        if self.frontend.power == 1:
            np.sqrt(power, out=power)
        return self._log(self._filters @ power.T)

    def _windowed(self, padded: Array, n_frames: int) -> Array:
        """(n_frames, n_fft): each frame times the window, zero around it."""
        f = self.frontend
        step = padded.itemsize
        frames = as_strided(
            padded[self._left :], (n_frames, f.win_length), (f.hop_length * step, step), writeable=False
        )
        if f.remove_frame_mean:
            frames = frames - frames.mean(axis=1, keepdims=True, dtype=np.float32)
        if f.preemphasis:
            before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)  # the first uses itself
            frames = np.subtract(frames, np.float32(f.preemphasis) * before, dtype=np.float32)
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
    """Blocks of samples in, blocks of frames out; together they are exactly LogMel of the whole clip."""

    def __init__(self, logmel: LogMel, min_samples: int) -> None:
        self._logmel = logmel
        self._frontend = logmel.frontend
        self._min_samples = min_samples
        self._n_samples = 0
        self._n_frames = 0
        self._mirror = self._frontend.n_fft // 2 if self._frontend.centred else 0
        self._start_is_open = self._mirror > 0
        self._waiting = np.empty(0, dtype=np.float32)  # padded samples from the next frame on
        self._last = np.empty(0, dtype=np.float32)  # as many samples as the mirror at the end needs

    def push(self, block: Array) -> Iterator[Array]:
        """(n,) samples -> the chunks (n_mels, CHUNK_FRAMES) that are complete now, if any."""
        self._n_samples += len(block)
        self._waiting = np.concatenate([self._waiting, block])
        if self._mirror:
            self._last = np.concatenate([self._last, block])[-self._mirror - 1 :]
        if self._start_is_open and self._n_samples > self._mirror:
            self._waiting = np.concatenate([self._waiting[self._mirror : 0 : -1], self._waiting])
            self._start_is_open = False
        return self._complete_chunks()

    def close(self) -> Iterator[Array]:
        """The rest of the frames. Raises ValueError if the clip is too short for one."""
        if (missing := self._min_samples - self._n_samples) > 0:
            yield from self.push(np.zeros(missing, dtype=np.float32))
        n_rest = self._frontend.n_frames(self._n_samples) - self._n_frames
        if self._n_frames + n_rest == 0:
            raise ValueError(f"{self._n_samples} samples are too few for one frame")
        if n_rest > 0:
            rest = np.empty((self._frontend.n_mels, n_rest), dtype=np.float32)
            self._logmel._fill(rest, np.concatenate([self._waiting, self._last[:-1][::-1]]))
            yield rest

    def _complete_chunks(self) -> Iterator[Array]:
        if self._start_is_open:
            return
        needed = (CHUNK_FRAMES - 1) * self._frontend.hop_length + self._frontend.n_fft
        while len(self._waiting) >= needed:
            yield self._logmel._chunk(self._waiting, CHUNK_FRAMES)
            self._n_frames += CHUNK_FRAMES
            self._waiting = self._waiting[CHUNK_FRAMES * self._frontend.hop_length :]
