"""Fused layers of BYOL-A: their sizes, their order, and how the early ones come to the rate of the last."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import encoders
from encoders.byola_2020 import AudioNTT2020
from encoders.byola_2022 import AudioNTT2022
from encoders.byola_layers import BYOLALayers, averaged_in_pairs

from .conftest import look_trained, n_parameters, trained_looking


def thinned(frames: list[NDArray[np.float32]], n: int) -> list[NDArray[np.float32]]:
    """Frames (D,) of one clip, averaged in pairs until there are n; of an odd number, the last two first."""
    while len(frames) > n:
        if len(frames) % 2:
            frames = [*frames[:-2], (frames[-2] + frames[-1]) / 2]
        frames = [(a + b) / 2 for a, b in zip(frames[::2], frames[1::2], strict=True)]
    return frames


@pytest.mark.parametrize("length", [8, 9, 15, 96, 101, 103])
def test_the_layered_variant_is_all_five_layers_filled_up_with_zeros(length: int) -> None:
    encoder = AudioNTT2020(d=2048)
    look_trained(encoder)
    layered = BYOLALayers(encoder, (1, 2, 3, 4, 5), size=2048).eval()
    assert encoders.build_any("byola-2020-layered").embedding_size == layered.embedding_size == 10_240
    x = torch.randn(1, 1, 64, length)
    n = length // 8

    features, blocks = x, []
    for start in (0, 4, 8):
        features = encoder.features[start : start + 4](features)
        C, F, T = features.shape[1:]
        frames = [
            np.array([float(features[0, c, f, t]) for c in range(C) for f in range(F)], dtype=np.float32)
            for t in range(T)
        ]  # channel-major
        blocks.append(np.pad(np.stack(thinned(frames, n)), ((0, 0), (0, 2048 - C * F))))
    last = features.permute(0, 3, 2, 1).flatten(start_dim=2)[0]
    hidden = encoder.fc[1](encoder.fc[0](last))
    expected = np.concatenate([*blocks, hidden.numpy(), encoder(x)[0].numpy()], axis=1)

    found = layered(x)
    assert found.shape == (1, n, 10_240)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layered.pool(found), found.mean(dim=1) + found.amax(dim=1))


def test_each_layer_of_v2_can_be_fused_alone() -> None:
    encoder = AudioNTT2022(d=1024 + 96, mlp_hidden_d=80)
    look_trained(encoder)
    x = torch.randn(2, 1, 64, 50)
    frames = encoder(x)
    sizes = [2048, 1024, 80, 96]
    taps = [BYOLALayers(encoder, (k,)).eval()(x) for k in (1, 2, 3, 4)]
    assert [tap.shape for tap in taps] == [(2, 12, size) for size in sizes]
    torch.testing.assert_close(taps[3], frames[..., 1024:])
    c, f = 5, 9  # the encoder has the channel fastest, a fused layer the band
    torch.testing.assert_close(taps[1][..., c * 16 + f], frames[..., f * 64 + c])
    together = BYOLALayers(encoder, (4, 1)).eval()(x)
    torch.testing.assert_close(together, torch.cat([taps[0], taps[3]], dim=2))


def test_an_odd_last_frame_shares_in_the_pair_before_it() -> None:
    x = torch.arange(5.0)[None, :, None]
    assert averaged_in_pairs(x, torch.tensor([5])).flatten().tolist() == [0.5, (2 + (3 + 4) / 2) / 2]
    assert averaged_in_pairs(x, torch.tensor([4])).flatten().tolist() == [0.5, 2.5]
    assert averaged_in_pairs(x, torch.tensor([3])).flatten().tolist()[0] == (0 + (1 + 2) / 2) / 2


def test_the_weights_are_those_of_the_encoder_under_its_own_names() -> None:
    encoder = AudioNTT2020(d=64)
    fused = BYOLALayers(encoder, (1, 5))
    assert fused.state_dict().keys() == encoder.state_dict().keys()
    assert n_parameters("byola-2020", d=2048, fuse=(2, 5)) == n_parameters("byola-2020-layered") == 5_321_856
    assert fused.embedding_size == 2048 + 64


@pytest.mark.parametrize("name", ["byola-2020", "byola-2022"])
def test_beyond_the_context_a_cut_leaves_no_trace(name: str) -> None:
    sizes = {"byola-2020": {"d": 64}, "byola-2022": {"d": 1088, "mlp_hidden_d": 64}}[name]
    encoder = trained_looking(encoders.build_any(name, fuse=(1, 2, 4), **sizes))
    x = torch.randn(1, 1, 64, 101)
    whole = encoder(x)
    cut = 6 * encoder.windows.stride
    context = encoder.windows.context
    left, right = encoder(x[..., :cut]), encoder(x[..., cut:])
    atol = 1e-5 * float(whole.abs().max())  # sums in another order
    torch.testing.assert_close(left[:, :-context], whole[:, : 6 - context], rtol=0, atol=atol)
    torch.testing.assert_close(right[:, context:], whole[:, 6 + context :], rtol=0, atol=atol)


def test_what_cannot_be_fused_is_refused() -> None:
    with pytest.raises(ValueError, match="AudioNTT2020 has no layer 6"):
        BYOLALayers(AudioNTT2020(d=64), (6,))
    with pytest.raises(ValueError, match="from 1 to 4"):
        BYOLALayers(AudioNTT2022(), ())
    with pytest.raises(ValueError, match="2048 numbers cannot be filled up to 512"):
        BYOLALayers(AudioNTT2020(d=512), (1, 2, 3, 4, 5), size=512)  # as the layered variant below d = 2048
