"""Samples in, how loud they are at their loudest, tenth by tenth of a second, out.

For a sound as a whole, or from one second to another, it tells whether there is anything to hear at all.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

STEP_S = 0.1
SILENT = 10 ** (-70 / 20)  # of full scale: 16 bits end at -90 dB, a bad microphone's own noise lies at -60


class Levels:
    """Fed by `listen`. It holds ten numbers a second."""

    def __init__(self, sample_rate: int) -> None:
        self._step = round(STEP_S * sample_rate)
        self._rest: Array = np.zeros(0, np.float32)
        self._peaks: list[Array] = []

    def listen(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """The blocks (n,) of a sound, each as it is."""
        for block in blocks:
            self._add(block)
            yield block

    def peak(self, start_s: float = 0.0, end_s: float = float("inf")) -> float:
        """The largest absolute value there, to a tenth of a second; 0 where there are no samples."""
        peaks = [*self._peaks, np.abs(self._rest).max(keepdims=True)] if len(self._rest) else self._peaks
        if not peaks:
            return 0.0
        all_of_them = np.concatenate(peaks)
        first = int(start_s / STEP_S)
        last = len(all_of_them) if end_s == float("inf") else max(first + 1, round(end_s / STEP_S))
        return float(all_of_them[first:last].max(initial=0.0))

    def _add(self, block: Array) -> None:
        samples = np.concatenate([self._rest, block]) if len(self._rest) else block
        whole = len(samples) // self._step * self._step
        if whole:
            self._peaks.append(np.abs(samples[:whole]).reshape(-1, self._step).max(axis=1))
        self._rest = samples[whole:].copy()
