"""AudioNTT2020 against the paper's and the published files' numbers."""

import copy

import pytest
import torch
from torch import nn

import encoders
from encoders.byola_2020 import AudioNTT2020

BATCH_NORM = {
    "weight": (64,),
    "bias": (64,),
    "running_mean": (64,),
    "running_var": (64,),
    "num_batches_tracked": (),
}


@pytest.fixture(scope="module")
def encoder() -> AudioNTT2020:
    """With normalisation statistics that are not 0 and 1, as after training."""
    torch.manual_seed(0)
    encoder = AudioNTT2020(d=512)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias)
    return encoder.eval()


@pytest.mark.parametrize(("d", "parameters"), [(512, 600_192), (1024, 1_649_792), (2048, 5_321_856)])
def test_the_parameters_are_as_many_as_published(d: int, parameters: int) -> None:
    convolutions = (1 * 9 * 64 + 64) + 2 * (64 * 9 * 64 + 64) + 3 * 2 * 64
    assert convolutions + (512 * d + d) + (d * d + d) == parameters
    encoder = encoders.build("byola-2020", d=d)
    assert sum(weights.numel() for weights in encoder.parameters()) == parameters


def test_the_state_has_the_names_and_shapes_of_the_published_file() -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for convolution, in_channels in ((0, 1), (4, 64), (8, 64)):
        expected[f"features.{convolution}.weight"] = (64, in_channels, 3, 3)
        expected[f"features.{convolution}.bias"] = (64,)
        expected |= {f"features.{convolution + 1}.{name}": shape for name, shape in BATCH_NORM.items()}
    expected |= {
        "fc.0.weight": (512, 512),
        "fc.0.bias": (512,),
        "fc.3.weight": (512, 512),
        "fc.3.bias": (512,),
    }
    state = encoders.build("byola-2020", d=512).state_dict()
    assert len(state) == 25
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert state["features.1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("length", "frames"), [(8, 1), (15, 1), (16, 2), (95, 11), (96, 12), (101, 12), (104, 13)]
)
def test_there_is_a_frame_for_every_80_ms(encoder: AudioNTT2020, length: int, frames: int) -> None:
    assert encoder(torch.randn(2, 1, 64, length)).shape == (2, frames, 512)
    assert encoder.stride * 10 == encoder.frame_period_ms


def test_the_first_frame_is_centred_on_the_eight_it_comes_from() -> None:
    assert sum(10 * t for t in range(8)) / 8 == AudioNTT2020.first_frame_centre_ms


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


def test_a_clip_is_the_mean_plus_the_maximum_of_its_frames(encoder: AudioNTT2020) -> None:
    frames = encoder(torch.randn(3, 1, 64, 50))
    assert frames.shape == (3, 6, 512)
    torch.testing.assert_close(encoder.pool(frames), frames.mean(dim=1) + frames.max(dim=1).values)
    assert (frames >= 0).all()


def test_what_lies_beyond_a_clip_changes_nothing(encoder: AudioNTT2020) -> None:
    lengths = [96, 61, 8, 40]
    clips = [torch.randn(1, 1, 64, length) for length in lengths]
    padded = torch.full((4, 1, 64, 96), torch.nan)
    padded[1:, :, :, 70:] = 1e6  # garbage of every kind
    for row, clip in enumerate(clips):
        padded[row, :, :, : clip.shape[-1]] = clip
    together = encoder(padded, torch.tensor(lengths))
    for row, clip in enumerate(clips):
        alone = encoder(clip)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_an_output_frame_sees_seven_log_mel_frames_to_either_side_of_its_eight(encoder: AudioNTT2020) -> None:
    T, frame = 56, 3
    x = torch.randn(1, 1, 64, T)
    changed = x.repeat(T, 1, 1, 1)
    changed[torch.arange(T), 0, :, torch.arange(T)] += 100  # each log-mel frame in turn
    differs = ((encoder(changed) - encoder(x))[:, frame].abs() > 1e-3).any(dim=1)  # more than rounding
    assert torch.nonzero(differs).flatten().tolist() == list(range(3 * 8 - 7, 4 * 8 + 7))


def test_beyond_the_context_a_cut_leaves_no_trace(encoder: AudioNTT2020) -> None:
    x = torch.randn(1, 1, 64, 96)
    whole = encoder(x)
    left, right = encoder(x[..., :48]), encoder(x[..., 48:])
    context = encoder.context
    torch.testing.assert_close(left[:, :-context], whole[:, : 6 - context], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(right[:, context:], whole[:, 6 + context :], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(
        left[:, -1], whole[:, 5], rtol=1e-3
    )  # so that the context is no larger than needed
