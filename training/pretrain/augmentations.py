"""The augmentations of BYOL-A, batched on the training device, each sample with draws of its own.

In: log-mels (B, 1, F, T), normalised by the dataset's mean and std. Out: a view of the same shape.

    log-mel ─► mixup with a past sound ─► random resize crop ─► random linear fader ─► post-normalisation
               (background changes)        (pitch, tempo)        (level rises or falls)

Source: arXiv 2103.06695 section IV-B (mixup, crop), arXiv 2204.07402 section III-A (fader).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from training.pretrain.recipe import AugmentationRecipe

EPS = torch.finfo(torch.float32).eps
CUBIC = -0.75  # the coefficient of the bicubic kernel in PyTorch's interpolate


def uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    return torch.rand(shape, device=like.device, generator=generator) * (high - low) + low


class MixupMemory:
    """The newest `size` log-mels seen, first in first out, shared by every epoch of a run."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sounds = torch.empty(0)

    def push(self, x: Tensor) -> None:
        """Append a batch (B, 1, F, T); the oldest leave."""
        kept = self.sounds if len(self.sounds) else x[:0]
        self.sounds = torch.cat([kept, x.detach()])[-self.size :]

    def draw(self, count: int, generator: Generator) -> Tensor:
        """(count, 1, F, T) drawn uniformly, with replacement."""
        index = torch.randint(len(self.sounds), (count,), device=self.sounds.device, generator=generator)
        return self.sounds[index]


def log_mixup_exp(x: Tensor, past: Tensor, ratio: Tensor) -> Tensor:
    """ln((1 - ratio) e^x + ratio e^past + eps): two sounds added in power, seen again in the log domain."""
    return torch.log((1 - ratio) * x.exp() + ratio * past.exp() + EPS)


def mixup(x: Tensor, memory: MixupMemory, alpha: float, generator: Generator) -> Tensor:
    """Each sample with a past one, at a ratio of U(0, alpha); unchanged while the memory is empty."""
    if not len(memory.sounds):
        return x
    ratio = uniform((len(x), 1, 1, 1), 0.0, alpha, x, generator)
    return log_mixup_exp(x, memory.draw(len(x), generator), ratio)


def cubic_weights(distance: Tensor) -> Tensor:
    """The bicubic kernel at |distance| <= 2 (Keys, 1981, with a = -0.75)."""
    d = distance.abs()
    near = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
    far = ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def resize_matrix(start: Tensor, length: Tensor, size: int, offset: int, out_size: int) -> Tensor:
    """One matrix (out_size, size) per sample that crops and resizes an axis, bicubic with aligned corners.

    start, length: (B,) of the crop on the virtual axis, whose positions offset .. offset + size - 1 hold the
    input and the rest zeros. Neighbours beyond the crop are its edge, repeated, as in `interpolate`.
    """
    steps = torch.arange(out_size, device=start.device, dtype=torch.float32) / max(out_size - 1, 1)
    position = steps[None, :] * (length[:, None] - 1)  # (B, out_size), within the crop
    floor = position.floor()
    matrix = position.new_zeros(len(start), out_size, size)
    for tap in (-1, 0, 1, 2):
        weight = cubic_weights(position - floor - tap)
        source = (floor + tap).long().clamp(min=0).minimum(length[:, None] - 1) + start[:, None] - offset
        inside = (source >= 0) & (source < size)
        matrix.scatter_add_(2, source.clamp(0, size - 1)[..., None], (weight * inside)[..., None])
    return matrix


@dataclass(frozen=True)
class CropDraw:
    """One random resize crop per sample, each (B,) int64, on the virtual crop area."""

    top: Tensor
    height: Tensor
    left: Tensor
    width: Tensor


def draw_crops(
    x: Tensor,
    freq_scale: tuple[float, float],
    time_scale: tuple[float, float],
    virtual_time_scale: float,
    generator: Generator,
) -> CropDraw:
    """h = int(U(freq_scale) F), w = int(U(time_scale) T), at most the area; each position equally likely."""
    B, _, F, T = x.shape
    virtual_T = int(T * virtual_time_scale)
    height = (uniform((B,), *freq_scale, x, generator) * F).long().clamp(1, F)
    width = (uniform((B,), *time_scale, x, generator) * T).long().clamp(1, virtual_T)
    top = (uniform((B,), 0, 1, x, generator) * (F - height + 1)).long()
    left = (uniform((B,), 0, 1, x, generator) * (virtual_T - width + 1)).long()
    return CropDraw(top=top, height=height, left=left, width=width)


def resize_crop(x: Tensor, crop: CropDraw, virtual_time_scale: float) -> Tensor:
    """Crop from the virtual area and resize back to (F, T).

    virtual area, T * 1.5 wide:  0000 xxxxxxxx 0000      zeros are the dataset's mean
    one crop:                      [00 xxxxxx]           as wide or narrow as was drawn
    """
    _, _, F, T = x.shape
    offset = (int(T * virtual_time_scale) - T) // 2
    freq = resize_matrix(crop.top, crop.height, F, 0, F)
    time = resize_matrix(crop.left, crop.width, T, offset, T)
    return (freq @ x[:, 0] @ time.mT)[:, None]


def linear_fader(x: Tensor, gain: float, generator: Generator) -> Tensor:
    """Add a line from U(-gain, gain) at the head to U(-gain, gain) at the tail to every band."""
    ends = uniform((2, len(x), 1, 1, 1), -gain, gain, x, generator)
    steps = torch.linspace(0, 1, x.shape[-1], device=x.device)
    return x + ends[0] + (ends[1] - ends[0]) * steps


def post_normalise(views: Tensor) -> Tensor:
    """All views of a step together to mean 0 and (unbiased) std 1."""
    return (views - views.mean()) / views.std().clamp(min=EPS)


View = Callable[[Tensor, Generator], Tensor]


def view_of(memory: MixupMemory, recipe: AugmentationRecipe) -> View:
    """The recipe's augmentation as one function: normalised log-mels (B, 1, F, T) -> one view of each."""

    def view(x: Tensor, generator: Generator) -> Tensor:
        x = mixup(x, memory, recipe.mixup_alpha, generator)
        crop = draw_crops(
            x, recipe.crop_freq_scale, recipe.crop_time_scale, recipe.virtual_time_scale, generator
        )
        x = resize_crop(x, crop, recipe.virtual_time_scale)
        return linear_fader(x, recipe.fader_gain, generator) if recipe.fader_gain else x

    return view
