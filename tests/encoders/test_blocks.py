"""Convolution blocks, masks, and the order in which features become a frame."""

import torch
from torch import nn

from encoders.blocks import MODULES_PER_BLOCK, conv_block, frame_mask, frames_of_features, run_blocks


def test_a_block_is_convolution_normalisation_activation_pooling() -> None:
    block = conv_block(1, 64)
    assert [type(module) for module in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    assert len(block) == MODULES_PER_BLOCK


def test_a_block_halves_both_axes_and_drops_an_odd_rest() -> None:
    assert nn.Sequential(*conv_block(1, 4))(torch.randn(2, 1, 9, 7)).shape == (2, 4, 4, 3)


def test_the_mask_is_true_where_a_frame_belongs_to_the_clip() -> None:
    mask = frame_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False, False, False], [True, True, False], [True, True, True]]


def test_the_channel_changes_fastest_within_a_frame() -> None:
    C, F, T = 3, 2, 4
    c, f, t = torch.meshgrid(torch.arange(C), torch.arange(F), torch.arange(T), indexing="ij")
    x = (100 * t + 10 * f + c)[None].float()  # each value spells its frame, band and channel
    frames = frames_of_features(x)
    assert frames.shape == (1, T, F * C)
    assert frames[0, 3].tolist() == [300, 301, 302, 310, 311, 312]
    assert all(
        frames[0, 0, band * C + channel] == 10 * band + channel for band in range(F) for channel in range(C)
    )


def test_the_valid_frames_are_halved_with_the_features() -> None:
    blocks = nn.Sequential(*conv_block(1, 4), *conv_block(4, 4)).eval()
    x, n_valid = run_blocks(blocks, torch.randn(3, 1, 8, 16), torch.tensor([16, 11, 3]))
    assert x.shape == (3, 4, 2, 4)
    assert n_valid is not None
    assert n_valid.tolist() == [4, 2, 0]


def test_without_valid_frames_the_blocks_are_a_plain_sequence() -> None:
    blocks = nn.Sequential(*conv_block(1, 4), *conv_block(4, 4)).eval()
    x = torch.randn(2, 1, 8, 16)
    features, n_valid = run_blocks(blocks, x, None)
    assert n_valid is None
    assert torch.equal(features, blocks(x))
