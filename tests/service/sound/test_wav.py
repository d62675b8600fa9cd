import io
import struct
from contextlib import ExitStack

import numpy as np
import pytest
import soundfile

from service.sound.audio import decode
from service.sound.blocks import BLOCK_VALUES, Samples
from service.sound.libsndfile import SoundFileDecoder
from service.sound.parts import Part, parts
from service.sound.wav import wav_decoder

from .sounds import wav

RATE = 16_000


def integers(n: int, channels: int = 1) -> Samples:
    """(n, channels): every 16-bit number may come, the extremes do."""
    drawn = np.random.default_rng(n).integers(-(2**15), 2**15, (n, channels), dtype=np.int16)
    drawn[0], drawn[-1] = -(2**15), 2**15 - 1
    return (drawn / np.float32(2**15)).astype(np.float32)


def part_of(file: bytes) -> Part:
    (part,) = parts(io.BytesIO(file))
    return part


def by_libsndfile(file: bytes) -> Samples:
    with ExitStack() as stack:
        return np.concatenate([samples for samples, _ in SoundFileDecoder(part_of(file), stack).blocks()])


@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("n", [1, 1_000, BLOCK_VALUES + 1])
def test_the_samples_are_those_of_libsndfile(n: int, channels: int) -> None:
    file = wav(integers(n, channels), RATE, "PCM_16")
    decoder = wav_decoder(part_of(file))
    assert decoder is not None
    assert decoder.header_s == n / RATE
    blocks = list(decoder.blocks())
    assert {rate_hz for _, rate_hz in blocks} == {RATE}
    assert max(samples.size for samples, _ in blocks) <= BLOCK_VALUES
    np.testing.assert_array_equal(np.concatenate([samples for samples, _ in blocks]), by_libsndfile(file))


def test_chunks_before_the_samples_are_passed_over() -> None:
    file = wav(integers(1_000), RATE, "PCM_16")
    with_list = file[:36] + b"LIST" + struct.pack("<I", 5) + b"words\0" + file[36:]
    np.testing.assert_array_equal(decode(with_list, sample_rate=RATE).samples, integers(1_000)[:, 0])


def test_what_stands_behind_the_samples_is_no_sound() -> None:
    file = wav(integers(1_000), RATE, "PCM_16") + b"LIST" + struct.pack("<I", 4) + b"word"
    np.testing.assert_array_equal(decode(file, sample_rate=RATE).samples, integers(1_000)[:, 0])


@pytest.mark.parametrize("told", [0, 0x7FFF_F000, 0xFFFF_FFFF])
def test_a_wav_that_was_streamed_is_read_to_its_end(told: int) -> None:
    file = wav(integers(1_000), RATE, "PCM_16")
    streamed = file[:40] + struct.pack("<I", told) + file[44:]
    assert wav_decoder(part_of(streamed)) is not None
    np.testing.assert_array_equal(decode(streamed, sample_rate=RATE).samples, integers(1_000)[:, 0])


def test_half_a_frame_at_the_end_is_passed_over() -> None:
    file = wav(integers(1_000, 2), RATE, "PCM_16")
    longer = file[:40] + struct.pack("<I", 4_003) + file[44:] + bytes(3)
    decoder = wav_decoder(part_of(longer))
    assert decoder is not None
    (block,) = decoder.blocks()
    np.testing.assert_array_equal(block.samples, by_libsndfile(longer))
    assert len(block.samples) == 1_000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
def test_other_samples_are_left_to_libsndfile(subtype: str) -> None:
    assert wav_decoder(part_of(wav(integers(1_000), RATE, subtype))) is None


@pytest.mark.parametrize("container", ["RF64", "WAVEX"])
def test_other_headers_are_left_to_libsndfile(container: str) -> None:
    assert wav_decoder(part_of(wav(integers(1_000), RATE, "PCM_16", container))) is None


def test_a_big_endian_wav_is_left_to_libsndfile() -> None:
    out = io.BytesIO()
    soundfile.write(out, integers(1_000), RATE, "PCM_16", endian="BIG", format="WAV")
    assert wav_decoder(part_of(out.getvalue())) is None


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (22, struct.pack("<H", 0)),  # channels
        (22, struct.pack("<H", 2)),  # of which a frame then has too few bytes
        (24, struct.pack("<I", 0)),  # rate
        (34, struct.pack("<H", 12)),  # bits
        (12, b"fmt_"),
    ],
)
def test_a_header_that_contradicts_itself_is_left_to_libsndfile(at: int, new: bytes) -> None:
    file = wav(integers(1_000), RATE, "PCM_16")
    assert wav_decoder(part_of(file[:at] + new + file[at + len(new) :])) is None
