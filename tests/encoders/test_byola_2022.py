"""AudioNTT2022 against the paper's and the published file's numbers."""

import pytest
import torch

import encoders
from encoders.byola_2022 import AudioNTT2022

from ..published_files import byola_shapes
from .conftest import look_trained


@pytest.fixture(scope="module")
def encoder() -> AudioNTT2022:
    encoder = AudioNTT2022()
    look_trained(encoder)
    return encoder


@pytest.mark.parametrize(("d", "parameters"), [(3072, 6_333_376), (2048, 4_235_200)])
def test_the_parameters_are_as_many_as_published(d: int, parameters: int) -> None:
    convolutions = (1 * 9 * 64 + 64) + (64 * 9 * 64 + 64) + 2 * 2 * 64
    mlp = (1024 * 2048 + 2048) + (2048 * (d - 1024) + d - 1024)
    assert convolutions + mlp == parameters
    encoder = encoders.build("byola-2022", d=d)
    assert sum(weights.numel() for weights in encoder.parameters()) == parameters
    assert encoder.embedding_size == d


def test_the_state_has_the_names_and_shapes_of_the_published_file(encoder: AudioNTT2022) -> None:
    state = encoder.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == byola_shapes(
        2, ((2048, 1024), (2048, 2048))
    )
    assert len(state) == 18


@pytest.mark.parametrize(("length", "frames"), [(4, 1), (7, 1), (8, 2), (96, 24), (99, 24), (101, 25)])
def test_there_is_a_frame_for_every_40_ms(encoder: AudioNTT2022, length: int, frames: int) -> None:
    assert encoder(torch.randn(2, 1, 64, length)).shape == (2, frames, 3072)
    assert encoder.stride * 10 == encoder.frame_period_ms


def test_the_convolutions_features_come_first_channel_fastest_then_the_mlps(encoder: AudioNTT2022) -> None:
    x = torch.randn(2, 1, 64, 12)
    features = encoder.features(x)
    assert features.shape == (2, 64, 16, 3)
    frames = encoder(x)
    for f in (0, 1, 15):
        assert torch.equal(frames[:, 2, f * 64 : (f + 1) * 64], features[:, :, f, 2])
    state = encoder.state_dict()
    hidden = (frames[..., :1024] @ state["fc.0.weight"].T + state["fc.0.bias"]).clamp(min=0)
    expected = (hidden @ state["fc.3.weight"].T + state["fc.3.bias"]).clamp(min=0)
    torch.testing.assert_close(frames[..., 1024:], expected, rtol=1e-4, atol=1e-5)


def test_a_d_that_leaves_nothing_for_the_mlp_is_refused() -> None:
    with pytest.raises(ValueError, match="1024"):
        AudioNTT2022(d=1024)


def test_an_unknown_encoder_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="byola-2020, byola-2022"):
        encoders.build("byola-2024")


def test_fewer_bands_make_a_smaller_network() -> None:
    encoder = encoders.build("byola-2022", n_mels=16, d=320)
    assert encoder(torch.randn(1, 1, 16, 8)).shape == (1, 2, 320)
