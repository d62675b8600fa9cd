"""AudioNTT2022, the encoder of BYOL-A v2 (arXiv 2204.07402): two convolution blocks, an MLP per frame, and
the convolution's own features beside the MLP's.

In: normalised log-mel (B, 1, 64, T), T >= 4. Out: frame embeddings (B, T // 4, d), one per 40 ms.
"""

import torch
from torch import Tensor, nn

from .blocks import conv_block, frames_of_features, run_blocks
from .frontend import frontend_of
from .pooling import mean_max
from .windows import Windows

CHANNELS = 64


class AudioNTT2022(nn.Module):
    """d = 3072: 1024 of the convolutions, then 2048 of the MLP.

    State-dict names are those of the published file (`features.*`, `fc.*`), whose name says d2048: that is
    `mlp_hidden_d`, not the size of the embedding.
    """

    stride = 4  # log-mel frames per output frame
    context = 1  # output frames at a cut whose receptive field reaches over it: 3 log-mel frames
    windows = Windows("exact", stride, context, min_frames=stride)
    pooling = "mean+max"
    frame_period_ms = 40.0
    first_frame_centre_ms = 15.0  # the middle of log-mel frames 0 to 3, 10 ms apart

    def __init__(self, n_mels: int = 64, d: int = 3072, mlp_hidden_d: int = 2048) -> None:
        super().__init__()
        conv_d = CHANNELS * (n_mels // 4)
        if d <= conv_d:
            raise ValueError(f"d = {d} leaves nothing for the MLP: the convolutions alone give {conv_d}.")
        self.n_mels = n_mels
        self.frontend = frontend_of(n_mels)
        self.embedding_size = d
        self.features = nn.Sequential(*conv_block(1, CHANNELS), *conv_block(CHANNELS, CHANNELS))
        self.fc = nn.Sequential(
            nn.Linear(conv_d, mlp_hidden_d),
            nn.ReLU(),
            nn.Dropout(p=0.3),
            nn.Linear(mlp_hidden_d, d - conv_d),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, n_mels, T) -> (B, T // 4, d). `n_frames` (B,): the valid frames of a padded batch."""
        x, _ = run_blocks(self.features, x, n_frames)
        conv_frames = frames_of_features(x)
        return torch.cat([conv_frames, self.fc(conv_frames)], dim=-1)

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames."""
        return n_frames // self.stride

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, T', d) -> (B, d): max + mean over time."""
        return mean_max(frames)
