"""The block of a vision transformer (arXiv 2010.11929), which AST and MSM-MAE are made of.

In and out: tokens (B, N, width). Names of the weights as timm and the published files have them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 768
HEADS = 12
EPS = 1e-6  # of every LayerNorm of the body
HEADS_AT_ONCE = 3  # under a mask: their scores, (N, N) each, are what a long input needs memory for


class Block(nn.Module):
    """Pre-norm attention, then pre-norm MLP of four times the width with exact GELU; both beside a skip."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` (B, N) bool: tokens that may be attended to."""
        x = x + self.attn(self.norm1(x), valid)
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        B, N, width = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if valid is None:
            x = functional.scaled_dot_product_attention(q, k, v)
        else:
            x = masked_attention(q, k, v, valid)
        y: Tensor = self.proj(x.transpose(1, 2).reshape(B, N, width))
        return y


def masked_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """q, k, v (B, heads, N, d), valid (B, N) bool, true somewhere -> (B, heads, N, d), a few heads at a time.

    Written out, because that is what is exported: torch's own becomes twice the nodes and three times the
    memory, to be right where nothing at all is valid.
    """
    lowest = q.new_full((), torch.finfo(q.dtype).min / 2)  # half, so that a score added to it stays finite
    bias = torch.where(valid, q.new_zeros(()), lowest)[:, None, None, :]
    q = q * q.shape[-1] ** -0.5
    groups = zip(*(x.split(HEADS_AT_ONCE, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([((q @ k.mT) + bias).softmax(dim=-1) @ v for q, k, v in groups], dim=1)


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class PatchEmbedding(nn.Module):
    """A convolution without overlap of its own: (B, 1, F, T) -> (B, width, patches in F, patches in T)."""

    def __init__(self, patch: int, stride: int, width: int = WIDTH) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel_size=patch, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """To be applied to a network: weights to start with as in MAE (arXiv 2111.06377), a patch embedding's as
    if it were linear, and biases of zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(start_dim=1))
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def normal(*shape: int) -> nn.Parameter:
    """Untrained tokens and positions, small and random."""
    return nn.Parameter(0.02 * torch.randn(*shape))
