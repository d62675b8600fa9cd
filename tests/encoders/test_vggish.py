"""VGGish against its published sizes, and against a plain NumPy implementation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from encoders.vggish import VGGish, VGGish4K

from .conftest import n_parameters, trained_looking

Array = NDArray[np.float64]


def test_the_parameters_are_as_many_as_published() -> None:
    channels = [1, 64, 128, 256, 256, 512, 512]
    convolutions = sum(9 * a * b + b for a, b in pairwise(channels))
    fc = [12_288 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 128 + 128]
    assert convolutions + sum(fc) == 72_141_184
    assert n_parameters("vggish") == 72_141_184
    assert n_parameters("vggish-4k") == convolutions + fc[0]
    assert n_parameters("vggish", fuse=(10, 15)) == convolutions  # fused, a sixteenth of the network is left


@pytest.mark.parametrize(
    ("layers", "size"),
    [((), 128), ((10, 15), 8192), ((10, 20), 8192), ((2, 5, 8, 10, 13, 15, 18, 20, 22), 8 * 4096 + 128)],
)
def test_an_embedding_has_the_papers_size(layers: tuple[int, ...], size: int) -> None:
    with torch.device("meta"):
        assert VGGish(layers).embedding_size == size
        assert VGGish4K().embedding_size == 4096


def convolved(x: Array, weight: Array, bias: Array) -> Array:
    """x (C, T, F), 3 x 3 with zeros around -> (C', T, F)."""
    patches = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    return np.einsum("ctfij,dcij->dtf", patches, weight, optimize=True) + bias[:, None, None]


def plain_layers(example: Array, state: dict[str, Array]) -> dict[int, Array]:
    """example (96, 64) -> the nine layers by the paper's numbers."""
    x, layers = example[None], {}
    for number, layer in enumerate((0, 3, 6, 8, 11, 13)):
        x = np.maximum(convolved(x, state[f"features.{layer}.weight"], state[f"features.{layer}.bias"]), 0)
        layers[(2, 5, 8, 10, 13, 15)[number]] = x
        if layer in (0, 3, 8, 13):
            C, T, F = x.shape
            x = x.reshape(C, T // 2, 2, F // 2, 2).max(axis=(2, 4))
    vector = np.array([x[c, t, f] for t in range(6) for f in range(4) for c in range(len(x))])
    for number, layer in ((18, 0), (20, 2), (22, 4)):
        vector = np.maximum(state[f"fc.{layer}.weight"] @ vector + state[f"fc.{layer}.bias"], 0)
        layers[number] = vector
    return layers


def plain_frames(layer: Array) -> Array:
    """A layer -> (6, size): the maximum over time within each of six parts, or the vector six times."""
    if layer.ndim == 1:
        return np.tile(layer, (6, 1))
    parts = np.split(layer, 6, axis=1)
    return np.array(
        [[part[c, :, f].max() for c in range(len(layer)) for f in range(layer.shape[2])] for part in parts]
    )


@pytest.mark.usefixtures("narrow")
def test_the_network_is_the_papers_layer_by_layer() -> None:
    everything = VGGish.layers
    fused = trained_looking(VGGish(everything))
    state = {key: value.numpy().astype(np.float64) for key, value in fused.state_dict().items()}
    x = torch.randn(2, 1, 64, 2 * 96 + 50)  # the last 50 frames fill no example
    expected = []
    for clip in x[:, 0].numpy().astype(np.float64):
        examples = [plain_layers(clip.T[start : start + 96], state) for start in (0, 96)]
        expected.append(
            [
                np.concatenate([plain_frames(layers[number]) for number in everything], 1)
                for layers in examples
            ]
        )
    frames = fused(x)
    assert frames.shape == (2, 12, fused.embedding_size)
    chronological = np.reshape(expected, frames.shape)  # example by example, six frames of each
    np.testing.assert_allclose(frames.numpy(), chronological, rtol=1e-4, atol=1e-4)

    plain, shorter = VGGish(), VGGish4K()
    plain.load_state_dict(fused.state_dict())
    shorter.load_state_dict({key: fused.state_dict()[key] for key in shorter.state_dict()})
    for encoder, size in ((plain, 12), (shorter, 24)):
        assert encoder.embedding_size == size
        offset = fused.embedding_size - (12 if encoder is plain else 12 + 20 + 24)
        vectors = frames[:, ::6, offset : offset + size]
        torch.testing.assert_close(encoder(x), vectors, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("narrow")
def test_a_fused_pair_is_a_part_of_all_layers() -> None:
    everything = trained_looking(VGGish(VGGish.layers))
    pair = VGGish((15, 10))  # in any order
    pair.load_state_dict({key: everything.state_dict()[key] for key in pair.state_dict()})
    x = torch.randn(1, 1, 64, 96)
    sizes = [4 * 64, 6 * 32, 8 * 16, 8 * 16, 10 * 8, 10 * 8]
    start = sum(sizes[:3])
    expected = everything(x)[..., start : start + sizes[3]], everything(x)[..., sum(sizes[:5]) : sum(sizes)]
    torch.testing.assert_close(pair(x), torch.cat(expected, dim=2))


def test_frames_are_centred_on_what_they_come_from() -> None:
    with torch.device("meta"):
        plain, fused = VGGish(), VGGish((10, 15))
    # A log-mel frame t is the 25 ms from 10 t ms on.
    assert plain.first_frame_centre_ms == sum(10 * t + 12.5 for t in range(96)) / 96
    assert fused.first_frame_centre_ms == sum(10 * t + 12.5 for t in range(16)) / 16 == 87.5
    assert (plain.frame_period_ms, fused.frame_period_ms) == (960, 160)
    assert plain.frontend.samples_for(plain.windows.min_frames) == 15_600


@pytest.mark.usefixtures("narrow")
def test_a_whole_number_of_examples_may_be_cut_anywhere_between_them() -> None:
    encoder = trained_looking(VGGish((10, 15)))
    x = torch.randn(1, 1, 64, 4 * 96 + 7)
    whole = encoder(x)
    parts = [encoder(x[..., :96]), encoder(x[..., 96:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    assert encoder.windows.kind == "exact"
    assert encoder.windows.frames % 96 == encoder.windows.context == 0


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="VGGish has no layer 3 to fuse"):
        VGGish((3, 10))
    with pytest.raises(ValueError, match="VGGish4K has no layer 20"):
        VGGish4K((20,))
