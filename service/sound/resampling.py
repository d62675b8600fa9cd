"""Blocks of mono samples at any rate in, blocks at the model's rate out, band-limited (soxr, "HQ": 20 bits).

A resampler's filter looks at both sides of each sample. What lies outside the clip it would take for zeros,
so that a clip which begins anywhere but at zero begins with a crack. It is given the clip's mirror image:

           edge         clip ────────────►         edge
       e d c b │ a b c d e …       … v w x y z │ y x w v
       └─ mirrored, and cut off again behind the filter
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
import soxr

from service.sound.blocks import Samples

EDGE = 256  # samples of the lower rate: three times what the filter's response takes to fall below 1e-5


def resampled(blocks: Iterable[tuple[Samples, int]], sample_rate: int) -> Iterator[Samples]:
    """(samples (n,), their rate in Hz), ... -> (m,), ... at `sample_rate`. Blocks of one rate go through one
    filter, so that their borders leave no trace; where the rate changes, another begins."""
    for rate_hz, same in groupby(blocks, key=itemgetter(1)):
        of_one_rate = map(itemgetter(0), same)
        yield from of_one_rate if rate_hz == sample_rate else _resampled(of_one_rate, rate_hz, sample_rate)


def _resampled(blocks: Iterator[Samples], rate_hz: int, sample_rate: int) -> Iterator[Samples]:
    """round(n * sample_rate / rate_hz) samples of n."""
    resampler = Resampler(rate_hz, sample_rate)
    first = next(blocks)
    while len(first) <= resampler.edge and (block := next(blocks, None)) is not None:
        first = np.concatenate([first, block])
    second = next(blocks, None)
    if second is None:  # all of it, as of most clips, at a tenth less
        yield resampler.whole(first)
        return
    for block in chain([first, second], blocks):
        yield resampler.push(block)
    yield resampler.close()


class Resampler:
    """Samples in pieces (n,), of any length, at one rate in; (m,) at another out.

    edge: samples at each end that are mirrored; nothing comes out before there are more than that.
    """

    def __init__(self, rate_hz: int, sample_rate: int) -> None:
        # The edge is a whole number of samples at both rates, so that it can be cut off behind the filter.
        divisor = math.gcd(rate_hz, sample_rate)
        steps = math.ceil(EDGE * divisor / min(rate_hz, sample_rate))
        self.edge, self._to_cut = steps * rate_hz // divisor, steps * sample_rate // divisor
        self._rates = rate_hz, sample_rate
        self._stream: soxr.ResampleStream | None = None
        self._n_in, self._n_out = 0, -self._to_cut  # of the clip itself: out of it below 0 within the edge
        self._last = np.empty(0, dtype=np.float32)  # the samples that the other end's mirror will show

    def whole(self, samples: Samples) -> Samples:
        """All of a clip at once."""
        out = soxr.resample(_mirrored(samples, self.edge), *self._rates, quality="HQ")
        return out[self._to_cut : self._to_cut + _n_out(len(samples), *self._rates)]

    def push(self, block: Samples) -> Samples:
        self._n_in += len(block)
        if self._stream is None:  # what there is so far is all in `_last`
            self._last = np.concatenate([self._last, block])
            if self._n_in <= self.edge:
                return block[:0]
            self._stream = soxr.ResampleStream(*self._rates, 1, dtype="float32", quality="HQ")
            block = np.concatenate([self._last[self.edge : 0 : -1], self._last])
        elif len(block) > self.edge:
            self._last = block
        else:
            self._last = np.concatenate([self._last[-self.edge - 1 :], block])
        return self._out(self._stream.resample_chunk(np.ascontiguousarray(block)))

    def close(self) -> Samples:
        """The rest."""
        if self._stream is None:
            return self.whole(self._last) if self._n_in else self._last
        out = self._stream.resample_chunk(self._last[-2 : -self.edge - 2 : -1], last=True)
        n_left = _n_out(self._n_in, *self._rates) - self._n_out
        return out[max(0, -self._n_out) : n_left]

    def _out(self, out: Samples) -> Samples:
        begin = max(0, -self._n_out)
        self._n_out += len(out)
        return out[begin:]


def _n_out(n_in: int, rate_hz: int, sample_rate: int) -> int:
    return (2 * n_in * sample_rate + rate_hz) // (2 * rate_hz)


def _mirrored(samples: Samples, edge: int) -> Samples:
    """With its mirror image at both ends."""
    if len(samples) <= edge:
        return np.pad(samples, edge, mode="reflect")  # over and over
    return np.concatenate([samples[edge:0:-1], samples, samples[-2 : -edge - 2 : -1]])
