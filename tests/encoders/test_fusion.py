"""Which layers can be fused, and the order of their numbers in a frame."""

import pytest
import torch

from encoders.fusion import band_fastest, checked_layers, highest_in_time


def test_layers_are_taken_in_the_networks_order() -> None:
    assert checked_layers((15, 10), (2, 5, 10, 15), name="net") == (10, 15)
    assert checked_layers((), (2, 5), name="net") == ()


def test_a_layer_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="net has no layer 3 to fuse, only 2, 5"):
        checked_layers((2, 3), (5, 2), name="net")


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        checked_layers((2, 2), (2, 5), name="net")


def test_the_band_changes_fastest_within_a_fused_frame() -> None:
    C, T, F = 3, 4, 2
    c, t, f = torch.meshgrid(torch.arange(C), torch.arange(T), torch.arange(F), indexing="ij")
    x = (100 * t + 10 * c + f)[None].float()  # each value spells its frame, channel and band
    frames = band_fastest(x)
    assert frames.shape == (1, T, C * F)
    assert frames[0, 3].tolist() == [300, 301, 310, 311, 320, 321]


def test_the_maximum_is_taken_over_time_alone() -> None:
    x = torch.tensor([[[[1.0, 9.0], [3.0, 2.0], [5.0, 4.0]]]])  # three frames of two bands
    assert highest_in_time(x, 2).tolist() == [[[[3, 9]]]]  # the third fills no pair
    assert highest_in_time(x, 1) is x
