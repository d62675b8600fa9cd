"""EfficientAT against its published sizes, and against a plain functional implementation in float64."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.efficientat import EfficientAT, EfficientATTags, channels_of, divisible_by_8

from .conftest import look_trained, n_parameters, trained_looking

NARROW = 0.2  # every channel count is still scaled, and each block but the first has its expansion

# kernel, expanded, squeeze-excite, Hardswish, stride of each block at NARROW; worked out by hand
BLOCKS = [
    (3, 8, False, False, 1), (3, 16, False, False, 2), (3, 16, False, False, 1), (5, 16, True, False, 2),
    (5, 24, True, False, 1), (5, 24, True, False, 1), (3, 48, False, True, 2), (3, 40, False, True, 1),
    (3, 40, False, True, 1), (3, 40, False, True, 1), (3, 96, True, True, 1), (3, 136, True, True, 1),
    (5, 136, True, True, 2), (5, 192, True, True, 1), (5, 192, True, True, 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "millions"), [(0.4, 0.983), (0.5, 1.43), (1, 4.88), (2, 17.91), (3, 39.09), (4, 68.43)]
)
def test_the_parameters_are_as_many_as_published(width: float, millions: float) -> None:
    """In the table of the authors' README, tags included."""
    with torch.device("meta"):
        tags = sum(weights.numel() for weights in EfficientATTags(width).parameters())
    found = (n_parameters("efficientat", width=width) + tags) / 1e6
    assert found == pytest.approx(millions, abs=0.01 if millions > 1 else 0.001)


def test_channels_are_multiples_of_8_that_lose_no_more_than_a_tenth() -> None:
    assert [divisible_by_8(value) for value in (1.6, 6.4, 11.9, 12, 73.6, 384)] == [8, 8, 16, 16, 72, 384]
    assert divisible_by_8(9.6) == 16  # 8 would be a sixth too little
    assert channels_of(0.4) == (8, 8, 16, 16, 16, 16, 16, 32, 32, 32, 32, 48, 48, 64, 64, 64, 384)
    assert channels_of(1.0)[-2:] == (160, 960)


@pytest.mark.parametrize(
    ("fuse", "size", "period_ms"),
    [
        ((), 384, 320), ((5,), 256, 80), ((11,), 384, 160), ((9, 15), 512, 160), ((7, 13, 16), 2048, 160),
        ((16,), 1536, 320),
    ],
)  # fmt: skip
def test_an_embedding_of_mn04_has_its_size(fuse: tuple[int, ...], size: int, period_ms: int) -> None:
    with torch.device("meta"):
        encoder = EfficientAT(0.4, fuse)
    assert (encoder.embedding_size, encoder.frame_period_ms) == (size, period_ms)
    assert encoder.windows.stride * 10 == period_ms


def test_every_block_of_a_second_has_its_published_shape() -> None:
    """(channels, mels, frames) of mn04, for the 100 log-mel frames of 32 000 samples."""
    encoder = EfficientAT(0.4).eval()
    found = encoder._outputs(torch.randn(1, 1, 128, 100), None)
    expected = {
        **dict.fromkeys((2, 3), (16, 32, 25)),
        **dict.fromkeys((4, 5, 6), (16, 16, 13)),
        **dict.fromkeys((7, 8, 9, 10), (32, 8, 7)),
        **dict.fromkeys((11, 12), (48, 8, 7)),
        **dict.fromkeys((13, 14, 15), (64, 4, 4)),
        16: (384, 4, 4),
    }
    assert {number: tuple(found[number].shape[1:]) for number in expected} == expected


