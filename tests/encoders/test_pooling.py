"""Pooling over time, on numbers one can add in the head."""

import torch

from encoders.pooling import mean_max, sum_max

FRAMES = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [5.0, -9.0]]])  # one clip, three frames, two features


def test_a_clip_is_the_mean_plus_the_maximum_of_its_frames() -> None:
    assert mean_max(FRAMES).tolist() == [[3 + 5, -5 - 2]]


def test_sum_and_maximum_leave_out_what_lies_beyond_the_clip() -> None:
    total, highest = sum_max(FRAMES, torch.tensor([2]))
    assert total.tolist() == [[4, -6]]
    assert highest.tolist() == [[3, -2]]


def test_sum_and_maximum_give_the_clip_embedding() -> None:
    frames = torch.randn(4, 7, 5)
    count = torch.full((4,), 7)
    total, highest = sum_max(frames, count)
    torch.testing.assert_close(total / count[:, None] + highest, mean_max(frames))


def test_nan_beyond_the_clip_does_not_pass() -> None:
    spoilt = FRAMES.clone()
    spoilt[:, 2] = torch.nan
    total, highest = sum_max(spoilt, torch.tensor([2]))
    assert total.tolist() == [[4, -6]]
    assert highest.tolist() == [[3, -2]]


def test_windows_of_a_long_clip_pool_to_the_whole_clip() -> None:
    frames = torch.randn(1, 10, 3)
    sums, maxima = zip(
        *(sum_max(part, torch.tensor([part.shape[1]])) for part in frames.split(4, dim=1)), strict=True
    )
    whole = sum(sums) / 10 + torch.stack(maxima).amax(dim=0)
    torch.testing.assert_close(whole, mean_max(frames))
