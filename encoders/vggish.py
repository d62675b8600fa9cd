"""VGGish (arXiv 1609.09430), six convolutions and three linear layers per 0.96 s, and its layers fused.

In: log-mel (B, 1, 64, T) of the front-end VGGISH, not normalised, T >= 96. Out: one frame per example,
(B, T // 96, 128), or with fused layers six per example, (B, 6 * (T // 96), D), in the order of time. What
does not fill an example is left out.

    example of 96 frames x 64 bands                                   numbers, after ReLU, of arXiv 2205.08138
      conv  64 [96 x 64] ─pool─ conv 128 [48 x 32] ─pool─                #2, #5
      conv 256, conv 256 [24 x 16] ─pool─ conv 512, conv 512 [12 x 8]    #8, #10; #13, #15
      ─pool─ 6 x 4 x 512 ─ 4096 ─ 4096 ─ 128                             #18, #20, #22
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import frontend
from .blocks import frame_mask
from .fusion import band_fastest, checked_layers, highest_in_time
from .pooling import mean_max
from .windows import Windows

EXAMPLE = 96  # log-mel frames
FRAMES_PER_EXAMPLE = 6  # of the last pooling, 160 ms each
CHANNELS: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512))  # pooled after each group
FC = (4096, 4096, 128)


class VGGish(nn.Module):
    """State-dict names are those of tcvrick's port (`features.*`, `fc.*`).

    `fuse`: layers by the paper's numbers, for example (10, 15). What lies behind the last one is not built.
    """

    layers: tuple[int, ...] = (2, 5, 8, 10, 13, 15, 18, 20, 22)
    n_mels = 64
    frontend = frontend.VGGISH
    mean, std = 0.0, 1.0  # of its log-mels: taken as they are
    pooling = "mean+max"

    def __init__(self, fuse: Sequence[int] = ()) -> None:
        super().__init__()
        self.fuse = checked_layers(fuse, self.layers, name=type(self).__name__)
        last = self.fuse[-1] if fuse else self.layers[-1]
        features, sizes = _features()  # a layer's number is its module's place in `features`, then in `fc`
        self._sizes = dict(zip(self.layers, (*sizes, *FC), strict=False))  # in numbers per frame
        self.features = nn.Sequential(*list(features)[:last])
        self.fc = nn.Sequential(*list(_fc())[: max(0, last - len(features))])
        self.embedding_size = sum(self._sizes[number] for number in self.fuse or (last,))
        stride = EXAMPLE // FRAMES_PER_EXAMPLE if fuse else EXAMPLE
        self.windows = Windows("exact", stride, frames=10 * EXAMPLE, min_frames=EXAMPLE)
        self.frame_period_ms = 10.0 * stride
        self.first_frame_centre_ms = 12.5 + 10.0 * (stride - 1) / 2  # a log-mel frame lasts 25 ms

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, 64, T) -> (B, frames, D). `n_frames` (B,): the valid frames of a padded batch."""
        B, _, F, T = x.shape
        if n_frames is not None:
            x = torch.where(frame_mask(n_frames, T)[:, None, None, :], x, x.new_zeros(()))
        E = T // EXAMPLE
        outputs = self._outputs(x[..., : E * EXAMPLE].transpose(2, 3).reshape(B * E, 1, EXAMPLE, F))
        if not self.fuse:
            return outputs[self.layers[-1]].reshape(B, E, self.embedding_size)
        fused = torch.cat([_aligned(outputs[number]) for number in self.fuse], dim=2)
        return fused.reshape(B, E * FRAMES_PER_EXAMPLE, self.embedding_size)

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames."""
        return n_frames // EXAMPLE * (FRAMES_PER_EXAMPLE if self.fuse else 1)

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D): max + mean over the frames of all examples."""
        return mean_max(frames)

    def _outputs(self, x: Tensor) -> dict[int, Tensor]:
        """(N, 1, 96, 64) -> each layer's output by its number: (N, C, T, F), or (N, size) of linear ones."""
        outputs = {}
        for number, module in enumerate(self.features, start=1):
            outputs[number] = x = module(x)
        if self.fc:
            x = x.permute(0, 2, 3, 1).flatten(start_dim=1)  # (t * 4 + f) * 512 + c
        for number, module in enumerate(self.fc, start=len(self.features) + 1):
            outputs[number] = x = module(x)
        return outputs


class VGGish4K(VGGish):
    """VGGish without its last two linear layers: 4096 numbers per example."""

    layers = (2, 5, 8, 10, 13, 15, 18)


def _features() -> tuple[nn.Sequential, list[int]]:
    """The convolutions, and the size of each one's output per frame of 160 ms once flattened."""
    modules: list[nn.Module] = []
    sizes = []
    in_channels, bands = 1, 64
    for group in CHANNELS:
        for channels in group:
            modules += [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), nn.ReLU()]
            sizes.append(channels * bands)
            in_channels = channels
        modules.append(nn.MaxPool2d(2))
        bands //= 2
    return nn.Sequential(*modules), sizes


def _fc() -> nn.Sequential:
    modules: list[nn.Module] = []
    inputs = FRAMES_PER_EXAMPLE * 4 * CHANNELS[-1][-1]
    for outputs in FC:
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*modules)


def _aligned(x: Tensor) -> Tensor:
    """A layer's output -> (N, 6, size): a convolution's is pooled over time, a linear layer's repeated."""
    if x.dim() == 2:
        return x[:, None].expand(-1, FRAMES_PER_EXAMPLE, -1)
    return band_fastest(highest_in_time(x, x.shape[2] // FRAMES_PER_EXAMPLE))