def plain_convolution(x: Tensor, state: dict[str, Tensor], name: str, *, stride: int = 1) -> Tensor:
    """Convolution and batch normalisation by its formula; a weight of one input channel is depthwise."""
    weight = state[f"{name}.0.weight"].double()
    groups = x.shape[1] // weight.shape[1]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2, groups=groups)
    mean, variance, gain, bias = (
        state[f"{name}.1.{key}"].double()[None, :, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 0.001).sqrt() * gain + bias


def activated(x: Tensor, *, smooth: bool) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6 if smooth else x.clamp(min=0)


def plain_outputs(x: Tensor, state: dict[str, Tensor]) -> dict[int, Tensor]:
    """x (B, 1, 128, T) -> what each block and the last convolution give, (B, C, F, T'), in float64."""
    x = activated(plain_convolution(x.double(), state, "features.0", stride=2), smooth=True)
    outputs = {}
    for number, (kernel, expanded, excites, smooth, stride) in enumerate(BLOCKS, start=1):
        y, parts = x, iter(f"features.{number}.block.{k}" for k in range(4))
        if expanded != x.shape[1]:
            y = activated(plain_convolution(y, state, next(parts)), smooth=smooth)
        assert y.shape[1] == expanded
        depthwise = next(parts)
        assert state[f"{depthwise}.0.weight"].shape == (expanded, 1, kernel, kernel)
        y = activated(plain_convolution(y, state, depthwise, stride=stride), smooth=smooth)
        if excites:
            fc1, fc2 = (f"{name}.fc" for name in [next(parts)] * 2)
            squeezed = y.mean(dim=(2, 3)) @ state[f"{fc1}1.weight"].double().T + state[f"{fc1}1.bias"]
            logits = squeezed.clamp(min=0) @ state[f"{fc2}2.weight"].double().T + state[f"{fc2}2.bias"]
            y = y * (1 / (1 + (-logits).exp()))[:, :, None, None]
        y = plain_convolution(y, state, next(parts))
        x = x + y if stride == 1 and x.shape == y.shape else y
        outputs[number] = x
    outputs[16] = activated(plain_convolution(x, state, "features.16"), smooth=True)
    return outputs


@pytest.mark.parametrize(("length", "frames"), [(32, 1), (100, 4), (161, 6)])
def test_the_network_is_the_papers_layer_by_layer(length: int, frames: int) -> None:
    encoder = trained_looking(EfficientAT(NARROW))
    assert isinstance(encoder, EfficientAT)
    x = torch.randn(2, 1, 128, length)
    expected = plain_outputs(x, encoder.state_dict())
    found = encoder._outputs(x, None)
    for number, output in expected.items():
        # float32 through up to 46 convolutions, relative to the largest number
        torch.testing.assert_close(
            found[number], output.float(), rtol=0, atol=1e-5 * float(output.abs().max())
        )
    embedding = encoder.pool(encoder(x))
    assert encoder(x).shape == (2, frames, encoder.embedding_size)
    torch.testing.assert_close(embedding, expected[16].mean(dim=(2, 3)).float(), rtol=1e-4, atol=1e-4)


def test_the_tags_are_an_mlp_over_the_plain_embedding() -> None:
    tags = EfficientATTags(NARROW)
    look_trained(tags)
    state = {key: value.double() for key, value in tags.state_dict().items()}
    assert state["hidden.weight"].shape == (256, 192)
    embedding = torch.randn(3, 192)
    hidden = activated(embedding.double() @ state["hidden.weight"].T + state["hidden.bias"], smooth=True)
    expected = hidden @ state["linear.weight"].T + state["linear.bias"]
    torch.testing.assert_close(tags(embedding), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [(9, 15), (7, 13, 16), (2,), (1, 4, 16)])
def test_fused_blocks_are_flattened_and_the_coarser_ones_repeated(layers: tuple[int, ...]) -> None:
    encoder = trained_looking(EfficientAT(NARROW))
    fused = EfficientAT(NARROW, layers)
    fused.load_state_dict({key: encoder.state_dict()[key] for key in fused.state_dict()})
    x = torch.randn(2, 1, 128, 96)
    outputs = plain_outputs(x, encoder.state_dict())
    finest = outputs[layers[0]].shape[3]
    frames = []
    for t in range(finest):
        parts = []
        for number in layers:
            output = outputs[number]  # (B, C, F, T'): index c * F + f
            times = {1: 2, 2: 4, 4: 8, 7: 16, 9: 16, 13: 32, 15: 32, 16: 32}
            parts.append(output[..., t * times[layers[0]] // times[number]].flatten(start_dim=1))
        frames.append(torch.cat(parts, dim=1))
    expected = torch.stack(frames, dim=1)
    found = fused.eval()(x)
    assert found.shape == (2, finest, fused.embedding_size)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    torch.testing.assert_close(fused.pool(found), found.mean(dim=1) + found.amax(dim=1))


def test_a_fused_clip_vector_is_that_of_each_block_by_itself() -> None:
    """96 log-mel frames are 6 and 3 frames: each of the 3 counts twice."""
    x = torch.randn(1, 1, 128, 96)
    whole = trained_looking(EfficientAT(NARROW, (9, 15)))
    parts = []
    for number in (9, 15):
        alone = EfficientAT(NARROW, (number,))
        alone.load_state_dict({key: whole.state_dict()[key] for key in alone.state_dict()})
        parts.append(alone.eval().pool(alone(x)))
    torch.testing.assert_close(whole.pool(whole(x)), torch.cat(parts, dim=1), rtol=1e-5, atol=1e-5)


def test_what_lies_behind_the_last_fused_block_is_not_built() -> None:
    keys = EfficientAT(NARROW, (2, 9)).state_dict()
    assert any(key.startswith("features.9.") for key in keys)
    assert not any(key.startswith(("features.10.", "features.16.")) for key in keys)


def test_a_frame_is_centred_on_the_first_of_those_that_it_stands_for() -> None:
    """Up to block 3 nothing hears the whole window, so that one sees what a frame sees."""
    encoder = trained_looking(EfficientAT(NARROW, (3,)))
    x = torch.randn(1, 1, 128, 80, requires_grad=True)
    encoder(x)[0, 10].sum().backward()
    assert x.grad is not None
    seen = torch.nonzero(x.grad[0, 0].abs().sum(dim=0)).flatten()
    reach = 1 + 2 + 2 + 4  # a convolution of 3 at each of the strides 1, 2, 2, 4
    assert (int(seen.min()), int(seen.max())) == (4 * 10 - reach, 4 * 10 + reach)
    assert encoder.first_frame_centre_ms == 0


def test_squeeze_excite_lets_a_frame_hear_all_of_its_window() -> None:
    for layers, hears in (((3,), False), ((4,), True)):
        encoder = trained_looking(EfficientAT(NARROW, layers))
        x = torch.randn(1, 1, 128, 640)
        louder = x.clone()
        louder[..., 600:] += 3
        assert (not torch.equal(encoder(x)[:, 0], encoder(louder)[:, 0])) is hears
        assert encoder.windows.kind == "independent"


def test_a_window_holds_a_clip_of_audioset_and_whole_frames() -> None:
    encoder = EfficientAT(NARROW)
    ten_seconds = 1 + (10 * 32_000 - 1) // 320
    assert ten_seconds == 1000 <= encoder.windows.frames == 32 * 32
    assert encoder.frontend.samples_for(encoder.windows.min_frames) == 31 * 320 + 1  # 0.31 s


@pytest.mark.parametrize("layers", [(), (9, 15)])
def test_the_frames_of_a_clip_are_counted_as_they_come_out(layers: tuple[int, ...]) -> None:
    encoder = trained_looking(EfficientAT(NARROW, layers))
    for T in (32, 33, 47, 48, 49, 64, 65):
        assert encoder(torch.randn(1, 1, 128, T)).shape[1] == int(encoder.count(torch.tensor([T])))


@pytest.mark.parametrize("layers", [(), (9, 15), (7, 13, 16)])
def test_nothing_beyond_a_clip_passes_in_exact_arithmetic(layers: tuple[int, ...]) -> None:
    """In float64, where rounding hides nothing: no convolution and no squeeze-excite hears the padding."""
    encoder = trained_looking(EfficientAT(NARROW, layers))
    assert isinstance(encoder, EfficientAT)
    encoder.double()
    lengths = [301, 97, 32, 258]
    clips = [torch.randn(1, 1, 128, length, dtype=torch.float64) for length in lengths]
    padded = torch.full((4, 1, 128, 320), torch.nan, dtype=torch.float64)
    for row, clip in zip(padded, clips, strict=True):
        row[..., : clip.shape[3]] = clip[0]
    for row, clip in zip(encoder(padded, torch.tensor(lengths)), clips, strict=True):
        alone = encoder(clip)[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=1e-12 * float(alone.abs().max()))


def test_dropout_is_active_in_training_alone() -> None:
    tags = EfficientATTags(NARROW).eval()
    x = torch.randn(8, 192)
    assert torch.equal(tags(x), tags(x))
    training = copy.deepcopy(tags).train()
    assert not torch.equal(training(x), tags(x))


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"efficientat has no layer 17 to fuse, only 1, 2, .*, 16"):
        EfficientAT(NARROW, (9, 17))
