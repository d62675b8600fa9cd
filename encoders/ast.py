"""AST, the Audio Spectrogram Transformer (arXiv 2104.01778), and its blocks fused.

In: normalised log-mel (B, 1, 128, T) of the front-end AST, T >= 16. Out: one vector for all of it,
(B, 1, 768), or (B, 1, 768 per fused block): the mean of the class and the distillation token.

    patches of 16 x 16, 10 apart: 12 x t of them, t = (T - 16) // 10 + 1     T = 1024: t = 101

    positions    published for t = 101; a shorter clip takes the middle    [ · · 50 - t/2 | t columns | · · ]
                 a longer one stretches them, band by band
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import frontend
from .blocks import frame_mask
from .fusion import checked_layers
from .transformer import EPS, WIDTH, Block, PatchEmbedding, normal
from .windows import Windows

PATCH, STEP = 16, 10  # log-mel frames and bands
LONGEST = 1024  # log-mel frames, 10.24 s: what it was trained with
BANDS, COLUMNS = 12, 101  # patches in 128 bands and in 1024 frames
N_CLASSES = 527


class AST(nn.Module):
    """State-dict names are those of the published file without its `module.v.`.

    `fuse`: blocks counted from 1, for example (5, 12). What lies behind the last of them is not built; the
    final LayerNorm serves them all.
    """

    layers = tuple(range(1, 13))
    n_mels = 128
    frontend = frontend.AST
    mean, std = -4.2677393, 2 * 4.5689974  # of AudioSet's log-mels, and the published halving
    pooling = "mean"  # of the windows
    windows = Windows("independent", stride=PATCH, frames=LONGEST, min_frames=PATCH)
    frame_period_ms = 10.0 * LONGEST
    first_frame_centre_ms = 12.5 + 10.0 * (LONGEST - 1) / 2

    def __init__(self, fuse: Sequence[int] = ()) -> None:
        super().__init__()
        fused = checked_layers(fuse, self.layers, name="ast")
        self.fuse = fused or (self.layers[-1],)
        self.embedding_size = WIDTH * len(self.fuse)
        self.cls_token = normal(1, 1, WIDTH)
        self.dist_token = normal(1, 1, WIDTH)
        self.pos_embed = normal(1, 2 + BANDS * COLUMNS, WIDTH)
        self.patch_embed = PatchEmbedding(PATCH, STEP)
        self.blocks = nn.ModuleList(Block() for _ in range(self.fuse[-1]))
        self.norm = nn.LayerNorm(WIDTH, eps=EPS)

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, 128, T) -> (B, 1, D). `n_frames` (B,): the valid frames of a padded batch."""
        valid = None
        if n_frames is not None:
            x = torch.where(frame_mask(n_frames, x.shape[3])[:, None, None, :], x, x.new_zeros(()))
        patches = self.patch_embed(x)  # (B, 768, 12, t)
        B, _, _, t = patches.shape
        if n_frames is None:
            positions = self._positions(t)
        else:
            n_columns = columns_of(n_frames)
            positions = self._positions_of_each(n_columns, t)
            columns = frame_mask(n_columns, t)[:, None, :].expand(B, BANDS, t).flatten(start_dim=1)
            # (B, N): both tokens, then the patches, band by band
            valid = torch.cat([columns.new_ones(B, 2), columns], dim=1)
        tokens = (patches + positions).flatten(start_dim=2).transpose(1, 2)
        special = torch.cat([self.cls_token, self.dist_token], dim=1) + self.pos_embed[:, :2]
        tokens = torch.cat([special.expand(B, 2, WIDTH), tokens], dim=1)
        means = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, valid)
            if number in self.fuse:
                means.append(self.norm(tokens[:, :2]).mean(dim=1, keepdim=True))
        return torch.cat(means, dim=2)

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames: one."""
        return (n_frames >= PATCH).to(n_frames.dtype)

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, windows, D) -> (B, D): their mean."""
        return frames.mean(dim=1)

    def _table(self) -> Tensor:
        """(1, 768, 12, 101): the published positions."""
        return self.pos_embed[:, 2:].transpose(1, 2).unflatten(2, (BANDS, COLUMNS))

    def _positions(self, t: int) -> Tensor:
        """(1, 768, 12, t) for a clip of t columns."""
        if t <= COLUMNS:
            start = COLUMNS // 2 - t // 2
            return self._table()[..., start : start + t]
        return functional.interpolate(self._table(), size=(BANDS, t), mode="bilinear", align_corners=False)

    def _positions_of_each(self, n_columns: Tensor, t: int) -> Tensor:
        """(B, 768, 12, t): each clip's own, of its n_columns (B,), in a batch padded to t <= 101."""
        if t > COLUMNS:
            raise ValueError(f"Clips of a padded batch may have {COLUMNS} columns of patches, not {t}.")
        columns = torch.arange(t, device=n_columns.device) + (COLUMNS // 2 - n_columns // 2)[:, None]
        columns = columns.clamp(max=COLUMNS - 1)  # (B, t): what lies beyond a clip is not attended to
        return self._table()[0][:, :, columns].permute(2, 0, 1, 3)


class ASTTags(nn.Module):
    """The published head: an embedding (…, 768) -> (…, 527) logits; their sigmoids are AudioSet's tags."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, N_CLASSES)

    def forward(self, embedding: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(embedding))
        return logits


def columns_of(n_frames: Tensor) -> Tensor:
    """(B,) log-mel frames -> (B,) columns of patches."""
    return (n_frames - PATCH) // STEP + 1
