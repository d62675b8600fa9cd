"""MSM-MAE against its published sizes, and against timm's vision transformer with the same weights."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from encoders.msm_mae import MSMMAE, sincos_positions

from .conftest import n_parameters, trained_looking


def test_the_parameters_are_as_many_as_published() -> None:
    # The published count has no bias of the keys, which is zero here: 12 blocks of 768.
    assert n_parameters("msm-mae") == 85_295_616 + 12 * 768
    assert n_parameters("msm-mae", unit_frames=512) == 85_295_616 + 12 * 768 + 5 * (32 - 13) * 768


@pytest.mark.usefixtures("narrow")
def test_the_network_is_timms_without_its_class_token() -> None:
    encoder = trained_looking(MSMMAE())
    assert isinstance(encoder, MSMMAE)
    reference = VisionTransformer(img_size=(80, 208), patch_size=16, in_chans=1, num_classes=0, depth=2)
    reference.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 1, 80, 208)
    patches = reference.eval().forward_features(x)[:, 1:]  # (B, 65, 768), band by band
    expected = torch.stack(
        [torch.cat([patches[:, f * 13 + t] for f in range(5)], dim=1) for t in range(13)], dim=1
    )
    found = encoder(x)
    assert found.shape == (2, 13, 3840)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.pool(found), found.mean(dim=1))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("length", "frames"), [(1, 1), (16, 1), (17, 2), (208, 13), (900, 57), (1001, 63)])
def test_a_longer_clip_is_cut_in_units_and_the_last_one_filled_with_zeros(length: int, frames: int) -> None:
    encoder = trained_looking(MSMMAE())
    x = torch.randn(1, 1, 80, length)
    found = encoder(x)
    assert found.shape == (1, frames, 3840)
    assert encoder.count(torch.tensor([length])).tolist() == [frames]
    last = (length - 1) // 208 * 208
    filled = torch.cat([x[..., last:], torch.zeros(1, 1, 80, last + 208 - length)], dim=3)
    torch.testing.assert_close(found[:, last // 16 :], encoder(filled)[:, : frames - last // 16])


def test_untrained_positions_differ_for_every_patch() -> None:
    positions = sincos_positions(5, 13)
    assert positions.shape == (66, 768)
    assert not positions[0].any()  # of the class token
    assert positions[1].tolist() == [0] * 192 + [1] * 192 + [0] * 192 + [1] * 192  # the first band and column
    third_column = positions[1 + 2]
    assert third_column[:2] == pytest.approx([np.sin(2), np.sin(2 / 10_000 ** (1 / 192))])
    assert len(np.unique(positions.round(4), axis=0)) == 66


@pytest.mark.usefixtures("narrow")
def test_windows_hold_whole_units() -> None:
    assert MSMMAE().windows.frames == 5 * 208
    assert MSMMAE(512).windows.frames == 2 * 512
    assert MSMMAE.first_frame_centre_ms == sum(10 * t for t in range(16)) / 16
    assert MSMMAE(2048).windows.frames == 2048


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"unit_frames": 100}, "100 frames"),
        ({"width": 64, "heads": 3}, "A width of 64 is no whole number of 3 heads"),
        ({"width": 18, "heads": 3}, "A width of 18 is no multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MSMMAE(**sizes)


def test_a_narrow_one_is_timms_of_that_size() -> None:
    encoder = trained_looking(MSMMAE(unit_frames=32, width=24, depth=1, heads=3))
    assert isinstance(encoder, MSMMAE)
    reference = VisionTransformer(
        img_size=(80, 32), patch_size=16, in_chans=1, num_classes=0, embed_dim=24, depth=1, num_heads=3
    )
    reference.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 1, 80, 32)
    patches = reference.eval().forward_features(x)[:, 1:]
    expected = torch.cat([patches[:, 2 * f : 2 * f + 2] for f in range(5)], dim=2)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-4)
