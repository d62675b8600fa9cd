"""MSM-MAE (arXiv 2204.12260), the encoder of a masked autoencoder of log-mels.

In: normalised log-mel (B, 1, 80, T) of the front-end MSM_MAE. Out: frames (B, ceil(T / 16), 5 width), one per
160 ms: the patches of its five bands side by side, 3840 numbers in the published width of 768.

    log-mel     [ unit: 208 or 512 frames ][ unit ][ the last one |0 0 0]     each unit is embedded alone;
    patches       5 bands x 13 or 32                                          filled up with zeros, and the
    frames      [ 0  1  2 …  12 ][ 13 … 25 ][ 26 27 28 |     ]                frames of zeros alone dropped
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from . import frontend
from .blocks import frame_mask
from .transformer import EPS, HEADS, WIDTH, Block, PatchEmbedding, initialise, normal
from .windows import Windows

PATCH = 16  # log-mel frames and bands
BANDS = 5  # patches in 80 bands
DEPTH = 12
WINDOW = 1040  # log-mel frames, about: as many whole units as fit


class MSMMAE(nn.Module):
    """State-dict names are those of timm. `unit_frames`: 208 or 512 in the published files; width, depth and
    heads: of its transformer, the published one's unless given. Raises ValueError where sizes do not fit."""

    n_mels = PATCH * BANDS
    frontend = frontend.MSM_MAE
    pooling = "mean"
    frame_period_ms = 10.0 * PATCH
    first_frame_centre_ms = 10.0 * (PATCH - 1) / 2

    def __init__(
        self, unit_frames: int = 208, width: int = WIDTH, depth: int | None = None, heads: int = HEADS
    ) -> None:
        super().__init__()
        refuse_odd_sizes(unit_frames, width, heads)
        self.unit_frames = unit_frames
        self.embedding_size = width * BANDS
        self.windows = Windows("exact", stride=PATCH, frames=max(WINDOW // unit_frames, 1) * unit_frames)
        self.cls_token = normal(1, 1, width)
        positions = sincos_positions(BANDS, unit_frames // PATCH, width)
        self.pos_embed = nn.Parameter(torch.from_numpy(positions)[None], requires_grad=False)
        self.patch_embed = PatchEmbedding(PATCH, PATCH, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(DEPTH if depth is None else depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.apply(initialise)

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, 80, T) -> (B, ceil(T / 16), 5 width). `n_frames` (B,): those of a padded batch."""
        B, _, F, T = x.shape
        if n_frames is not None:
            x = torch.where(frame_mask(n_frames, T)[:, None, None, :], x, x.new_zeros(()))
        n_units = (T + self.unit_frames - 1) // self.unit_frames  # no negative numbers: ONNX rounds to zero
        x = functional.pad(x, (0, n_units * self.unit_frames - T))
        units = x.reshape(B, F, n_units, self.unit_frames).transpose(1, 2).flatten(0, 1)[:, None]
        frames = self._embed(units).reshape(B, -1, self.embedding_size)
        return frames[:, : (T + PATCH - 1) // PATCH]

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames."""
        return (n_frames + PATCH - 1) // PATCH

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D): the mean over time."""
        return frames.mean(dim=1)

    def _embed(self, units: Tensor) -> Tensor:
        """(N, 1, 80, unit_frames) -> (N, frames, 5 width): index f * width + d."""
        tokens = self.transform(self.patches(units))
        patches = tokens[:, 1:].unflatten(1, (BANDS, -1))  # (N, 5, frames, width)
        return patches.transpose(1, 2).flatten(start_dim=2)

    def patches(self, units: Tensor) -> Tensor:
        """(N, 1, 80, unit_frames) -> (N, patches, width) with their positions, band by band."""
        return self.patch_embed(units).flatten(start_dim=2).transpose(1, 2) + self.pos_embed[:, 1:]

    def transform(self, patches: Tensor) -> Tensor:
        """Any of a unit's patches (N, n, width) -> (N, 1 + n, width), the class token before them."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], 1, patches.shape[2])
        tokens = torch.cat([cls, patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        normalised: Tensor = self.norm(tokens)
        return normalised


def refuse_odd_sizes(unit_frames: int, width: int, heads: int) -> None:
    if unit_frames % PATCH:
        raise ValueError(f"A unit of {unit_frames} frames is no whole number of patches of {PATCH}.")
    if width % heads:
        raise ValueError(f"A width of {width} is no whole number of {heads} heads.")
    if width % 4:
        raise ValueError(f"A width of {width} is no multiple of 4, as the positions need it.")


def sincos_positions(bands: int, columns: int, width: int = WIDTH) -> NDArray[np.float32]:
    """(1 + bands * columns, width): zeros for the class token; then by band and column, half of the numbers
    for the column and half for the band, as in MAE (arXiv 2111.06377)."""
    band, column = np.meshgrid(np.arange(bands), np.arange(columns), indexing="ij")
    patches = np.concatenate([sincos(column.ravel(), width // 2), sincos(band.ravel(), width // 2)], axis=1)
    return np.concatenate([np.zeros((1, width)), patches]).astype(np.float32)


def sincos(place: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """(N,) -> (N, size): sines, then cosines, of wavelengths from 2 pi to 10 000 times that."""
    half = size // 2
    angles = place[:, None] / 10_000 ** (np.arange(half) / half)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
