"""Encoders with random weights that look trained; where the published size does not matter, smaller ones."""

import pytest
import torch
from torch import nn

import encoders
from encoders import AnyEncoder

SMALL_CHANNELS = (4, 6, 8, 10, 12, 16)  # of CNN14


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGGish, CNN14 and MSM-MAE with few channels or blocks: their structure is that of the large ones."""
    monkeypatch.setattr("encoders.vggish.CHANNELS", ((4,), (6,), (8, 8), (10, 10)))
    monkeypatch.setattr("encoders.vggish.FC", (24, 20, 12))
    monkeypatch.setattr("encoders.cnn14.CHANNELS", SMALL_CHANNELS)
    monkeypatch.setattr("encoders.msm_mae.DEPTH", 2)


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


def byola_shapes(n_blocks: int, fc: tuple[tuple[int, int], tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published file of BYOL-A; `fc`: (outputs, inputs) of its linear layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(n_blocks):
        convolution, normalisation = f"features.{4 * block}", f"features.{4 * block + 1}"
        shapes |= {f"{convolution}.weight": (64, 64 if block else 1, 3, 3), f"{convolution}.bias": (64,)}
        shapes |= batch_norm_shapes(normalisation, 64)
    for layer, shape in zip((0, 3), fc, strict=True):
        shapes |= {f"fc.{layer}.weight": shape, f"fc.{layer}.bias": shape[:1]}
    return shapes


def batch_norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}
