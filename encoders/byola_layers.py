"""Layers of a BYOL-A encoder fused: each convolution block and each linear layer, at the encoder's own rate.

In: as the encoder's. Out: frames (B, T // stride, sum of the layers' sizes).

    AudioNTT2020    #1 block 1: 2048   #2 block 2: 1024   #3 block 3: 512   #4 fc.0: d     #5 fc.3: d
    AudioNTT2022    #1 block 1: 2048   #2 block 2: 1024   #3 fc.0: 2048     #4 fc.3: 2048           (64 bands)

A block's frames are averaged in pairs until they are as few as the encoder's; of an odd number, the last two
are first averaged into one. All five of AudioNTT2020, each filled up with zeros to d = 2048, are the 10 240
numbers of its layered variant for SUPERB.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import MODULES_PER_BLOCK, frames_of_features, run_blocks
from .byola_2020 import AudioNTT2020
from .byola_2022 import AudioNTT2022
from .fusion import band_fastest, checked_layers
from .pooling import mean_max

CHANNELS = 64


class BYOLALayers(nn.Module):
    """State-dict names are those of the encoder, all of whose weights it keeps.

    `fuse`: layers counted from 1; `size`: fill each up with zeros to so many numbers.
    """

    def __init__(
        self, encoder: AudioNTT2020 | AudioNTT2022, fuse: Sequence[int], *, size: int | None = None
    ) -> None:
        super().__init__()
        self.features, self.fc = encoder.features, encoder.fc
        self.n_blocks = len(encoder.features) // MODULES_PER_BLOCK
        sizes = layer_sizes(encoder)
        self.fuse = checked_layers(fuse, sizes, name=type(encoder).__name__)
        if not self.fuse:
            raise ValueError(f"Name the layers of {type(encoder).__name__} to fuse, from 1 to {len(sizes)}.")
        if size is not None and (largest := max(sizes[number] for number in self.fuse)) > size:
            raise ValueError(f"A layer of {largest} numbers cannot be filled up to {size}.")
        self.size = size
        self.embedding_size = sum(size or sizes[number] for number in self.fuse)
        self.n_mels = encoder.n_mels
        self.frontend = encoder.frontend
        self.pooling = encoder.pooling
        self.windows = encoder.windows
        self.frame_period_ms = encoder.frame_period_ms
        self.first_frame_centre_ms = encoder.first_frame_centre_ms

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, n_mels, T) -> (B, T // stride, D). `n_frames` (B,): the valid frames of a padded batch."""
        outputs = self._outputs(x, n_frames)
        if self.size is not None:
            outputs = {k: functional.pad(y, (0, self.size - y.shape[2])) for k, y in outputs.items()}
        return torch.cat([outputs[number] for number in self.fuse], dim=2)

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames."""
        return n_frames // self.windows.stride

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D): max + mean over time."""
        return mean_max(frames)

    def _outputs(self, x: Tensor, n_frames: Tensor | None) -> dict[int, Tensor]:
        """The layers by their numbers: (B, T // stride, size)."""
        n = torch.full((len(x),), x.shape[3], device=x.device) if n_frames is None else n_frames
        outputs = {}
        for block in range(1, self.n_blocks + 1):
            modules = nn.Sequential(
                *list(self.features)[MODULES_PER_BLOCK * (block - 1) : MODULES_PER_BLOCK * block]
            )
            x, _ = run_blocks(modules, x, n_frames if n_frames is None else n)
            n = n // 2
            outputs[block] = _thinned(band_fastest(x.transpose(2, 3)), n, times=self.n_blocks - block)
        x = frames_of_features(x)
        for module in self.fc:
            x = module(x)
            if isinstance(module, nn.ReLU):
                outputs[len(outputs) + 1] = x
        return outputs


def layer_sizes(encoder: AudioNTT2020 | AudioNTT2022) -> dict[int, int]:
    """Numbers per frame of each layer, counted from 1."""
    n_blocks = len(encoder.features) // MODULES_PER_BLOCK
    sizes = [CHANNELS * (encoder.n_mels // 2**k) for k in range(1, n_blocks + 1)]
    sizes += [module.out_features for module in encoder.fc if isinstance(module, nn.Linear)]
    return dict(enumerate(sizes, start=1))


def _thinned(x: Tensor, n: Tensor, *, times: int) -> Tensor:
    """x (B, T, D), n (B,) valid frames -> (B, T // 2^times, D), averaged in pairs so many times."""
    for _ in range(times):
        x, n = averaged_in_pairs(x, n), n // 2
    return x


def averaged_in_pairs(x: Tensor, n: Tensor) -> Tensor:
    """x (B, T, D), n (B,) valid frames -> (B, T // 2, D); an odd last frame shares in the pair before it."""
    half = x.shape[1] // 2
    x = functional.pad(x, (0, 0, 0, 1))
    first, second, behind = (x[:, i : i + 2 * half : 2][:, :half] for i in range(3))
    is_last = torch.arange(half, device=x.device)[None, :] == (n // 2 - 1)[:, None]
    shares = (is_last & (n % 2 == 1)[:, None])[:, :, None]
    return (first + torch.where(shares, (second + behind) / 2, second)) / 2
