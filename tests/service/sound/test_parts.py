import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.errors import AudioUnreadable
from service.sound import parts as parts_module
from service.sound.audio import decode
from service.sound.parts import Slice, WholeFile, parts

from .sounds import FIXTURES, encoded, flac, loudest_hz, sine, wav, without_length

ID3V2 = b"ID3\3\0\0" + bytes([0, 2, 56, 64]) + bytes(40_000)
ID3V1 = b"TAG".ljust(128, b"\0")
APE_ITEM = struct.pack("<II", 4, 0) + b"Title\0Bark"
APE_SIZE = len(APE_ITEM) + 32
APE = b"".join(
    [
        b"APETAGEX" + struct.pack("<4I", 2000, APE_SIZE, 1, 0xA000_0000) + bytes(8),
        APE_ITEM,
        b"APETAGEX" + struct.pack("<4I", 2000, APE_SIZE, 1, 0x8000_0000) + bytes(8),
    ]
)
LYRICS_BODY = b"LYRICSBEGIN" + b"LYR00004" + b"woof"
LYRICS = LYRICS_BODY + f"{len(LYRICS_BODY):06d}".encode() + b"LYRICS200"

LOW, HIGH = sine(500, 16_000), sine(3_000, 48_000)
MAKERS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "WAV": lambda samples, rate_hz: wav(samples, rate_hz, "PCM_16"),
    "WAV of unknown length": lambda samples, rate_hz: _streamed(wav(samples, rate_hz, "PCM_16")),
    "AIFF": lambda samples, rate_hz: wav(samples, rate_hz, "PCM_16", "AIFF"),
    "AU": lambda samples, rate_hz: wav(samples, rate_hz, "PCM_16", "AU"),
    "CAF": lambda samples, rate_hz: wav(samples, rate_hz, "PCM_16", "CAF"),
    "W64": lambda samples, rate_hz: wav(samples, rate_hz, "PCM_16", "W64"),
    "FLAC": flac,
    "FLAC of unknown length": lambda samples, rate_hz: without_length(flac(samples, rate_hz)),
    "Ogg Vorbis": lambda samples, rate_hz: wav(samples, rate_hz, "VORBIS", "OGG"),
    "Ogg Opus": lambda samples, rate_hz: encoded("ogg", "libopus", samples, rate_hz),
    "WebM": lambda samples, rate_hz: encoded("webm", "libopus", samples, rate_hz),
    "WebM of unknown length": lambda samples, rate_hz: encoded(
        "webm", "libopus", samples, rate_hz, options={"live": "1"}
    ),
    "M4A": lambda samples, rate_hz: encoded("ipod", "aac", samples, rate_hz),
    "fragments of MP4": lambda samples, rate_hz: encoded(
        "mp4", "aac", samples, rate_hz, options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "WMA": lambda samples, rate_hz: encoded("asf", "wmav2", samples, rate_hz),
    "AAC": lambda samples, rate_hz: encoded("adts", "aac", samples, rate_hz),
    "MP3": lambda samples, rate_hz: encoded("mp3", "libmp3lame", samples, rate_hz),
}


def _streamed(file: bytes) -> bytes:
    at = file.index(b"data") + 4
    return file[:at] + b"\xff\xff\xff\xff" + file[at + 4 :]


@pytest.mark.parametrize("name", MAKERS)
def test_sounds_that_follow_each_other_in_a_file_are_heard_as_one(name: str) -> None:
    """At another rate, and once more, with a tag in between as text-to-speech services leave them."""
    make = MAKERS[name]
    low, high = make(LOW, 16_000), make(HIGH, 48_000)
    alone = [decode(each, sample_rate=16_000).duration_s for each in (low, high, low)]
    waveform = decode(low + high + ID3V1 + low, sample_rate=16_000)
    # MP3 and AAC are one row of frames, with a frame or two of their encoders' silence in between.
    slack_s = 0.16 if name in ("MP3", "AAC") else 1e-3
    if name == "WAV of unknown length":  # to which the tag is sound
        slack_s = 128 / 2 / 48_000 + 1e-3
    assert waveform.duration_s == pytest.approx(sum(alone), abs=slack_s)
    third = len(waveform.samples) // 3
    heard = [waveform.samples[i * third : (i + 1) * third][2000:-2000] for i in range(3)]
    assert [round(loudest_hz(each, 16_000), -2) for each in heard] == [500, 3000, 500]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("before", "behind"), [(ID3V2, b""), (ID3V2 + ID3V2, ID3V1), (b"", APE + LYRICS + ID3V1)]
)
def test_tags_around_a_sound_change_nothing(name: str, before: bytes, behind: bytes) -> None:
    file = MAKERS[name](LOW, 16_000)
    bare = decode(file, sample_rate=16_000)
    tagged = decode(before + file + behind, sample_rate=16_000)
    np.testing.assert_array_equal(tagged.samples, bare.samples)


