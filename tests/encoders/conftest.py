"""Encoders with random weights that look trained; where the published size does not matter, smaller ones."""

import pytest
import torch
from torch import nn

import encoders
from encoders import AnyEncoder

from .. import published_files


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGGish, CNN14 and MSM-MAE with few channels or blocks."""
    published_files.narrow(monkeypatch)


def trained_looking(encoder: AnyEncoder) -> AnyEncoder:
    assert isinstance(encoder, nn.Module)
    look_trained(encoder)
    return encoder


@torch.no_grad()
def look_trained(network: nn.Module) -> None:
    """Statistics and gains of normalisation that are not the initial zeros and ones, biases that are not
    zero, and weights by which the signal neither dies nor explodes."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.normal_(std=0.1)
    network.eval().requires_grad_(False)


def n_parameters(name: str, **parameters: object) -> int:
    """Of the encoder in its published size, without making its weights."""
    with torch.device("meta"):
        encoder = encoders.build_any(name, **parameters)  # type: ignore[arg-type]
    assert isinstance(encoder, nn.Module)
    return sum(weights.numel() for weights in encoder.parameters())
