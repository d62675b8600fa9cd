"""The convolution block of the BYOL-A encoders, and the masks that keep padding out of every result.

In: a normalised log-mel (B, 1, F, T). Out: features (B, C, F / 2^blocks, T / 2^blocks).
Source: arXiv 2103.06695, section IV (AudioNTT2020) and arXiv 2204.07402, section III-B (AudioNTT2022).
"""

import torch
from torch import Tensor, nn

MODULES_PER_BLOCK = 4  # convolution, normalisation, activation, pooling


def conv_block(in_channels: int, channels: int) -> list[nn.Module]:
    """(B, in_channels, F, T) -> (B, channels, F // 2, T // 2)."""
    return [
        nn.Conv2d(in_channels, channels, kernel_size=3, stride=1, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=2),
    ]


def frame_mask(n_valid: Tensor, length: int) -> Tensor:
    """(B,) valid frames -> (B, length) bool, true where a frame belongs to the clip."""
    return torch.arange(length, device=n_valid.device)[None, :] < n_valid[:, None]


def run_blocks(features: nn.Sequential, x: Tensor, n_frames: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Pass x (B, C, F, T) through every block; returns the features and each item's valid output frames.

    With `n_frames` (B,), what lies beyond an item's own frames is set to zero before each convolution: that
    is what the convolution's zero padding would show at the end of the clip alone, so an item's features
    do not depend on how far its batch was padded.
    """
    for start in range(0, len(features), MODULES_PER_BLOCK):
        if n_frames is not None:
            # where, not a product: whatever stands in the padding, NaN included, must not pass
            x = torch.where(frame_mask(n_frames, x.shape[-1])[:, None, None, :], x, x.new_zeros(()))
            n_frames = n_frames // 2
        x = features[start : start + MODULES_PER_BLOCK](x)
    return x, n_frames


def frames_of_features(x: Tensor) -> Tensor:
    """(B, C, F, T) -> (B, T, F * C): index f * C + c, the channel changes fastest."""
    return x.permute(0, 3, 2, 1).flatten(start_dim=2)