@pytest.mark.parametrize("size", [b"\x7f\x7f\x7f\x7f", b"\0\0\0\0"])
def test_a_tag_that_lies_about_its_size_is_left_to_the_decoder(size: bytes) -> None:
    for count in (1, 5_000):
        with pytest.raises(AudioUnreadable):
            decode((b"ID3\3\0\0" + size) * count + b"not a sound at all", sample_rate=16_000)


def test_a_file_of_tags_alone_is_no_sound() -> None:
    with pytest.raises(AudioUnreadable, match="not audio in a known format"):
        decode(ID3V2 + ID3V1 + APE, sample_rate=16_000)


def test_a_sound_that_begins_across_two_searched_stretches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    both = without_length(flac(LOW, 16_000)) * 2
    for searched in range(900, 910):
        monkeypatch.setattr(parts_module, "SEARCHED_BYTES", searched)
        assert decode(both, sample_rate=16_000).duration_s == 2


def test_a_thousand_sounds_are_read_and_no_more() -> None:
    click = wav(sine(440, 16_000, 0.01), 16_000, "PCM_16")
    assert decode(click * 1000, sample_rate=16_000).duration_s == pytest.approx(10)
    with pytest.raises(AudioUnreadable, match="more than 1000 sounds, one behind the other; split it"):
        decode(click * 1001, sample_rate=16_000)


def test_the_limit_is_that_of_all_sounds_together() -> None:
    from service.errors import AudioTooLong

    with pytest.raises(AudioTooLong, match=r"lasts 3.0 s by its header, at most 2.5 s"):
        decode(wav(LOW, 16_000) * 3, sample_rate=16_000, max_audio_s=2.5)


def test_a_last_sound_that_was_broken_off_in_its_header_holds_none() -> None:
    opus = (FIXTURES / "fire_48k_mono.opus").read_bytes()
    assert decode(opus + opus[:60], sample_rate=16_000).duration_s == 3


def test_a_path_a_file_and_bytes_are_split_alike(tmp_path: Path) -> None:
    both = flac(LOW, 16_000) * 2
    (tmp_path / "both.flac").write_bytes(both)
    with (tmp_path / "both.flac").open("rb") as file:
        assert decode(file, sample_rate=16_000).duration_s == 2
    assert decode(tmp_path / "both.flac", sample_rate=16_000).duration_s == 2


def test_a_slice_is_a_file_with_other_bytes_in_some_places() -> None:
    slice_ = Slice(io.BytesIO(b"..0123456789...."), 2, 12, {2: b"ab", 5: b"c"})
    assert slice_.read() == b"01ab4c6789"
    for start, n in [(0, 3), (2, 1), (3, 1), (3, 4), (4, 9), (9, 9), (10, 1), (99, 1)]:
        slice_.seek(start)
        assert slice_.read(n) == b"01ab4c6789"[start : start + n]
    assert slice_.seek(-3, io.SEEK_END) == 7
    assert slice_.seek(1, io.SEEK_CUR) == 8
    buffer = bytearray(b"xxxxx")
    assert slice_.readinto(buffer) == 2
    assert buffer == b"89xxx"


@pytest.mark.parametrize("file", [Slice(io.BytesIO(b"0123"), 0, 4, {}), WholeFile(io.BytesIO(b"0123"))])
def test_an_impossible_seek_moves_nothing(file: Slice | WholeFile) -> None:
    assert file.seek(2) == 2
    assert file.seek(-5) == file.tell() == 2


def test_a_wav_is_read_from_the_file_itself() -> None:
    """Without anything in between, which costs time for each of its blocks."""
    (part,) = parts(io.BytesIO(wav(LOW, 16_000)))
    assert isinstance(part.file, WholeFile)
