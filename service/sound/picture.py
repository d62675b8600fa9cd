"""A clip's log-mel in, a picture of it out: at most so many columns, one byte a pixel.

    blocks (n_mels, T) ─► mean over 1, 2, 4 … frames a column ─► pixels (n_mels, columns) uint8

The number of frames is known only at the end of a clip. So columns are merged in pairs whenever there are
twice as many as asked for: an hour takes no more memory than a minute.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """pixels: (n_mels, columns) uint8, the lowest band first; 0 is `low`, 255 is `high`, in log-mel units."""

    pixels: NDArray[np.uint8]
    low: float
    high: float
    frames_per_column: int

    def content(self) -> dict[str, Any]:
        """For a JSON answer. pixels: base64, band after band."""
        n_mels, columns = self.pixels.shape
        return {
            "n_mels": n_mels,
            "columns": columns,
            "frames_per_column": self.frames_per_column,
            "low": self.low,
            "high": self.high,
            "pixels": base64.b64encode(self.pixels.tobytes()).decode("ascii"),
        }


class Drawing:
    """A picture that grows with every block of a clip's log-mel."""

    def __init__(self, n_mels: int, *, columns: int) -> None:
        self._most_columns = columns
        self._frames_per_column = 1
        self._columns = np.empty((n_mels, 0), np.float32)  # those that are whole
        self._rest = np.empty((n_mels, 0), np.float32)  # frames of the next one

    def add(self, block: Array) -> None:
        """The next log-mel frames (n_mels, T)."""
        frames = np.concatenate([self._rest, block], axis=1)
        more, self._rest = _columns_of(frames, self._frames_per_column)
        self._columns = np.concatenate([self._columns, more], axis=1)
        while self._columns.shape[1] > 2 * self._most_columns:
            self._halve()

    def picture(self) -> Picture:
        """Of all that was added, which must be one frame at least."""
        means, frames_per_column = self._columns, self._frames_per_column
        if self._rest.shape[1]:
            means = np.concatenate([means, self._rest.mean(axis=1, keepdims=True)], axis=1)
        if means.shape[1] > self._most_columns:
            odd = means[:, means.shape[1] // 2 * 2 :]
            means = np.concatenate([_columns_of(means, 2)[0], odd], axis=1)[:, : self._most_columns]
            frames_per_column *= 2
        low, high = float(means.min()), float(means.max())
        pixels = np.rint((means - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
        return Picture(pixels, low, high, frames_per_column)

    def _halve(self) -> None:
        """Two columns become one. An odd one waits for its other half, as so many frames of its mean."""
        if self._columns.shape[1] % 2:
            last = np.repeat(self._columns[:, -1:], self._frames_per_column, axis=1)
            self._columns, self._rest = self._columns[:, :-1], np.concatenate([last, self._rest], axis=1)
        self._columns = _columns_of(self._columns, 2)[0]
        self._frames_per_column *= 2


def _columns_of(frames: Array, per_column: int) -> tuple[Array, Array]:
    """(n_mels, T) -> means (n_mels, T // per_column) and the frames that are left over."""
    n_mels, T = frames.shape
    whole = T // per_column * per_column
    means = frames[:, :whole].reshape(n_mels, -1, per_column).mean(axis=2)
    return np.asarray(means, dtype=np.float32), frames[:, whole:]
