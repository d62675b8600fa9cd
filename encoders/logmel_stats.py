"""The log-mel's own statistics as an encoder: the baseline that every network has to beat.

In: log-mel (B, 1, F, T) of BYOL-A's front-end, not normalised. Out: one vector for all of it, (B, 1, 3 F):
each band's mean, then each one's deviation, then each one's maximum over time. Nothing is trained.
"""

import torch
from torch import Tensor, nn

from .blocks import frame_mask
from .frontend import frontend_of
from .windows import Windows


class LogMelStats(nn.Module):
    mean, std = 0.0, 1.0  # of its log-mels: taken as they are
    pooling = "mean"  # of the windows
    windows = Windows("independent", stride=1, frames=1000)
    frame_period_ms = 10_000.0
    first_frame_centre_ms = 10.0 * (1000 - 1) / 2

    def __init__(self, n_mels: int = 64) -> None:
        super().__init__()
        self.n_mels = n_mels
        self.frontend = frontend_of(n_mels)
        self.embedding_size = 3 * n_mels

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, n_mels, T) -> (B, 1, 3 * n_mels). `n_frames` (B,): the valid frames of a padded batch."""
        x = x[:, 0]
        if n_frames is None:
            n_frames = torch.full((len(x),), x.shape[2], device=x.device)
        n = n_frames[:, None]
        valid = frame_mask(n_frames, x.shape[2])[:, None, :]
        zero, lowest = x.new_zeros(()), x.new_full((), torch.finfo(x.dtype).min)
        mean = torch.where(valid, x, zero).sum(dim=2) / n
        variance = torch.where(valid, x - mean[:, :, None], zero).square().sum(dim=2) / n
        highest = torch.where(valid, x, lowest).amax(dim=2)
        return torch.cat([mean, variance.sqrt(), highest], dim=1)[:, None]

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames: one."""
        return (n_frames >= 1).to(n_frames.dtype)

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, windows, D) -> (B, D): their mean."""
        return frames.mean(dim=1)
