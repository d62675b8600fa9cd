"""The augmentations against float64 NumPy and PyTorch's own interpolation, and the distribution of draws."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional

from training.pretrain.augmentations import (
    CropDraw,
    MixupMemory,
    draw_crops,
    linear_fader,
    log_mixup_exp,
    mixup,
    post_normalise,
    resize_crop,
    view_of,
)
from training.pretrain.recipe import AugmentationRecipe

EPS = 1.1920929e-07
SCALE = (0.6, 1.5)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# Mixup


def test_two_sounds_are_mixed_in_power() -> None:
    random = np.random.default_rng(0)
    x, past = random.normal(0, 2, (2, 5, 1, 8, 12))
    ratio = random.uniform(0, 0.4, (5, 1, 1, 1))
    expected = np.log((1 - ratio) * np.exp(x) + ratio * np.exp(past) + EPS)
    mixed = log_mixup_exp(*(torch.from_numpy(array).float() for array in (x, past, ratio)))
    np.testing.assert_allclose(mixed.numpy(), expected, atol=2e-6)  # of float32, values up to 8


def test_half_and_half_of_two_equal_sounds_is_that_sound() -> None:
    x = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(log_mixup_exp(x, x, torch.tensor(0.5)), x)


def test_an_empty_memory_leaves_a_sound_as_it_is() -> None:
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(mixup(x, MixupMemory(8), 0.4, generator()), x)


def test_the_ratio_is_uniform_up_to_alpha_and_each_sample_has_its_own() -> None:
    memory = MixupMemory(1)
    memory.push(torch.full((1, 1, 1, 1), -100.0))  # nothing: ln(1 - ratio) remains of x = 0
    ratio = 1 - mixup(torch.zeros(20_000, 1, 1, 1), memory, 0.4, generator()).exp().flatten()
    assert len(ratio.unique()) > 19_000
    assert ratio.min() >= -1e-6
    assert 0.399 < ratio.max() <= 0.4 + 1e-6
    assert ratio.mean() == pytest.approx(0.2, abs=0.003)  # four standard errors
    assert ratio.std() == pytest.approx(0.4 / math.sqrt(12), abs=0.002)


def test_each_sample_is_mixed_with_a_past_sound_of_its_own() -> None:
    memory = MixupMemory(64)
    memory.push(torch.arange(64.0).reshape(64, 1, 1, 1))
    drawn = memory.draw(10_000, generator()).flatten()
    counts = torch.bincount(drawn.long(), minlength=64)
    assert counts.min() > 10_000 / 64 * 0.6  # every sound equally often: 156 times, give or take 12
    assert counts.max() < 10_000 / 64 * 1.4


def test_the_memory_keeps_the_newest_sounds_first_in_first_out() -> None:
    memory = MixupMemory(2048)
    for start in range(0, 5000, 500):
        memory.push(torch.arange(start, start + 500.0).reshape(500, 1, 1, 1))
    assert memory.sounds.flatten().tolist() == list(range(5000 - 2048, 5000))


def test_a_batch_larger_than_the_memory_leaves_its_newest() -> None:
    memory = MixupMemory(3)
    memory.push(torch.arange(5.0).reshape(5, 1, 1, 1))
    assert memory.sounds.flatten().tolist() == [2, 3, 4]


# Random resize crop


def crop_of(*boxes: tuple[int, int, int, int]) -> CropDraw:
    top, height, left, width = torch.tensor(boxes).T
    return CropDraw(top=top, height=height, left=left, width=width)


def with_interpolate(x: Tensor, crop: CropDraw) -> Tensor:
    """The same crops in float64, sample by sample, out of an area filled with zeros."""
    _, _, F, T = x.shape
    area = functional.pad(x.double(), (T // 4, T // 4))
    views = []
    for i, sample in enumerate(area):
        top, height, left, width = (int(axis[i]) for axis in (crop.top, crop.height, crop.left, crop.width))
        box = sample[None, :, top : top + height, left : left + width]
        views.append(functional.interpolate(box, (F, T), mode="bicubic", align_corners=True))
    return torch.cat(views)


def test_crops_are_resized_as_by_interpolate() -> None:
    x = torch.randn(200, 1, 64, 96)
    crop = draw_crops(x, SCALE, SCALE, 1.5, generator())
    view = resize_crop(x, crop, 1.5)
    # Positions are float32: 1e-5 of a step of up to 143, times differences of neighbours of up to 8.
    np.testing.assert_allclose(view.numpy(), with_interpolate(x, crop).numpy(), atol=1e-4)


def test_the_smallest_and_the_largest_crop_are_resized_as_by_interpolate() -> None:
    x = torch.randn(5, 1, 64, 96)
    crop = crop_of((0, 1, 30, 1), (0, 64, 0, 144), (63, 1, 143, 1), (3, 2, 70, 2), (26, 38, 87, 57))
    np.testing.assert_allclose(
        resize_crop(x, crop, 1.5).numpy(), with_interpolate(x, crop).numpy(), atol=1e-4
    )


def test_bicubic_is_keys_kernel_written_out() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(6, 7))  # F, T; the area is 7 + 2 * 1 = 10 wide (int of 7 * 1.5)
    area = np.zeros((6, 10))
    area[:, 1:8] = x
    box = area[1:6, 2:8]
    crop = crop_of((1, 5, 2, 6))
    view = resize_crop(torch.from_numpy(x).float()[None, None], crop, 1.5)
    np.testing.assert_allclose(view[0, 0].numpy(), bicubic(bicubic(box, 6).T, 7).T, atol=1e-5)


def bicubic(x: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """Resize the first axis, corner to corner; beyond the edge the edge is repeated."""
    out = np.zeros((rows, x.shape[1]))
    for row in range(rows):
        position = row * (len(x) - 1) / (rows - 1)
        for neighbour in range(math.floor(position) - 1, math.floor(position) + 3):
            d = abs(position - neighbour)
            weight = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            out[row] += (weight if d < 2 else 0) * x[min(max(neighbour, 0), len(x) - 1)]
    return out


def test_the_crop_of_the_segment_itself_changes_nothing() -> None:
    x = torch.randn(2, 1, 64, 96)
    view = resize_crop(x, crop_of((0, 64, 24, 96), (0, 64, 24, 96)), 1.5)
    torch.testing.assert_close(view, x, atol=1e-4, rtol=0)


def test_a_crop_beyond_the_segment_shows_the_datasets_mean() -> None:
    view = resize_crop(torch.full((1, 1, 64, 96), 5.0), crop_of((0, 64, 0, 144)), 1.5)
    assert torch.equal(view[..., :14], torch.zeros(1, 1, 64, 14))  # 24 of 144 frames on either side
    assert torch.equal(view[..., -14:], torch.zeros(1, 1, 64, 14))
    torch.testing.assert_close(view[..., 30:66], torch.full((1, 1, 64, 36), 5.0))


def test_the_sizes_of_crops_are_distributed_as_published() -> None:
    x = torch.empty(100_000, 1, 64, 96)
    crop = draw_crops(x, SCALE, SCALE, 1.5, generator())
    assert crop.height.min() == 38
    assert crop.height.max() == 64
    assert (crop.height == 64).double().mean() == pytest.approx(0.5 / 0.9, abs=0.005)
    assert crop.width.min() == 57
    assert crop.width.max() == 143
    assert (crop.width < 96).double().mean() == pytest.approx(0.4 / 0.9, abs=0.005)


def test_every_position_of_a_crop_is_equally_likely_the_last_included() -> None:
    x = torch.empty(100_000, 1, 64, 96)
    crop = draw_crops(x, SCALE, SCALE, 1.5, generator())
    assert (crop.top + crop.height).max() == 64
    assert (crop.left + crop.width).max() == 144
    assert crop.top.min() == crop.left.min() == 0
    at_100 = crop.left[crop.width == 100]
    counts = torch.bincount(at_100, minlength=45).double()
    assert len(counts) == 45
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 44 + 5 * math.sqrt(2 * 44)


def test_height_and_width_of_a_crop_are_drawn_apart() -> None:
    crop = draw_crops(torch.empty(100_000, 1, 64, 96), SCALE, SCALE, 1.5, generator())
    pairs = torch.stack([crop.height, crop.width]).double()
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.015


# Fader and post-normalisation


def test_the_fader_adds_one_line_to_every_band() -> None:
    fade = linear_fader(torch.zeros(1000, 1, 4, 96), 1.0, generator())
    assert torch.equal(fade[:, :, :1].expand_as(fade), fade)
    ends = fade[:, 0, 0, [0, -1]].double().numpy()
    lines = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.linspace(0, 1, 96)
    np.testing.assert_allclose(fade[:, 0, 0].numpy(), lines, atol=1e-6)
    assert np.abs(ends).max() <= 1
    assert np.abs(ends.mean(axis=0)).max() < 0.08  # of U(-1, 1): a standard error of 0.018
    np.testing.assert_allclose(ends.std(axis=0), 1 / math.sqrt(3), atol=0.05)
    assert abs(np.corrcoef(ends.T)[0, 1]) < 0.15


def test_the_faders_gain_is_its_largest_change() -> None:
    fade = linear_fader(torch.zeros(2000, 1, 1, 2), 0.5, generator())
    assert 0.49 < fade.abs().max() <= 0.5


def test_post_normalisation_is_over_all_views_with_the_unbiased_std() -> None:
    views = np.random.default_rng(0).normal(3, 4, (2, 2, 1, 3, 5))
    expected = (views - views.mean()) / views.std(ddof=1)
    np.testing.assert_allclose(post_normalise(torch.from_numpy(views).float()).numpy(), expected, atol=1e-6)


def test_post_normalisation_of_silence_is_zero() -> None:
    assert torch.equal(post_normalise(torch.full((2, 1, 1, 4, 4), 7.0)), torch.zeros(2, 1, 1, 4, 4))


# A whole view


def make_view(memory: MixupMemory, x: Tensor, seed: int) -> Tensor:
    recipe = AugmentationRecipe(
        mixup_alpha=0.2,
        mixup_memory=memory.size,
        crop_freq_scale=SCALE,
        crop_time_scale=SCALE,
        virtual_time_scale=1.5,
        fader_gain=1.0,
    )
    return view_of(memory, recipe)(x, generator(seed))


def test_the_same_seed_gives_the_same_view_and_another_another() -> None:
    memory = MixupMemory(8)
    memory.push(torch.randn(8, 1, 64, 96))
    x = torch.randn(4, 1, 64, 96)
    assert torch.equal(make_view(memory, x, 1), make_view(memory, x, 1))
    assert not torch.equal(make_view(memory, x, 1), make_view(memory, x, 2))


def test_every_sample_of_a_batch_has_draws_of_its_own() -> None:
    x = torch.randn(1, 1, 64, 96).expand(6, 1, 64, 96)
    views = make_view(MixupMemory(8), x, 0)
    distances = torch.cdist(views.flatten(1), views.flatten(1))
    assert (distances + 1e3 * torch.eye(6) > 1).all()


def test_a_view_leaves_its_input_and_the_memory_alone() -> None:
    memory = MixupMemory(8)
    memory.push(torch.randn(8, 1, 64, 96))
    x, past = torch.randn(4, 1, 64, 96), memory.sounds.clone()
    before = x.clone()
    assert make_view(memory, x, 0).shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(memory.sounds, past)
