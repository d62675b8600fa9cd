"""CNN14 against its published sizes, and against a plain functional implementation."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.cnn14 import CNN14

from .conftest import n_parameters, trained_looking


def test_the_parameters_are_as_many_as_published() -> None:
    channels = [1, 64, 128, 256, 512, 1024, 2048]
    blocks = sum(9 * a * b + 9 * b * b + 4 * b for a, b in pairwise(channels))
    bn0, fc1, fc_audioset = 2 * 64, 2048 * 2048 + 2048, 2048 * 527 + 527
    assert bn0 + blocks + fc1 + fc_audioset == 80_753_615
    assert n_parameters("cnn14") == bn0 + blocks + fc1 == 79_673_792
    assert n_parameters("cnn14", fuse=(3, 6)) == bn0 + blocks


@pytest.mark.parametrize(
    ("layers", "size"), [((), 2048), ((3, 6), 6144), ((1,), 2048), ((1, 2, 3, 4, 5, 6), 5 * 2048 + 4096)]
)
def test_an_embedding_has_the_papers_size(layers: tuple[int, ...], size: int) -> None:
    with torch.device("meta"):
        assert CNN14(layers).embedding_size == size


def plain_normalised(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch normalisation of axis 1, by its formula."""
    mean, variance, gain, bias = (
        state[f"{name}.{key}"].double()[None, :, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * gain + bias


def plain_blocks(x: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """x (B, T, 64) -> the outputs of the six blocks, (B, C, T', F'), in float64."""
    x = plain_normalised(x.double()[:, None].permute(0, 3, 2, 1), state, "bn0").permute(0, 3, 2, 1)
    outputs = []
    for k in range(1, 7):
        for half in (1, 2):
            weight = state[f"conv_block{k}.conv{half}.weight"].double()
            x = plain_normalised(F.conv2d(x, weight, padding=1), state, f"conv_block{k}.bn{half}").clamp(
                min=0
            )
        if k < 6:
            T, bands = x.shape[2] // 2 * 2, x.shape[3]
            x = x[:, :, :T].unflatten(2, (T // 2, 2)).unflatten(4, (bands // 2, 2)).mean(dim=(3, 5))
        outputs.append(x)
    return outputs


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("length", "frames"), [(32, 1), (101, 3), (154, 4)])
def test_the_network_is_the_papers_layer_by_layer(length: int, frames: int) -> None:
    encoder = trained_looking(CNN14())
    state = encoder.state_dict()
    x = torch.randn(2, 1, 64, length)
    outputs = plain_blocks(x[:, 0].transpose(1, 2), state)
    assert outputs[5].shape == (2, 16, frames, 2)
    over_bands = outputs[5].mean(dim=3)
    pooled = over_bands.amax(dim=2) + over_bands.mean(dim=2)
    expected = (pooled @ state["fc1.weight"].double().T + state["fc1.bias"].double()).clamp(min=0)
    torch.testing.assert_close(encoder(x), expected[:, None].float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.pool(encoder(x)), encoder(x)[:, 0])

    fused = CNN14((1, 2, 3, 4, 5, 6))
    fused.load_state_dict({key: state[key] for key in fused.state_dict()})
    parts = []
    for k, output in enumerate(outputs, start=1):
        step = max(1, 2 ** (5 - k))
        for t in range(frames):
            part = output[:, :, t * step : (t + 1) * step].amax(dim=2)  # (B, C, F)
            parts.append((k, t, part.flatten(start_dim=1)))  # c * F + f
    rows = [torch.cat([part for _, at, part in parts if at == t], dim=1) for t in range(frames)]
    found = fused.eval()(x)
    torch.testing.assert_close(found, torch.stack(rows, dim=1).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.pool(found), found.mean(dim=1) + found.amax(dim=1))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("layers", [(6,), (3, 5), (2,)])
def test_beyond_the_context_a_cut_leaves_no_trace(layers: tuple[int, ...]) -> None:
    encoder = trained_looking(CNN14(layers))
    context = encoder.windows.context
    assert context == {6: 4, 5: 2, 2: 1}[layers[-1]]
    x = torch.randn(1, 1, 64, 16 * 32)
    whole = encoder(x)
    left, right = encoder(x[..., : 8 * 32]), encoder(x[..., 8 * 32 :])
    torch.testing.assert_close(left[:, :-context], whole[:, : 8 - context], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(right[:, context:], whole[:, 8 + context :], rtol=1e-5, atol=1e-5)
    # The context is no larger than needed: its innermost frame does differ.
    assert not torch.equal(right[:, context - 1], whole[:, 8 + context - 1])


@pytest.mark.usefixtures("narrow")
def test_an_output_frame_sees_126_log_mel_frames_to_either_side_of_its_32() -> None:
    encoder = trained_looking(CNN14((6,)))
    x = torch.randn(1, 1, 64, 12 * 32, requires_grad=True)
    encoder(x)[0, 5].sum().backward()
    assert x.grad is not None
    seen = torch.nonzero(x.grad[0, 0].abs().sum(dim=0)).flatten()
    assert (seen.min(), seen.max()) == (5 * 32 - 126, 6 * 32 - 1 + 126)


def test_frames_are_centred_on_what_they_come_from() -> None:
    with torch.device("meta"):
        plain, fused = CNN14(), CNN14((3, 6))
    assert fused.first_frame_centre_ms == sum(10 * t for t in range(32)) / 32 == 155
    assert fused.frame_period_ms == 320
    assert plain.windows.kind == "independent"
    assert plain.frame_period_ms == 10 * plain.windows.frames
    assert plain.frontend.samples_for(plain.windows.min_frames) == 4_960


@pytest.mark.usefixtures("narrow")
def test_dropout_is_active_in_training_alone() -> None:
    encoder = trained_looking(CNN14())
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(encoder(x), encoder(x))
    training = copy.deepcopy(encoder)
    assert isinstance(training, CNN14)
    assert not torch.equal(training.train()(x), training.eval()(x))
