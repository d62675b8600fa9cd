"""What teacher and student both hear: levels, rooms and filters, measured on the waveform that comes out."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.signal

from training.pretrain.recipe import WaveformRecipe, load_recipe
from training.pretrain.waveforms import (
    Waveforms,
    augmented,
    filter_response,
    gained,
    high_pass,
    in_rooms,
    levelled,
    limited,
    low_pass,
    mixtures,
    power_of,
    room_response,
    with_synthetic,
)

RATE = 16_000


@pytest.fixture
def noises() -> Waveforms:
    """(64, 1 s) of white noise at -20 dB of full scale, each its own."""
    return (0.1 * np.random.default_rng(0).standard_normal((64, RATE))).astype(np.float32)


@pytest.fixture
def plain() -> WaveformRecipe:
    """Nothing is done to a crop."""
    recipe = load_recipe("distil").waveform
    assert recipe
    return replace(
        recipe, synthetic_share=0.0, mix_share=0.0, filter_share=0.0, reverb_share=0.0, gain_db=(0.0, 0.0)
    )


def decibel(ratio: Waveforms) -> Waveforms:
    return 10 * np.log10(ratio)


# Mixtures


def test_a_crop_is_mixed_at_the_ratio_that_was_drawn(noises: Waveforms) -> None:
    snr_db = np.linspace(-5, 15, len(noises))
    others = 0.02 * np.roll(noises, 1, axis=0)
    added = levelled(others, noises, snr_db)
    found = decibel(power_of(noises) / power_of(added))
    np.testing.assert_allclose(found, snr_db, atol=1e-3)  # float32
    for one, other in zip(added, others, strict=True):  # it is the other crop, louder or fainter
        assert np.corrcoef(one, other)[0, 1] == pytest.approx(1, abs=1e-4)


def test_silence_has_no_ratio_and_is_added_or_added_to_as_it_is(noises: Waveforms) -> None:
    snr_db = np.full(len(noises), 10.0)
    silent = np.zeros_like(noises)
    np.testing.assert_array_equal(levelled(noises, silent, snr_db), noises)
    np.testing.assert_array_equal(levelled(silent, noises, snr_db), silent)


def test_half_of_the_crops_are_mixed_within_the_range(noises: Waveforms) -> None:
    mixed = mixtures(noises, 0.5, (-5.0, 15.0), n_others=1, random=np.random.default_rng(1))
    added = power_of(mixed - noises)
    changed = added > 0
    assert 20 <= changed.sum() <= 44  # of 64 at one half: beyond, one draw in a thousand
    snr_db = decibel(power_of(noises)[changed] / added[changed])
    assert -5.001 <= snr_db.min() < 0
    assert 10 < snr_db.max() <= 15.001


def test_a_long_crop_is_mixed_with_several_from_other_moments_on() -> None:
    clicks = np.zeros((8, RATE), dtype=np.float32)
    clicks[np.arange(8), 1000 * np.arange(8)] = 1.0  # each crop is one click of its own time
    mixed = mixtures(clicks, 1.0, (0.0, 0.0), n_others=3, random=np.random.default_rng(0))
    assert ((mixed != 0).sum(axis=1) == 4).all()
    np.testing.assert_allclose(power_of(mixed), 4 * power_of(clicks), rtol=1e-5)


# Rooms and filters


@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 1.0])
def test_the_tail_of_a_room_falls_by_60_decibels_in_its_time(rt60_s: float) -> None:
    room = room_response(2 * RATE, rt60_s, 0.0, RATE, np.random.default_rng(0))
    # Schroeder's backward integration (JASA 37, 1965), evaluated between -5 and -35 dB as ISO 3382's T30 is
    tail = room[1:].astype(np.float64)
    left_db = decibel(np.cumsum(tail[::-1] ** 2)[::-1] / (tail**2).sum())
    times_s = np.arange(len(tail)) / RATE
    part = (left_db <= -5) & (left_db >= -35)
    slope_db_per_s = np.polyfit(times_s[part], left_db[part], 1)[0]
    assert -60 / slope_db_per_s == pytest.approx(rt60_s, rel=0.03)


def test_the_direct_sound_comes_first_and_is_as_much_louder_as_drawn() -> None:
    room = room_response(RATE, 0.4, 9.0, RATE, np.random.default_rng(0)).astype(np.float64)
    assert room[0] == 1
    assert decibel(1 / (room[1:] ** 2).sum()) == pytest.approx(9.0, abs=1e-3)


def test_a_room_answers_after_the_sound_and_never_before(plain: WaveformRecipe) -> None:
    click = np.zeros((1, RATE), dtype=np.float32)
    click[0, 4000] = 0.5
    recipe = replace(plain, reverb_share=1.0, reverb_rt60_s=(0.3, 0.3))
    (heard,) = in_rooms(click, recipe, RATE, np.random.default_rng(0))
    before, after = heard[:3999], heard[4000:]
    assert np.abs(before).max() < 1e-5 * np.abs(heard).max()  # rounding of the transform
    assert np.abs(after[1:]).max() > 1e-4
    assert np.abs(heard).argmax() == 4000


def test_the_end_of_a_crop_does_not_come_round_to_its_beginning(plain: WaveformRecipe) -> None:
    late = np.zeros((1, RATE), dtype=np.float32)
    late[0, -100:] = 0.5
    recipe = replace(plain, reverb_share=1.0, reverb_rt60_s=(0.8, 0.8))
    (heard,) = in_rooms(late, recipe, RATE, np.random.default_rng(0))
    assert np.abs(heard[: RATE - 200]).max() < 1e-5


def test_a_filtered_or_reverberant_crop_is_as_loud_as_before(
    noises: Waveforms, plain: WaveformRecipe
) -> None:
    recipe = replace(plain, filter_share=0.5, reverb_share=0.5)
    heard = in_rooms(noises, recipe, RATE, np.random.default_rng(0))
    assert (np.abs(heard - noises).max(axis=1) > 0.01).sum() > 32
    np.testing.assert_allclose(power_of(heard), power_of(noises), rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_filters_are_butterworths(order: int) -> None:
    hz = np.array([100.0, 500.0, 1000.0, 2000.0, 4000.0])
    for ours, kind in ((low_pass, "low"), (high_pass, "high")):
        zeros_poles = scipy.signal.butter(order, 2 * np.pi * 1000, kind, analog=True)
        _, expected = scipy.signal.freqs(*zeros_poles, worN=2 * np.pi * hz)
        np.testing.assert_allclose(ours(hz, 1000.0, order), np.abs(expected), rtol=1e-9)


def test_every_filter_lets_something_through_and_none_lifts_more_than_its_bell() -> None:
    hz = np.arange(0, 8001, 10.0)
    responses = [filter_response(hz, np.random.default_rng(seed)) for seed in range(200)]
    assert all(response.max() > 0.5 for response in responses)
    assert max(response.max() for response in responses) <= 10 ** (12 / 20)
    assert min(response.min() for response in responses) >= 0
    assert len({response.tobytes() for response in responses}) == 200


# Level


def test_the_gain_of_every_crop_lies_in_its_range(noises: Waveforms) -> None:
    gain_db = decibel(power_of(gained(noises, (-20.0, 6.0), np.random.default_rng(0))) / power_of(noises))
    assert -20 <= gain_db.min() < -15
    assert 0 < gain_db.max() <= 6
    assert np.median(gain_db) == pytest.approx(-7, abs=3)


def test_a_crop_beyond_full_scale_is_brought_down_as_a_whole_and_no_other(noises: Waveforms) -> None:
    loud = noises.copy()
    loud[3] *= 20
    heard = limited(loud)
    assert np.abs(heard).max() == pytest.approx(1.0)
    np.testing.assert_allclose(heard[3], loud[3] / np.abs(loud[3]).max(), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(heard, 3, axis=0), np.delete(loud, 3, axis=0))


# All of it


def test_nothing_is_done_where_every_share_is_zero(noises: Waveforms, plain: WaveformRecipe) -> None:
    heard = augmented(noises, plain, sample_rate=RATE, is_long=False, random=np.random.default_rng(0))
    np.testing.assert_array_equal(heard, noises)


def test_a_share_of_the_crops_is_synthetic(noises: Waveforms) -> None:
    heard = with_synthetic(noises, 0.25, RATE, np.random.default_rng(0))
    replaced = (heard != noises).any(axis=1)
    assert 6 <= replaced.sum() <= 28  # of 64 at a quarter: beyond, one draw in a thousand
    assert (noises == with_synthetic(noises, 0.0, RATE, np.random.default_rng(0))).all()


def test_the_same_seed_gives_the_same_sounds_and_another_others(noises: Waveforms) -> None:
    recipe = load_recipe("distil").waveform
    assert recipe

    def heard(seed: int) -> Waveforms:
        return augmented(noises, recipe, sample_rate=RATE, is_long=True, random=np.random.default_rng(seed))

    first = heard(0)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, heard(0))
    assert (first != heard(1)).any()
