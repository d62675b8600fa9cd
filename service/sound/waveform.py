"""Samples in, the same samples in columns out: for networks that take a waveform and need no log-mel.

    samples  0 1 2 3 4 5 6 7 8 9        hop_length = 4      column 0   column 1
                                                                0          4
                                                                1          5       8 and 9 fill no column
                                                                2          6       and are left out, or
                                                                3          7       stand with NaN in a third

The NaN tells the graph, which is given the number of columns, how many samples there are: for networks that
bring a clip to mean 0, or repeat it, each of them counts.

A column stands where a log-mel has a frame, so that windows, queue and batches need not know which of the two
they hold; the graph puts the samples in a row again.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

Array = NDArray[np.float32]


class Waveform(BaseModel):
    """The card's `frontend` of such a network. hop_length: samples in a column, about 10 ms of them; rest:
    what becomes of those at a clip's end that fill none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["waveform"]
    hop_length: PositiveInt
    rest: Literal["dropped", "nan"] = "dropped"

    @property
    def n_rows(self) -> int:
        return self.hop_length

    def n_frames(self, n_samples: int) -> int:
        """The columns of a clip; 0 if it is too short for one."""
        return n_samples // self.hop_length if self.rest == "dropped" else -(-n_samples // self.hop_length)


class Columns:
    """As service/sound/logmel.py's LogMel, without any analysis."""

    def __init__(self, frontend: Waveform) -> None:
        self.frontend = frontend

    def __call__(self, waveform: Array) -> Array:
        """(n,) float32 mono in [-1, 1] -> (hop_length, T) float32. Raises ValueError where that is nothing;
        the card's `min_samples` is long enough."""
        T = self.frontend.n_frames(len(waveform))
        if T == 0:
            raise ValueError(f"{len(waveform)} samples are too few for a column")
        n_samples = T * self.frontend.hop_length
        if (missing := n_samples - len(waveform)) > 0:
            waveform = np.pad(waveform, (0, missing), constant_values=np.nan)
        whole = waveform[:n_samples].reshape(T, self.frontend.hop_length)
        return np.ascontiguousarray(whole.T, dtype=np.float32)

    def stream(self, *, min_samples: int = 0) -> "ColumnStream":
        """For a clip that comes in blocks; padded with zeros at its end up to `min_samples`."""
        return ColumnStream(self, min_samples)


class ColumnStream:
    """Blocks of samples in, blocks of columns out; together they are exactly Columns of the whole clip."""

    def __init__(self, columns: Columns, min_samples: int) -> None:
        self._columns = columns
        self._min_samples = min_samples
        self._n_samples = 0
        self._waiting = np.empty(0, dtype=np.float32)  # what fills no column yet

    def push(self, block: Array) -> Iterator[Array]:
        """(n,) samples -> the columns (hop_length, any) that are complete now, if any."""
        self.add(block)
        return iter([self.take(self.n_ready)] if self.n_ready else [])

    def add(self, block: Array) -> None:
        """(n,) samples."""
        self._n_samples += len(block)
        self._waiting = np.concatenate([self._waiting, block])

    @property
    def n_ready(self) -> int:
        """The columns that are complete and were not taken."""
        return len(self._waiting) // self._columns.frontend.hop_length

    def n_missing(self, n: int) -> int:
        """The samples without which n columns cannot be ready."""
        return max(0, n * self._columns.frontend.hop_length - len(self._waiting))

    def take(self, n: int) -> Array:
        """(hop_length, n): the next n of the columns that are ready, 1 or more."""
        n_samples = n * self._columns.frontend.hop_length
        columns = self._columns(self._waiting[:n_samples])
        self._waiting = self._waiting[n_samples:]
        return columns

    def close(self) -> Iterator[Array]:
        """The columns that the zeros fill, and the rest. Raises ValueError where that makes no column."""
        if (missing := self._min_samples - self._n_samples) > 0:
            self.add(np.zeros(missing, dtype=np.float32))
        if self.n_ready:
            yield self.take(self.n_ready)
        if self._waiting.size and self._columns.frontend.rest == "nan":
            yield self._columns(self._waiting)
            self._waiting = self._waiting[:0]
        if self._columns.frontend.n_frames(self._n_samples) == 0:
            raise ValueError(f"{self._n_samples} samples are too few for a column")
