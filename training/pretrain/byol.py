"""Bootstrap Your Own Latent (arXiv 2006.07733) around an audio encoder, as BYOL-A uses it.

                 view a ─► encoder ─► pool ─► projector ─► predictor ─► p_a ┐
    log-mel ─┬─►                                                            ├─ 2 - 2 cos(p_a, t_b)
             └─► view b ─► target encoder ─► pool ─► target projector ─► t_b ┘     and a, b exchanged

The target is a moving average of the encoder and projector and gets no gradient.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders import Encoder
from training.pretrain.method import Projected, Step


def mlp(in_size: int, hidden_size: int, out_size: int) -> nn.Sequential:
    """Projector and predictor: (B, in_size) -> (B, out_size)."""
    return nn.Sequential(
        nn.Linear(in_size, hidden_size),
        nn.BatchNorm1d(hidden_size),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_size, out_size),
    )


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of 2 - 2 cos(p, t): 0 when all agree, 4 when all are opposite. A step adds two."""
    return (2 - 2 * F.cosine_similarity(prediction.float(), target.float(), dim=-1)).mean()


class BYOL(nn.Module):
    """The target runs in training mode too: its normalisation uses the batch's statistics and its dropout
    is active, as in the published training (arXiv 2204.07402)."""

    against_collapse = "a byol.target_decay nearer to 1 or a larger batch_size"

    def __init__(
        self,
        encoder: Encoder,
        hidden_size: int = 4096,
        projection_size: int = 256,
        target_decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.online = Projected(encoder, mlp(encoder.embedding_size, hidden_size, projection_size))
        self.predictor = mlp(projection_size, hidden_size, projection_size)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.target_decay = target_decay

    def forward(self, a: Tensor, b: Tensor) -> Step:
        embedding, projection_a = self.online(a)
        _, projection_b = self.online(b)
        with torch.no_grad():
            _, target_a = self.target(a)
            _, target_b = self.target(b)
        loss = byol_loss(self.predictor(projection_a), target_b) + byol_loss(
            self.predictor(projection_b), target_a
        )
        return Step(loss=loss, embedding=embedding.detach())

    @torch.no_grad()
    def before_step(self) -> None:
        """target <- decay * target + (1 - decay) * online: parameters alone, not the statistics of the
        normalisation layers. As published, it follows the weights of the step before."""
        online: list[Tensor] = list(self.online.parameters())
        target: list[Tensor] = list(self.target.parameters())
        torch._foreach_mul_(target, self.target_decay)
        torch._foreach_add_(target, online, alpha=1 - self.target_decay)

    def restart_target(self) -> None:
        """The target becomes the online network, whose encoder was given other weights."""
        self.target.load_state_dict(self.online.state_dict())
