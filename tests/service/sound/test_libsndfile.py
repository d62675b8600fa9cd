import io
from contextlib import ExitStack

import numpy as np
import pytest

from service.errors import AudioUnreadable
from service.sound.audio import decode
from service.sound.blocks import BLOCK_VALUES
from service.sound.libsndfile import ERRORS, SoundFileDecoder
from service.sound.parts import parts

from .sounds import FIXTURES, WILD, flac, sine, wav, without_length

SPEECH = (FIXTURES / "speech_16k_mono.flac").read_bytes()
BEHIND = {
    "zeros": bytes(5_000),
    "an error page": b"<html><body>503</body></html>" * 200,
    "noise": np.random.default_rng(0).bytes(3_000),
}


def telling(samples: int, flac_file: bytes) -> bytes:
    """The FLAC, with another number of samples in its header."""
    stored = int.from_bytes(flac_file[21:26], "big") >> 36 << 36 | samples
    return flac_file[:21] + stored.to_bytes(5, "big") + flac_file[26:]


@pytest.mark.parametrize(
    ("subtype", "container"),
    [
        ("MS_ADPCM", "WAV"),
        ("IMA_ADPCM", "WAV"),
        ("GSM610", "WAV"),
        ("MPEG_LAYER_III", "MP3"),
        ("OPUS", "OGG"),
        ("VORBIS", "OGG"),
        ("ALAC_16", "CAF"),
    ],
)
def test_what_it_would_estimate_is_not_its_business(subtype: str, container: str) -> None:
    (part,) = parts(io.BytesIO(wav(sine(440, 8_000), 8_000, subtype, container)))
    with ExitStack() as stack, pytest.raises(ERRORS, match="is no PCM"):
        SoundFileDecoder(part, stack)


def test_a_format_that_nobody_else_knows_is_read_as_a_last_resort() -> None:
    for container in ("NIST", "VOC", "PAF", "IRCAM"):
        assert decode(wav(sine(440, 16_000), 16_000, "PCM_16", container), sample_rate=16_000).duration_s == 1


@pytest.mark.parametrize("told", [0, 1, 30_000, 80_000])
def test_a_flac_is_read_to_its_end_whatever_its_header_tells(told: int) -> None:
    samples = decode(telling(told, SPEECH), sample_rate=16_000).samples
    np.testing.assert_array_equal(samples, decode(SPEECH, sample_rate=16_000).samples)


@pytest.mark.parametrize("name", BEHIND)
def test_what_stands_behind_the_last_frame_of_a_flac_is_no_sound(name: str) -> None:
    samples = decode(SPEECH + BEHIND[name], sample_rate=16_000).samples
    np.testing.assert_array_equal(samples, decode(SPEECH, sample_rate=16_000).samples)
    # Without a length, and with bytes that are no tag, the last frame (2176 samples) may be lost among them.
    unknown = decode(without_length(SPEECH) + BEHIND[name], sample_rate=16_000).samples
    assert len(unknown) in (80_000 - 2176, 80_000)


@pytest.mark.parametrize("left", [1, 255, 511, 512, 4096])
def test_nothing_behind_a_flac_matters_however_little_is_left_for_its_last_block(left: int) -> None:
    stored = flac(np.resize(sine(440, 16_000), BLOCK_VALUES + left), 16_000)
    whole = decode(stored, sample_rate=16_000).samples
    assert len(whole) == BLOCK_VALUES + left
    np.testing.assert_array_equal(decode(stored + bytes(5_000), sample_rate=16_000).samples, whole)


@pytest.mark.parametrize("length", [len(SPEECH) // 3, len(SPEECH) - 20])
def test_a_flac_that_was_broken_off_is_refused(length: int) -> None:
    with pytest.raises(AudioUnreadable, match=r"ends early, or is damaged: its header promises 5\.00 s"):
        decode(SPEECH[:length], sample_rate=16_000)


def test_a_flac_that_was_broken_off_between_two_frames_is_refused() -> None:
    sync = SPEECH.index(b"\xff\xf8", len(SPEECH) // 2)
    with pytest.raises(AudioUnreadable, match=r"promises 5\.00 s and only 2\.\d\d s could be read; send the"):
        decode(SPEECH[:sync], sample_rate=16_000)


@pytest.mark.parametrize("flac_file", [SPEECH, without_length(SPEECH)], ids=["told", "untold"])
def test_a_flac_with_a_damaged_frame_is_refused(flac_file: bytes) -> None:
    """Its checksum is wrong; a frame is a quarter of a second."""
    damaged = flac_file[:50_000] + bytes(10) + flac_file[50_010:]
    with pytest.raises(AudioUnreadable, match="damaged"):
        decode(damaged, sample_rate=16_000)


def test_an_mp3_of_free_format_is_read_though_ffmpeg_refuses_it() -> None:
    assert decode(WILD / "m_freeformat.mp3", sample_rate=16_000).duration_s == pytest.approx(3.06)


def test_frames_that_ffmpeg_refuses_are_no_mp3(capfd: pytest.CaptureFixture[str]) -> None:
    """UTF-16 begins with the sign by which libsndfile knows an MP3, and it would write to the terminal."""
    with pytest.raises(AudioUnreadable, match="not audio in a known format"):
        decode("an ordinary text, some lines of it\n".encode("utf-16") * 99, sample_rate=16_000)
    assert capfd.readouterr() == ("", "")


def test_a_flac_of_more_channels_than_two_is_read_whole() -> None:
    channels = np.stack([sine(440, 16_000, 5)] * 6, axis=1)
    assert decode(flac(channels, 16_000), sample_rate=16_000).duration_s == 5
