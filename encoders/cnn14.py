"""CNN14 of PANNs (arXiv 1912.10211) at 16 kHz: six blocks of two convolutions; its blocks fused.

In: log-mel (B, 1, 64, T) of the front-end CNN14, in decibel, not normalised (bn0 does it), T >= 32.
Out: one vector for all of it, (B, 1, 2048), after the linear layer that follows the pooling over time; with
fused blocks one frame per 320 ms, (B, T // 32, D).

    bn0 ─ block 1: 64 ─ 2: 128 ─ 3: 256 ─ 4: 512 ─ 5: 1024 ─ 6: 2048 channels ─ mean over bands
          each pools 2 x 2 ...............................   not this      ─ max + mean over time ─ fc1 ─ ReLU
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import frontend
from .blocks import frame_mask
from .fusion import band_fastest, checked_layers, highest_in_time
from .pooling import mean_max, sum_max
from .windows import Windows

CHANNELS = (64, 128, 256, 512, 1024, 2048)
BANDS_AFTER = (32, 16, 8, 4, 2, 2)
STRIDE = 32  # log-mel frames per frame of the last block


class ConvBlock(nn.Module):
    """(B, C, T, F) -> (B, channels, T // 2, F // 2), or (B, channels, T, F) without pooling."""

    def __init__(self, in_channels: int, channels: int, *, pools: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.pools = pools

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """`n_frames` (B,): what lies beyond is zero for each convolution, as its own padding would be."""
        x = functional.relu(self.bn1(self.conv1(only_valid(x, n_frames))))
        x = functional.relu(self.bn2(self.conv2(only_valid(x, n_frames))))
        x = functional.avg_pool2d(x, 2) if self.pools else x
        return functional.dropout(x, p=0.2, training=self.training)


class CNN14(nn.Module):
    """State-dict names are those of the published file.

    `fuse`: blocks counted from 1, for example (3, 6). What lies behind the last of them is not built.
    """

    layers = (1, 2, 3, 4, 5, 6)
    n_mels = 64
    frontend = frontend.CNN14
    mean, std = 0.0, 1.0  # of its log-mels: bn0 normalises them

    def __init__(self, fuse: Sequence[int] = ()) -> None:
        super().__init__()
        self.fuse = checked_layers(fuse, self.layers, name="cnn14")
        self.n_blocks = self.fuse[-1] if fuse else len(CHANNELS)
        self.bn0 = nn.BatchNorm2d(self.n_mels)
        for k in range(1, self.n_blocks + 1):
            in_channels = CHANNELS[k - 2] if k > 1 else 1
            self.add_module(f"conv_block{k}", ConvBlock(in_channels, CHANNELS[k - 1], pools=k < 6))
        if fuse:
            self.embedding_size = sum(CHANNELS[k - 1] * BANDS_AFTER[k - 1] for k in self.fuse)
            self.pooling = "mean+max"
            # Two convolutions per block reach 2 * (1 + 2 + … + 2^(k-1)) log-mel frames to either side.
            reach = 2 * (2**self.n_blocks - 1)
            self.windows = Windows(
                "exact", STRIDE, context=-(-reach // STRIDE), frames=64 * STRIDE, min_frames=STRIDE
            )
        else:
            self.embedding_size = CHANNELS[-1]
            self.fc1 = nn.Linear(CHANNELS[-1], CHANNELS[-1])
            self.pooling = "mean"  # of the windows: each one has its maximum inside already
            self.windows = Windows("independent", STRIDE, frames=32 * STRIDE, min_frames=STRIDE)
        period = STRIDE if fuse else self.windows.frames
        self.frame_period_ms = 10.0 * period
        self.first_frame_centre_ms = 10.0 * (period - 1) / 2

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, 64, T) -> (B, frames, D). `n_frames` (B,): the valid frames of a padded batch."""
        outputs = self._outputs(x, n_frames)
        if self.fuse:
            # All are halved once more for each pooling block behind them, up to the fifth.
            return torch.cat(
                [band_fastest(highest_in_time(outputs[k], 2 ** max(0, 5 - k))) for k in self.fuse], dim=2
            )
        features = outputs[6].mean(dim=3).transpose(1, 2)  # (B, T // 32, 2048)
        if n_frames is None:
            pooled = mean_max(features)
        else:
            total, highest = sum_max(features, n_frames // STRIDE)
            pooled = total / (n_frames // STRIDE)[:, None] + highest
        pooled = functional.dropout(pooled, p=0.5, training=self.training)
        return functional.relu(self.fc1(pooled))[:, None]

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames."""
        return n_frames // STRIDE if self.fuse else (n_frames >= STRIDE).to(n_frames.dtype)

    def pool(self, frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D): max + mean over time of fused frames, the mean of windows otherwise."""
        return mean_max(frames) if self.fuse else frames.mean(dim=1)

    def _outputs(self, x: Tensor, n_frames: Tensor | None) -> dict[int, Tensor]:
        """Each block's output by its number: (B, C, T // 2^k, F // 2^k), the last (B, 2048, T // 32, 2)."""
        x = self.bn0(x.transpose(1, 2)).permute(0, 2, 3, 1)  # the band as channel, then (B, 1, T, F)
        outputs = {}
        for k in range(1, self.n_blocks + 1):
            outputs[k] = x = self.get_submodule(f"conv_block{k}")(x, n_frames)
            if n_frames is not None and k < 6:
                n_frames = n_frames // 2
        return outputs


def only_valid(x: Tensor, n_frames: Tensor | None) -> Tensor:
    """x (B, C, T, F), zero where a frame lies beyond its clip."""
    if n_frames is None:
        return x
    # where, not a product: whatever stands in the padding, NaN included, must not pass
    return torch.where(frame_mask(n_frames, x.shape[2])[:, None, :, None], x, x.new_zeros(()))
