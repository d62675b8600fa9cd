"""AudioNTT2020, the encoder of BYOL-A v1 (arXiv 2103.06695): three convolution blocks and an MLP per frame.

In: normalised log-mel (B, 1, 64, T), T >= 8. Out: frame embeddings (B, T // 8, d), one per 80 ms.
"""

from torch import Tensor, nn

from .blocks import conv_block, frames_of_features, run_blocks
from .frontend import frontend_of
from .pooling import mean_max
from .windows import Windows

CHANNELS = 64


class AudioNTT2020(nn.Module):
    """d = 512, 1024 or 2048. State-dict names are those of the published files (`features.*`, `fc.*`)."""

    stride = 8  # log-mel frames per output frame
    context = 1  # output frames at a cut whose receptive field reaches over it: 7 log-mel frames
    windows = Windows("exact", stride, context, min_frames=stride)
    pooling = "mean+max"
    frame_period_ms = 80.0
    first_frame_centre_ms = 35.0  # the middle of log-mel frames 0 to 7, 10 ms apart

    def __init__(self, n_mels: int = 64, d: int = 2048) -> None:
        super().__init__()
        self.n_mels = n_mels
        self.frontend = frontend_of(n_mels)
        self.embedding_size = d
        self.features = nn.Sequential(
            *conv_block(1, CHANNELS), *conv_block(CHANNELS, CHANNELS), *conv_block(CHANNELS, CHANNELS)
        )
        self.fc = nn.Sequential(
            nn.Linear(CHANNELS * (n_mels // 8), d),
            nn.ReLU(),
            nn.Dropout(p=0.3),
            nn.Linear(d, d),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, n_mels, T) -> (B, T // 8, d). `n_frames` (B,): the valid frames of a padded batch."""
        x, _ = run_blocks(self.features, x, n_frames)
        embeddings: Tensor = self.fc(frames_of_features(x))
        return embeddings

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames."""
        return n_frames // self.stride

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, T', d) -> (B, d): max + mean over time."""
        return mean_max(frames)
