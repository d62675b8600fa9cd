"""Samples in, power in mel bands out, inside the graph: for extractors that clamp or repeat a whole clip.

    samples (B, n) ─reflected at both ends─► frames of n_fft every hop, times a Hann window
                   ─convolution with sines and cosines─► power (B, bins, 1 + n // hop) ─filters─► n_mels

In float32 whatever the weights of the network are: a power may be 1e-10 of another.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


class MelSpectrogram:
    """filters: (n_fft // 2 + 1, n_mels). No torch module: its tables stay whole in float16."""

    def __init__(self, filters: NDArray[np.floating], *, n_fft: int, hop_length: int) -> None:
        n = np.arange(n_fft)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
        angles = 2 * np.pi * np.arange(n_fft // 2 + 1)[:, None] * n / n_fft
        waves = np.concatenate([np.cos(angles), np.sin(angles)]) * window
        self.n_fft, self.hop_length = n_fft, hop_length
        self._waves = torch.from_numpy(waves[:, None].astype(np.float32))  # (2 bins, 1, n_fft)
        self._filters = torch.from_numpy(filters.T.astype(np.float32).copy())  # (n_mels, bins)

    def __call__(self, samples: Tensor) -> Tensor:
        """(B, n) float32 -> (B, n_mels, 1 + n // hop_length)."""
        half = self.n_fft // 2
        padded = functional.pad(samples[:, None], (half, half), mode="reflect")
        parts = functional.conv1d(padded, self._waves, stride=self.hop_length).square()
        real, imaginary = parts.chunk(2, dim=1)
        return self._filters @ (real + imaginary)
