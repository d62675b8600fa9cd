"""MSM-MAE (arXiv 2204.12260): an encoder that hears a quarter of a log-mel, a decoder that guesses the rest.

    log-mel ─► patches of 16 x 16 ─┬─ visible, 1/4 ─► encoder ─► decoder ─► its guess of every patch
                                   │                             ▲              │
                                   │      a token for each masked one           ├─ squared error
                                   └─ masked, 3/4 ── each to mean 0, std 1 ─────┘  on the masked ones

What the encoder is not shown it cannot remember, so that it has to learn what sounds are like. The masked
autoencoder is that of arXiv 2111.06377, and what 2204.12260 leaves open is as there: the weights to start
with, AdamW's betas, and that the class token goes through the decoder, too.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.msm_mae import MSMMAE, PATCH, sincos
from encoders.transformer import EPS, Block, initialise, normal
from training.pretrain.method import Step
from training.pretrain.recipe import MsmMaeRecipe, RecipeError

TARGET_EPS = 1e-6  # on a patch's variance: digital silence is to be guessed as zeros


class MaskedAutoencoder(nn.Module):
    """Masks are drawn from torch's generator. Raises RecipeError where the sizes do not fit."""

    against_collapse = "or a longer warm-up"
    betas = (0.9, 0.95)  # of AdamW: arXiv 2111.06377, table 8

    def __init__(self, encoder: MSMMAE, recipe: MsmMaeRecipe) -> None:
        super().__init__()
        n_patches = encoder.pos_embed.shape[1] - 1
        self.n_visible = int(n_patches * (1 - recipe.mask_ratio))
        if not 0 < self.n_visible < n_patches:
            raise RecipeError(
                f"msm_mae.mask_ratio = {recipe.mask_ratio:g} leaves {self.n_visible} of {n_patches} patches "
                "visible: some must be, and some must not."
            )
        self.normalises = recipe.targets == "normalised"
        self.online = VisibleEncoder(encoder)
        self.decoder = Decoder(n_patches, encoder.norm.normalized_shape[0], recipe)

    def forward(self, x: Tensor) -> Step:
        """x (B, 1, 80, unit_frames or more), normalised. The step's embedding: the visible patches' mean."""
        x = x[..., : self.online.encoder.unit_frames]
        visible, masked = draw_masks(x, self.decoder.n_patches, self.n_visible)
        tokens = self.online(x, visible)
        guesses = chosen(self.decoder(tokens, visible), masked).float()
        loss = F.mse_loss(guesses, chosen(targets_of(x, normalised=self.normalises), masked))
        return Step(loss=loss, embedding=tokens[:, 1:].mean(dim=1).float().detach())

    def before_step(self) -> None:
        """Nothing but what the optimiser has moves."""


class VisibleEncoder(nn.Module):
    """The encoder on some patches: x (B, 1, 80, unit_frames), visible (B, n) -> (B, 1 + n, width)."""

    def __init__(self, encoder: MSMMAE) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        return self.encoder.transform(chosen(self.encoder.patches(x), visible))


class Decoder(nn.Module):
    """Over all patches, narrow: tokens (B, 1 + n, width), visible (B, n) -> (B, patches, 256)."""

    def __init__(self, n_patches: int, encoder_width: int, recipe: MsmMaeRecipe) -> None:
        super().__init__()
        width, heads = recipe.decoder_width, recipe.decoder_heads
        if width % heads or width % 2:
            raise RecipeError(
                f"msm_mae.decoder_width = {width} must be even, and a multiple of decoder_heads = {heads}."
            )
        self.n_patches = n_patches
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = normal(1, 1, width)
        positions = sincos(np.arange(1 + n_patches), width).astype(np.float32)
        self.positions = nn.Parameter(torch.from_numpy(positions)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(recipe.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.predict = nn.Linear(width, PATCH * PATCH)
        self.apply(initialise)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        B, _, width = tokens.shape
        patches = self.mask_token.to(tokens.dtype).expand(B, self.n_patches, width)
        patches = patches.scatter(1, visible[:, :, None].expand(-1, -1, width), tokens[:, 1:])
        x = torch.cat([tokens[:, :1], patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        guesses: Tensor = self.predict(self.norm(x)[:, 1:])
        return guesses


def draw_masks(x: Tensor, n_patches: int, n_visible: int) -> tuple[Tensor, Tensor]:
    """The numbers (B, n_visible) of the patches of each sound that are visible, and (B, the rest) of the
    others."""
    order = torch.rand(len(x), n_patches, device=x.device).argsort(dim=1)
    return order[:, :n_visible], order[:, n_visible:]


def chosen(patches: Tensor, numbers: Tensor) -> Tensor:
    """patches (B, N, D), numbers (B, n) -> (B, n, D)."""
    return patches.gather(1, numbers[:, :, None].expand(-1, -1, patches.shape[2]))


def targets_of(x: Tensor, *, normalised: bool) -> Tensor:
    """(B, 1, F, T) -> (B, patches, 256), in the order of the encoder's patches: band by band, and within a
    patch bin by bin. Normalised: the numbers of each patch to mean 0 and std 1."""
    B, _, bands, frames = x.shape
    patches = x.reshape(B, bands // PATCH, PATCH, frames // PATCH, PATCH).transpose(2, 3)
    patches = patches.reshape(B, -1, PATCH * PATCH)
    if not normalised:
        return patches
    var, mean = torch.var_mean(patches, dim=2, correction=0, keepdim=True)
    return (patches - mean) / (var + TARGET_EPS).sqrt()
