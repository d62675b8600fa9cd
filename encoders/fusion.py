"""Layers of one network side by side: a middle one hears pitch and voice, a late one what makes the sound.

    layer  ─pool over time to one rate─► (B, C, T', F) ─flatten─► (B, T', C * F) ─┐
    layer  ─ …                                                                   ─┴─► (B, T', sum of sizes)

Source: arXiv 2205.08138. Layers are counted from 1, as in the paper, and concatenated in their order in the
network. Unlike the frames of BYOL-A itself, a fused layer is flattened with the band changing fastest.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.nn import functional as F


def checked_layers(fuse: Sequence[int], known: Iterable[int], *, name: str) -> tuple[int, ...]:
    """The layers to fuse in the network's order. Raises ValueError for one that cannot be."""
    numbers = sorted(known)
    wrong = sorted(set(fuse) - set(numbers))
    if wrong:
        raise ValueError(
            f"{name} has no layer {', '.join(map(str, wrong))} to fuse, only {', '.join(map(str, numbers))}."
        )
    if len(set(fuse)) < len(fuse):
        raise ValueError(f"A layer of {name} is named twice in {', '.join(map(str, fuse))}.")
    return tuple(sorted(fuse))


def highest_in_time(x: Tensor, stride: int) -> Tensor:
    """(B, C, T, F) -> (B, C, T // stride, F): the maximum over `stride` frames at a time."""
    return x if stride == 1 else F.max_pool2d(x, (stride, 1))


def band_fastest(x: Tensor) -> Tensor:
    """(B, C, T, F) -> (B, T, C * F): index c * F + f."""
    return x.transpose(1, 2).flatten(start_dim=2)
