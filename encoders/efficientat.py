"""EfficientAT (arXiv 2211.04772): MobileNetV3-Large taught AudioSet's tags by transformers; its blocks fused.

In: normalised log-mel (B, 1, 128, T) of the front-end EFFICIENTAT. Out: one frame per 320 ms, (B, T / 32, D),
T / 32 rounded up: the last features in the mean over mels. Their mean over time is the plain embedding, which
the published head reads. With fused blocks one frame per frame of the finest of them.

    stem 16w ─ blocks 1 … 15, all channels times the width w ─ 16: a 1 x 1 convolution to 6 x 160w
    mels   64   64  32 32  16 16 16   8  8  8  8   8   8    4   4   4    4     of 128
    every  2    2   4  4   8  8  8   16 16 16 16  16  16   32  32  32   32     log-mel frames
                             S  S  S                  S  S   S   S   S          squeeze-excite

    a block    expansion 1 x 1 ─ depthwise k x k, strided ─ squeeze-excite ─ projection 1 x 1 ─(+ its input)

Squeeze-excite weighs a block's channels by their mean over all of its input: a frame hears the whole window.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import frontend
from .ast import N_CLASSES
from .blocks import frame_mask
from .fusion import checked_layers
from .pooling import mean_max
from .windows import Windows

STRIDE = 32  # log-mel frames per frame of the last block
# AudioSet's clips, which it was trained with, have 1000 log-mel frames: what squeeze-excite averages over is
# then what it knows. The next multiple of STRIDE keeps the frames of a long clip on one grid.
LONGEST = 1024
STEM = 16  # channels, before the width
HIDDEN = 1280  # of the tags, before the width

# x (B, C, F, T), and which of its frames belong to the clip, (B, 1, 1, T) bool; None: all.
WithValid = tuple[Tensor, Tensor | None]


class Layer(NamedTuple):
    """Channels at width 1; squeeze-excites: has it one; smooth: Hardswish instead of ReLU."""

    kernel: int
    expanded: int
    channels: int
    squeeze_excites: bool
    smooth: bool
    stride: int


LAYERS = (  # MobileNetV3-Large, arXiv 1905.02244, table 1
    Layer(3, 16, 16, False, False, 1),
    Layer(3, 64, 24, False, False, 2),
    Layer(3, 72, 24, False, False, 1),
    Layer(5, 72, 40, True, False, 2),
    Layer(5, 120, 40, True, False, 1),
    Layer(5, 120, 40, True, False, 1),
    Layer(3, 240, 80, False, True, 2),
    Layer(3, 200, 80, False, True, 1),
    Layer(3, 184, 80, False, True, 1),
    Layer(3, 184, 80, False, True, 1),
    Layer(3, 480, 112, True, True, 1),
    Layer(3, 672, 112, True, True, 1),
    Layer(5, 672, 160, True, True, 2),
    Layer(5, 960, 160, True, True, 1),
    Layer(5, 960, 160, True, True, 1),
)

# Log-mel frames per frame of the stem, of each block and of the last convolution; bands per band, too.
EVERY = tuple(accumulate((2, *(layer.stride for layer in LAYERS), 1), mul))


class EfficientAT(nn.Module):
    """State-dict names are those of the published files, but for `conc_se_layers.0.`.

    width: 0.4 of mn04, 1.0 of mn10. `fuse`: blocks counted from 1, 16 being the last convolution, for example
    (9, 15). What lies behind the last of them is not built.
    """

    layers = tuple(range(1, len(LAYERS) + 2))
    n_mels = 128
    # Masks would take as long as its convolutions, and onnxruntime its channels out of their blocks for each.
    batching: Literal["padded", "equal"] = "equal"
    frontend = frontend.EFFICIENTAT
    mean, std = -4.5, 5.0  # of the published files: (x + 4.5) / 5

    def __init__(self, width: float = 1.0, fuse: Sequence[int] = ()) -> None:
        super().__init__()
        self.width = width
        self.fuse = checked_layers(fuse, self.layers, name="efficientat")
        channels = channels_of(width)
        features: list[nn.Module] = [ConvNorm(1, channels[0], kernel=3, stride=2, smooth=True)]
        features += [
            InvertedResidual(in_channels, layer, width)
            for in_channels, layer in zip(channels, LAYERS, strict=False)
        ]
        features.append(ConvNorm(channels[-2], channels[-1], smooth=True))
        self.features = nn.ModuleList(features[: self.fuse[-1] + 1] if fuse else features)
        if fuse:
            self.embedding_size = sum(map_sizes(width)[k] for k in self.fuse)
            self.pooling = "mean+max"
            self.stride = EVERY[self.fuse[0]]  # the finest comes first
        else:
            self.embedding_size = channels[-1]
            self.pooling = "mean"
            self.stride = STRIDE
        self.windows = Windows("independent", self.stride, frames=LONGEST, min_frames=STRIDE)
        self.frame_period_ms = 10.0 * self.stride
        self.first_frame_centre_ms = 0.0  # every stride keeps the first of two frames

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, 128, T) -> (B, frames, D). `n_frames` (B,): the valid frames of a padded batch."""
        return self._frames(self._outputs(x, n_frames))

    def with_maps(self, x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """x (B, 1, 128, T) -> the frames, and of each of these blocks its own, (B, T / EVERY, numbers)."""
        outputs = self._outputs(x, None)
        return self._frames(outputs), [_repeated(outputs[block], 1) for block in blocks]

    def _frames(self, outputs: dict[int, Tensor]) -> Tensor:
        if not self.fuse:
            return outputs[self.layers[-1]].mean(dim=2).transpose(1, 2)
        repeated = [_repeated(outputs[k], EVERY[k] // self.stride) for k in self.fuse]
        frames = outputs[self.fuse[0]].shape[3]
        return torch.cat([each[:, :frames] for each in repeated], dim=2)

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames."""
        return (n_frames + self.stride - 1) // self.stride

    def pool(self, frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D): the mean over time, of fused blocks max + mean."""
        return mean_max(frames) if self.fuse else frames.mean(dim=1)

    def _outputs(self, x: Tensor, n_frames: Tensor | None) -> dict[int, Tensor]:
        """Each block's output by its number, that of the stem by 0: (B, C, F, T)."""
        valid = None if n_frames is None else frame_mask(n_frames, x.shape[3])[:, None, None, :]
        outputs = {}
        for number, block in enumerate(self.features):
            x, valid = block(x, valid)
            outputs[number] = x
        return outputs


class EfficientATTags(nn.Module):
    """The published head: a plain embedding (…, D) -> (…, 527) logits; their sigmoids are AudioSet's tags."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels_of(width)[-1], scaled(HIDDEN, width))
        self.linear = nn.Linear(scaled(HIDDEN, width), N_CLASSES)

    def forward(self, embedding: Tensor) -> Tensor:
        hidden = functional.hardswish(self.hidden(embedding))
        logits: Tensor = self.linear(functional.dropout(hidden, p=0.2, training=self.training))
        return logits


class ConvNorm(nn.Sequential):
    """Convolution, normalisation and activation: ReLU, Hardswish where it is smooth, or none."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        smooth: bool | None = None,
    ) -> None:
        convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        parts: list[nn.Module] = [convolution, nn.BatchNorm2d(channels, eps=0.001)]
        if smooth is not None:
            parts.append(nn.Hardswish() if smooth else nn.ReLU())
        super().__init__(*parts)
        self._sees_neighbours = kernel > 1
        self._stride = stride

    def forward(self, x: Tensor, valid: Tensor | None) -> WithValid:  # type: ignore[override]
        """What lies beyond the clip is zero for it, as its own padding would be."""
        if valid is not None and self._sees_neighbours:
            x = torch.where(valid, x, x.new_zeros(()))  # not a product: NaN in the padding must not pass
            valid = valid[..., :: self._stride]  # the last frame begins inside the clip
        return super().forward(x), valid


class SqueezeExcite(nn.Module):
    """Each channel times a weight between 0 and 1, which all channels' means over mels and time decide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible_by_8(channels / 4)
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor, valid: Tensor | None) -> WithValid:
        if valid is None:
            mean = functional.adaptive_avg_pool2d(x, 1)[..., 0, 0]
        else:
            means = x.mean(dim=2)  # (B, C, T)
            own = torch.where(valid[:, 0], means, x.new_zeros(()))
            count = valid[:, 0].sum(dim=2, keepdim=True).to(x.dtype)
            mean = (own / count).sum(dim=2)  # in this order, because 16 bits might not hold the sum
        weights = torch.sigmoid(self.fc2(functional.relu(self.fc1(mean))))
        return x * weights[:, :, None, None], valid


class InvertedResidual(nn.Module):
    """(B, in_channels, F, T) -> (B, channels, F / stride, T / stride), rounded up."""

    def __init__(self, in_channels: int, layer: Layer, width: float) -> None:
        super().__init__()
        expanded, channels = scaled(layer.expanded, width), scaled(layer.channels, width)
        parts: list[nn.Module] = []
        if expanded != in_channels:
            parts.append(ConvNorm(in_channels, expanded, smooth=layer.smooth))
        depthwise = {"kernel": layer.kernel, "stride": layer.stride, "groups": expanded}
        parts.append(ConvNorm(expanded, expanded, **depthwise, smooth=layer.smooth))
        if layer.squeeze_excites:
            parts.append(SqueezeExcite(expanded))
        parts.append(ConvNorm(expanded, channels))
        self.block = nn.ModuleList(parts)
        self._adds = layer.stride == 1 and in_channels == channels

    def forward(self, x: Tensor, valid: Tensor | None) -> WithValid:
        y = x
        for part in self.block:
            y, valid = part(y, valid)
        return (x + y if self._adds else y), valid


def channels_of(width: float) -> tuple[int, ...]:
    """Of the stem's output, of each block's, and of the last convolution's, six times those before it."""
    before = [scaled(STEM, width), *(scaled(layer.channels, width) for layer in LAYERS)]
    return (*before, 6 * before[-1])


def map_sizes(width: float) -> tuple[int, ...]:
    """The numbers of a frame, channels times bands, of the stem, each block and the last convolution."""
    bands = (EfficientAT.n_mels // every for every in EVERY)
    return tuple(map(mul, channels_of(width), bands))


def scaled(channels: int, width: float) -> int:
    """So many channels, times the width."""
    return divisible_by_8(channels * width)


def divisible_by_8(value: float) -> int:
    """The nearest multiple of 8, at least 8, and the next one where that loses more than a tenth."""
    nearest = max(8, int(value + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * value else nearest


def _repeated(x: Tensor, times: int) -> Tensor:
    """(B, C, F, T) -> (B, times * T, C * F), index c * F + f: each frame stands for so many finer ones."""
    frames = x.permute(0, 3, 1, 2).flatten(start_dim=2)
    return frames if times == 1 else frames[:, :, None].expand(-1, -1, times, -1).flatten(1, 2)
