"""AudioNTT2020 against the paper's and the published files' numbers."""

import copy

import pytest
import torch
from torch import nn

import encoders
from encoders.byola_2020 import AudioNTT2020

from ..published_files import byola_shapes
from .conftest import look_trained


@pytest.fixture(scope="module")
def encoder() -> AudioNTT2020:
    encoder = AudioNTT2020(d=512)
    look_trained(encoder)
    return encoder


@pytest.mark.parametrize(("d", "parameters"), [(512, 600_192), (1024, 1_649_792), (2048, 5_321_856)])
def test_the_parameters_are_as_many_as_published(d: int, parameters: int) -> None:
    convolutions = (1 * 9 * 64 + 64) + 2 * (64 * 9 * 64 + 64) + 3 * 2 * 64
    assert convolutions + (512 * d + d) + (d * d + d) == parameters
    encoder = encoders.build("byola-2020", d=d)
    assert sum(weights.numel() for weights in encoder.parameters()) == parameters


def test_the_state_has_the_names_and_shapes_of_the_published_file(encoder: AudioNTT2020) -> None:
    state = encoder.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == byola_shapes(
        3, ((512, 512), (512, 512))
    )
    assert len(state) == 25
    assert state["features.1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("length", "frames"), [(8, 1), (15, 1), (16, 2), (95, 11), (96, 12), (101, 12), (104, 13)]
)
def test_there_is_a_frame_for_every_80_ms(encoder: AudioNTT2020, length: int, frames: int) -> None:
    assert encoder(torch.randn(2, 1, 64, length)).shape == (2, frames, 512)
    assert encoder.stride * 10 == encoder.frame_period_ms


def test_the_network_is_the_papers_layer_by_layer(encoder: AudioNTT2020) -> None:
    x = torch.randn(2, 1, 64, 40)
    state = encoder.state_dict()
    features = x
    for i in (0, 4, 8):
        features = nn.functional.conv2d(
            features, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1
        )
        mean, var, scale, shift = (
            state[f"features.{i + 1}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        features = (features - mean) / torch.sqrt(var + 1e-5) * scale + shift
        B, C, F, T = features.shape
        features = features.clamp(min=0).reshape(B, C, F // 2, 2, T // 2, 2).amax(dim=(3, 5))
    frames = torch.stack(
        [torch.cat([features[:, :, f, t] for f in range(8)], dim=1) for t in range(5)], dim=1
    )  # channel fastest
    hidden = (frames @ state["fc.0.weight"].T + state["fc.0.bias"]).clamp(min=0)
    expected = (hidden @ state["fc.3.weight"].T + state["fc.3.bias"]).clamp(min=0)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_active_in_training_alone(encoder: AudioNTT2020) -> None:
    dropouts = [module.p for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.3]
    x = torch.randn(1, 1, 64, 16)
    assert torch.equal(encoder(x), encoder(x))
    training = copy.deepcopy(encoder).train()
    assert not torch.equal(training(x), training(x))
