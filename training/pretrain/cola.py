"""COLA (arXiv 2010.10915) around an audio encoder: segments of one clip are alike, those of others are not.

    anchor   ─► encoder ─► pool ─► projector ─► a ┐
                                                  ├─ a W b^T, (B, B): the row's own column is to win
    positive ─► encoder ─► pool ─► projector ─► b ┘

    projector g: linear, LayerNorm, tanh       W: (P, P), trained; no temperature, no second network

The negatives of an anchor are the other clips' positives in its batch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders import Encoder
from training.pretrain.method import Projected, Step

SIMILARITY_STD = 0.05  # of the normal distribution that W starts from, as in the authors' code


def similarity(anchor: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
    """anchor (B, P), positive (B, P), weight (P, P) -> (B, B): row i, column j is a_i W b_j, in float32."""
    with torch.autocast(anchor.device.type, enabled=False):
        return anchor.float() @ weight.float() @ positive.float().mT


def cola_loss(similarities: Tensor) -> Tensor:
    """(B, B) -> mean over the anchors of -log softmax at their own positive: ln B when nothing is told."""
    return F.cross_entropy(similarities, torch.arange(len(similarities), device=similarities.device))


class COLA(nn.Module):
    """Anchors and positives go through the encoder as one batch, whose statistics they share."""

    against_collapse = "or a larger batch_size"

    def __init__(self, encoder: Encoder, projection_size: int = 512) -> None:
        super().__init__()
        projector = nn.Sequential(
            nn.Linear(encoder.embedding_size, projection_size), nn.LayerNorm(projection_size), nn.Tanh()
        )
        self.online = Projected(encoder, projector)
        self.similarity = nn.Parameter(SIMILARITY_STD * torch.randn(projection_size, projection_size))

    def forward(self, a: Tensor, b: Tensor) -> Step:
        embedding, projection = self.online(torch.cat([a, b]))
        anchor, positive = projection.chunk(2)
        loss = cola_loss(similarity(anchor, positive, self.similarity))
        return Step(loss=loss, embedding=embedding[: len(a)].detach())

    def before_step(self) -> None:
        """Nothing but what the optimiser has moves."""
