"""AudioNTT2022 against the paper's and the published file's numbers."""

import pytest
import torch
from torch import nn

import encoders
from encoders.byola_2022 import AudioNTT2022

BATCH_NORM = {
    "weight": (64,),
    "bias": (64,),
    "running_mean": (64,),
    "running_var": (64,),
    "num_batches_tracked": (),
}


@pytest.fixture(scope="module")
def encoder() -> AudioNTT2022:
    """With normalisation statistics that are not 0 and 1, as after training."""
    torch.manual_seed(0)
    encoder = AudioNTT2022()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias)
    return encoder.eval()


@pytest.mark.parametrize(("d", "parameters"), [(3072, 6_333_376), (2048, 4_235_200)])
def test_the_parameters_are_as_many_as_published(d: int, parameters: int) -> None:
    convolutions = (1 * 9 * 64 + 64) + (64 * 9 * 64 + 64) + 2 * 2 * 64
    mlp = (1024 * 2048 + 2048) + (2048 * (d - 1024) + d - 1024)
    assert convolutions + mlp == parameters
    encoder = encoders.build("byola-2022", d=d)
    assert sum(weights.numel() for weights in encoder.parameters()) == parameters
    assert encoder.embedding_size == d


def test_the_state_has_the_names_and_shapes_of_the_published_file(encoder: AudioNTT2022) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for convolution, in_channels in ((0, 1), (4, 64)):
        expected[f"features.{convolution}.weight"] = (64, in_channels, 3, 3)
        expected[f"features.{convolution}.bias"] = (64,)
        expected |= {f"features.{convolution + 1}.{name}": shape for name, shape in BATCH_NORM.items()}
    expected |= {
        "fc.0.weight": (2048, 1024),
        "fc.0.bias": (2048,),
        "fc.3.weight": (2048, 2048),
        "fc.3.bias": (2048,),
    }
    state = encoder.state_dict()
    assert len(state) == 18
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


@pytest.mark.parametrize(("length", "frames"), [(4, 1), (7, 1), (8, 2), (96, 24), (99, 24), (101, 25)])
def test_there_is_a_frame_for_every_40_ms(encoder: AudioNTT2022, length: int, frames: int) -> None:
    assert encoder(torch.randn(2, 1, 64, length)).shape == (2, frames, 3072)
    assert encoder.stride * 10 == encoder.frame_period_ms


def test_the_first_frame_is_centred_on_the_four_it_comes_from() -> None:
    assert sum(10 * t for t in range(4)) / 4 == AudioNTT2022.first_frame_centre_ms


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


def test_a_clip_is_the_mean_plus_the_maximum_of_its_frames(encoder: AudioNTT2022) -> None:
    frames = encoder(torch.randn(3, 1, 64, 50))
    torch.testing.assert_close(encoder.pool(frames), frames.mean(dim=1) + frames.max(dim=1).values)
    assert (frames >= 0).all()


def test_what_lies_beyond_a_clip_changes_nothing(encoder: AudioNTT2022) -> None:
    lengths = [96, 61, 4, 39]
    clips = [torch.randn(1, 1, 64, length) for length in lengths]
    padded = torch.full((4, 1, 64, 96), torch.nan)
    padded[1:, :, :, 70:] = 1e6  # garbage of every kind
    for row, clip in enumerate(clips):
        padded[row, :, :, : clip.shape[-1]] = clip
    together = encoder(padded, torch.tensor(lengths))
    for row, clip in enumerate(clips):
        alone = encoder(clip)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_an_output_frame_sees_three_log_mel_frames_to_either_side_of_its_four(encoder: AudioNTT2022) -> None:
    T, frame = 24, 3
    x = torch.randn(1, 1, 64, T)
    changed = x.repeat(T, 1, 1, 1)
    changed[torch.arange(T), 0, :, torch.arange(T)] += 100  # each log-mel frame in turn
    differs = ((encoder(changed) - encoder(x))[:, frame].abs() > 1e-3).any(dim=1)  # more than rounding
    assert torch.nonzero(differs).flatten().tolist() == list(range(3 * 4 - 3, 4 * 4 + 3))


def test_beyond_the_context_a_cut_leaves_no_trace(encoder: AudioNTT2022) -> None:
    x = torch.randn(1, 1, 64, 48)
    whole = encoder(x)
    left, right = encoder(x[..., :24]), encoder(x[..., 24:])
    context = encoder.context
    torch.testing.assert_close(left[:, :-context], whole[:, : 6 - context], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(right[:, context:], whole[:, 6 + context :], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(
        left[:, -1], whole[:, 5], rtol=1e-3
    )  # so that the context is no larger than needed


def test_a_d_that_leaves_nothing_for_the_mlp_is_refused() -> None:
    with pytest.raises(ValueError, match="1024"):
        AudioNTT2022(d=1024)


def test_an_unknown_encoder_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="byola-2020, byola-2022"):
        encoders.build("byola-2024")


def test_fewer_bands_make_a_smaller_network() -> None:
    encoder = encoders.build("byola-2022", n_mels=16, d=320)
    assert encoder(torch.randn(1, 1, 16, 8)).shape == (1, 2, 320)
