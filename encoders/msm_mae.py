"""MSM-MAE (arXiv 2204.12260), the encoder of a masked autoencoder of log-mels; for inference.

In: normalised log-mel (B, 1, 80, T) of the front-end MSM_MAE. Out: frames (B, ceil(T / 16), 3840), one per
160 ms: the patches of its five bands side by side.

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
from .transformer import EPS, WIDTH, Block, PatchEmbedding, normal
from .windows import Windows

PATCH = 16  # log-mel frames and bands
BANDS = 5  # patches in 80 bands
DEPTH = 12
WINDOW = 1040  # log-mel frames, about: as many whole units as fit


class MSMMAE(nn.Module):
    """State-dict names are those of timm. `unit_frames`: 208 or 512, as the file was trained."""

    n_mels = PATCH * BANDS
    frontend = frontend.MSM_MAE
    pooling = "mean"
    embedding_size = WIDTH * BANDS
    frame_period_ms = 10.0 * PATCH
    first_frame_centre_ms = 10.0 * (PATCH - 1) / 2

    def __init__(self, unit_frames: int = 208) -> None:
        super().__init__()
        if unit_frames % PATCH:
            raise ValueError(f"A unit of {unit_frames} frames is no whole number of patches of {PATCH}.")
        self.unit_frames = unit_frames
        self.windows = Windows("exact", stride=PATCH, frames=WINDOW // unit_frames * unit_frames)
        self.cls_token = normal(1, 1, WIDTH)
        positions = sincos_positions(BANDS, unit_frames // PATCH)
        self.pos_embed = nn.Parameter(torch.from_numpy(positions)[None], requires_grad=False)
        self.patch_embed = PatchEmbedding(PATCH, PATCH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=EPS)

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, 80, T) -> (B, ceil(T / 16), 3840). `n_frames` (B,): the valid frames of a padded batch."""
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
        """(N, 1, 80, unit_frames) -> (N, frames, 3840): index f * 768 + d."""
        tokens = self.patch_embed(units).flatten(start_dim=2).transpose(1, 2) + self.pos_embed[:, 1:]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], 1, WIDTH)
        tokens = torch.cat([cls, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        patches = self.norm(tokens)[:, 1:].unflatten(1, (BANDS, -1))  # (N, 5, frames, 768)
        return patches.transpose(1, 2).flatten(start_dim=2)


def sincos_positions(bands: int, columns: int) -> NDArray[np.float32]:
    """(1 + bands * columns, 768): zeros for the class token; then by band and column, half of the numbers
    for the column and half for the band, as in MAE (arXiv 2111.06377)."""
    band, column = np.meshgrid(np.arange(bands), np.arange(columns), indexing="ij")
    patches = np.concatenate([_sincos(column.ravel()), _sincos(band.ravel())], axis=1)
    return np.concatenate([np.zeros((1, WIDTH)), patches]).astype(np.float32)


def _sincos(place: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) -> (N, 384): sines, then cosines, of wavelengths from 2 pi to 10 000 times that."""
    quarter = WIDTH // 4
    angles = place[:, None] / 10_000 ** (np.arange(quarter) / quarter)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
