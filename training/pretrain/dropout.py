"""Dropout whose random numbers are cheap on a CPU: a tenth of a training step there goes into torch's own.

torch draws one number of 24 bits for each element, on one thread; here one of 64 bits serves four elements.
"""

import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # an element is kept or dropped by 16 random bits


class QuickDropout(nn.Dropout):
    """nn.Dropout, its probability rounded to 1 / 65 536 on a CPU. Draws from torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        lowest_kept = round(self.p * LEVELS) - LEVELS // 2
        if lowest_kept == LEVELS // 2:  # p = 1, more than an int16 holds
            return x * 0
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= lowest_kept
        return x * (kept * x.new_tensor(1 / (1 - self.p)))


def quicken_dropout(network: nn.Module) -> None:
    """Let each nn.Dropout in the network be a QuickDropout; weights and their names stay."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, QuickDropout(child.p))
