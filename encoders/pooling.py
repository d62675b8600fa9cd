"""From frame embeddings to one clip embedding.

Sums, maxima and counts are what windows of a long clip can share: sum the sums, take the maximum of the
maxima, and the pooled vector is that of the whole clip (arXiv 2204.07402, section III-B: mean + max).
"""

import torch
from torch import Tensor

from .blocks import frame_mask


def mean_max(frames: Tensor) -> Tensor:
    """(B, T, D) -> (B, D): temporal mean plus temporal maximum, element by element."""
    return frames.mean(dim=1) + frames.amax(dim=1)


def sum_max(frames: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D) and the valid frames (B,) -> sum (B, D) and max (B, D) over the valid frames alone."""
    valid = frame_mask(count, frames.shape[1])[:, :, None]
    zero, lowest = frames.new_zeros(()), frames.new_full((), torch.finfo(frames.dtype).min)
    return torch.where(valid, frames, zero).sum(dim=1), torch.where(valid, frames, lowest).amax(dim=1)
