"""What a pre-training method is to the loop: a network that makes a loss of two views, and has an encoder.

    view a ─┐
            ├─► method ─► Step: the loss, and the embeddings that the log watches
    view b ─┘

A method is a torch module with

    forward(a (B, 1, F, T), b (B, 1, F, T)) -> Step
    before_step()      what else moves, once per step, before the optimiser does
    online             encoder, pooling and projector; the optimiser has all that asks for a gradient

and `against_collapse`, what to try when all embeddings become one.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from encoders import Encoder


@dataclass(frozen=True)
class Step:
    """What one forward pass gives: the loss, and the online embeddings (B, D) of the first view."""

    loss: Tensor
    embedding: Tensor


class Projected(nn.Module):
    """Encoder, pooling over time and projector: (B, 1, F, T) -> embedding (B, D), projection (B, P)."""

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.encoder.pool(self.encoder(x).float())
        return embedding, self.projector(embedding)
