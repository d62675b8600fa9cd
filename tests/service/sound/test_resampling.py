from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soxr

from service.inference.model import Model
from service.inference.windows import embed
from service.sound.resampling import Resampler, resampled

ROOT = Path(__file__).parents[3]
RATES = [1_000, 8_000, 11_025, 22_255, 44_100, 44_099, 48_000, 192_000, 768_000]


def in_blocks(samples: np.ndarray, rate_hz: int, n: int) -> list[tuple[np.ndarray, int]]:
    return [(samples[at : at + n], rate_hz) for at in range(0, len(samples), n)]


def at_16_khz(samples: np.ndarray, rate_hz: int, n: int | None = None) -> np.ndarray:
    return np.concatenate(list(resampled(in_blocks(samples, rate_hz, n or len(samples)), 16_000)))


def of_a_long_mirror(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """As one piece, with a whole second of mirror image at both ends."""
    whole = soxr.resample(np.pad(samples, rate_hz, mode="reflect"), rate_hz, 16_000, quality="HQ")
    return whole[16_000 : 16_000 + round(len(samples) * 16_000 / rate_hz)]


@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("n", [1, 2, 50, 1_000, 30_000])
def test_blocks_are_resampled_as_one_piece_with_a_longer_mirror(rate_hz: int, n: int) -> None:
    """soxr's "HQ" has 20 bits: what is beyond its filter's reach changes a millionth of full scale."""
    noise = np.random.default_rng(n).uniform(-0.5, 0.5, n).astype(np.float32)
    expected = of_a_long_mirror(noise, rate_hz)
    for size in (n, 777, 13_000):
        np.testing.assert_allclose(at_16_khz(noise, rate_hz, size), expected, atol=2e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 96_000])
def test_a_clip_begins_and_ends_where_it_did(rate_hz: int) -> None:
    """An offset, and a tone cut at its crests: with zeros outside them, the first samples would be half as
    high, and ring."""
    times_s = np.arange(rate_hz // 10) / rate_hz
    np.testing.assert_allclose(at_16_khz(np.full(rate_hz, 0.1, np.float32), rate_hz), 0.1, atol=1e-5)
    tone = at_16_khz(np.cos(2 * np.pi * 500 * times_s).astype(np.float32), rate_hz)
    expected = np.cos(2 * np.pi * 500 * np.arange(len(tone)) / 16_000)
    np.testing.assert_allclose(tone[:1000], expected[:1000], atol=2e-3)


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("frequency_hz", [120, 1_000, 3_500])
def test_a_tone_that_begins_at_its_crest_has_the_embedding_of_one_made_at_16_khz(
    frequency_hz: int, offset: float
) -> None:
    """With zeros outside the clip the cosine is 0.94 at its lowest."""
    model = Model.load(ROOT / "models" / "byola", device="cpu", precision="float32")
    made = {
        rate_hz: offset + 0.5 * np.cos(2 * np.pi * frequency_hz * np.arange(rate_hz) / rate_hz)
        for rate_hz in (16_000, 44_100)
    }
    samples = (made[16_000].astype(np.float32), at_16_khz(made[44_100].astype(np.float32), 44_100))
    one, other = (embed(model.run, model.card, [model.logmel(each)]).vector for each in samples)
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.999


def test_where_the_rate_changes_each_part_is_resampled_by_itself() -> None:
    tones = [
        np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz).astype(np.float32)
        for rate_hz in (44_100, 16_000, 8_000)
    ]
    parts = [*in_blocks(tones[0], 44_100, 9_999), *in_blocks(tones[1], 16_000, 9_999), (tones[2], 8_000)]
    together = np.concatenate(list(resampled(parts, 16_000)))
    alone = [at_16_khz(tone, rate_hz) for tone, rate_hz in zip(tones, (44_100, 16_000, 8_000), strict=True)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_a_stream_without_end_is_resampled_block_by_block() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 4_410).astype(np.float32)
    endless = iter(lambda: (noise, 44_100), None)
    assert sum(map(len, islice(resampled(endless, 16_000), 100))) > 90 * 1_600


def test_no_samples_are_none() -> None:
    assert list(resampled([], 16_000)) == []


@pytest.mark.parametrize("sizes", [[1, 3, 5_000], [700, 1, 1], [256, 256, 256], [10_000, 2, 10_000]])
def test_pieces_of_any_length_in_any_order_are_one_sound(sizes: list[int]) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000).astype(np.float32)
    resampler = Resampler(8_000, 16_000)
    out, at, turn = [], 0, 0
    while at < len(noise):
        size = sizes[turn % len(sizes)]
        out.append(resampler.push(noise[at : at + size]))
        at, turn = at + size, turn + 1
    out.append(resampler.close())
    whole = Resampler(8_000, 16_000)
    expected = np.concatenate([whole.push(noise), whole.close()])
    np.testing.assert_array_equal(np.concatenate(out), expected)
