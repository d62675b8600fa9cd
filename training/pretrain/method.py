"""What a pre-training method is to the loop: a network with an encoder that makes a loss of what it is shown.

    view a ─┐                                                         log-mel ────────┐
            ├─► BYOL, COLA ─► Step: the loss, and the embeddings                  ├─► Distil ─► Step
    view b ─┘                 that the log watches                teachers' answers ─┘
    log-mel ─► MaskedAutoencoder ─► Step

A method is a torch module with

    forward(a (B, 1, F, T), b (B, 1, F, T)) -> Step       Distil: forward(x (B, 1, F, T), answers, …)
                                                          MaskedAutoencoder: forward(x (B, 1, F, T))
    before_step()      what else moves, once per step, before the optimiser does
    online             encoder, and what else its method puts behind it; the optimiser has all that asks for
                       a gradient

and `against_collapse`, what to try when all embeddings become one.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from encoders import Student


@dataclass(frozen=True)
class Step:
    """What one forward pass gives: the loss, the online embeddings (B, D) of the first view, and where the
    loss is a sum, its parts before they are weighted."""

    loss: Tensor
    embedding: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Projected(nn.Module):
    """Encoder, pooling over time and projector: (B, 1, F, T) -> embedding (B, D), projection (B, P)."""

    def __init__(self, encoder: Student, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def embed(self, x: Tensor) -> Tensor:
        return self.encoder.pool(self.encoder(x).float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.embed(x)
        return embedding, self.projector(embedding)
