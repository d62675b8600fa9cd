import io
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from service.errors import AudioTooLong, AudioUnreadable
from service.sound.audio import decode
from service.sound.ffmpeg import IS_FFMPEG_BOUNDED, MAX_ALLOC_BYTES, FFmpegDecoder
from service.sound.parts import parts

from .sounds import FIXTURES, WILD, encoded, loudest_hz, ogg_pages, sine, wav

ROOT = Path(__file__).parents[3]
TONE = sine(440, 16_000, 2)
LAME = encoded("mp3", "libmp3lame", TONE, 16_000)
TRUMPET = (FIXTURES / "trumpet_44k1_stereo.ogg").read_bytes()
M4A = (FIXTURES / "containers" / "keyword_yes_16k_mono.m4a").read_bytes()


def with_frames_told(mp3: bytes, n: int) -> bytes:
    """An MP3 whose first frame tells another number of frames."""
    at = mp3.index(b"Xing") if b"Xing" in mp3 else mp3.index(b"Info")
    assert mp3[at + 7] & 1
    return mp3[: at + 8] + struct.pack(">I", n) + mp3[at + 12 :]


def header_s(file: bytes) -> float:
    (part,) = parts(io.BytesIO(file))
    with ExitStack() as stack:
        return FFmpegDecoder(part, stack).header_s


@pytest.mark.parametrize("told", [0, 1, 20])
def test_an_mp3_is_read_to_its_end_however_few_frames_it_tells(told: int) -> None:
    whole = decode(LAME, sample_rate=16_000).duration_s
    assert decode(with_frames_told(LAME, told), sample_rate=16_000).duration_s == pytest.approx(
        whole, abs=0.1
    )


def test_an_mp3_that_tells_more_frames_than_it_has_was_broken_off() -> None:
    with pytest.raises(AudioUnreadable, match=r"promises 2\.\d\d s and only 1\.\d\d s could be read"):
        decode(LAME[: len(LAME) * 2 // 3], sample_rate=16_000)
    with pytest.raises(AudioUnreadable, match="ends early"):
        decode(with_frames_told(LAME, 100), sample_rate=16_000)


def test_a_vbri_header_tells_frames_too() -> None:
    """Fraunhofer's, 32 bytes behind the header of the first frame."""
    first = b"\xff\xfb\x50\xc4" + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, 9_000, 1_000)
    mp3 = first.ljust(144 * 64_000 // 44_100, b"\0") + encoded("mp3", "libmp3lame", sine(440, 44_100), 44_100)
    with pytest.raises(AudioUnreadable, match=r"promises 26\.12 s"):
        decode(mp3, sample_rate=16_000)


@pytest.mark.parametrize(
    ("file", "seconds"),
    [
        (LAME, 2.1),
        (M4A, 1.06),
        (encoded("webm", "libopus", sine(440, 48_000, 2), 48_000), 2.0),
        (encoded("asf", "wmav2", sine(440, 44_100, 2), 44_100), 2.0),
        # An estimate, or none at all: it may refuse nothing.
        (encoded("adts", "aac", TONE, 16_000), 0),
        (encoded("mp2", "mp2", TONE, 16_000), 0),
        (encoded("ogg", "libopus", sine(440, 48_000, 2), 48_000), 0),
        (encoded("webm", "libopus", sine(440, 48_000, 2), 48_000, options={"live": "1"}), 0),
        ((WILD / "ogg_opus_granule_offset.opus").read_bytes(), 0),
        ((WILD / "mp3_vbr_lame_into_pipe.mp3").read_bytes(), 0),
    ],
)
def test_a_header_is_believed_where_it_counts(file: bytes, seconds: float) -> None:
    assert header_s(file) == pytest.approx(seconds, abs=0.1)


def test_an_aac_that_begins_with_silence_is_not_taken_for_hours() -> None:
    """FFmpeg reckons 393 s from the bits per second of its first frames."""
    aac = WILD / "aac_adts_silence_first_needs_MAX_AUDIO_S_60.aac"
    assert decode(aac, sample_rate=16_000, max_audio_s=60).duration_s == pytest.approx(40.031, abs=0.01)
    with pytest.raises(AudioTooLong, match=r"lasts 3\d\.\d s or more, at most 30 s"):
        decode(aac, sample_rate=16_000, max_audio_s=30)


def two_tracks(codecs: tuple[str, str], default: int) -> bytes:
    """A Matroska of two tracks, of 500 and 3000 Hz; the one of that number is marked as default."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        tracks = [out.add_stream(codec, rate=48_000, layout="mono") for codec in codecs]
        for number, track in enumerate(tracks):
            track.disposition = int(number == default)
            track.codec_context.open()
        for track, frequency_hz in zip(tracks, (500, 3_000), strict=True):
            frame = av.AudioFrame.from_ndarray(sine(frequency_hz, 48_000)[None], format="fltp", layout="mono")
            frame.sample_rate = 48_000
            size = track.codec_context.frame_size or 1024
            resampler = av.AudioResampler(track.format, "mono", 48_000, frame_size=size)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(track.encode(piece))
            out.mux(track.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("codecs", "default", "heard_hz"),
    [
        (("libopus", "libopus"), 0, 500),
        (("libopus", "libopus"), 1, 3_000),
        (("ac3", "aac"), 0, 3_000),  # the default one cannot be decoded here
        (("aac", "ac3"), 1, 500),
    ],
)
def test_of_several_tracks_the_default_one_is_heard_if_it_can_be(
    codecs: tuple[str, str], default: int, heard_hz: int
) -> None:
    samples = decode(two_tracks(codecs, default), sample_rate=16_000).samples
    assert loudest_hz(samples, 16_000) == pytest.approx(heard_hz, abs=5)


def test_a_codec_that_is_not_known_here_is_named() -> None:
    with pytest.raises(AudioUnreadable, match=r"codec \(ac3, eac3\) is not one known here"):
        decode(two_tracks(("ac3", "eac3"), 0), sample_rate=16_000)
    with pytest.raises(AudioUnreadable, match=r"codec \(ac3\) is not one known here; send WAV"):
        decode(two_tracks(("ac3", "ac3"), 0), sample_rate=16_000)


def test_a_film_without_sound_is_told_so() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        picture = out.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        image = av.VideoFrame(64, 64, "yuv420p")
        out.mux([*picture.encode(image), *picture.encode(None)])
    with pytest.raises(AudioUnreadable, match="holds no audio stream"):
        decode(file.getvalue(), sample_rate=16_000)


@pytest.mark.parametrize(
    ("container", "codec", "layout"),
    [
        ("webm", "libopus", "7.1"),
        ("ogg", "libopus", "7.1"),
        ("matroska", "aac", "7.1"),
        ("ipod", "alac", "7.1(wide)"),
        ("matroska", "pcm_s16le", "7.1"),
        ("webm", "libopus", "5.1"),
    ],
)
def test_every_channel_of_eight_is_heard(container: str, codec: str, layout: str) -> None:
    """PyAV's own `to_ndarray` reads a ninth plane of eight, and the process ends."""
    rate_hz = 48_000
    waveform = decode(
        encoded(container, codec, sine(1_000, rate_hz), rate_hz, layout=layout), sample_rate=16_000
    )
    assert waveform.duration_s == pytest.approx(1, abs=0.05)
    assert loudest_hz(waveform.samples, 16_000) == pytest.approx(1_000, abs=2)


def test_channels_in_an_order_of_their_own_do_not_end_the_process(tmp_path: Path) -> None:
    """PyAV 17.1 to 18.1 frees the list of them twice. In a process of its own, to see it end."""
    mov = bytearray(encoded("mov", "pcm_s16le", sine(1_000, 48_000), 48_000, layout="7.1"))
    # Apple's number of a layout whose sides come before its back, in place of a bitmap of channels.
    struct.pack_into(">II", mov, mov.index(b"chan") + 8, 128 << 16 | 8, 0)
    (tmp_path / "eight.mov").write_bytes(mov)
    program = (
        "import sys; from pathlib import Path; from service.sound.audio import decode\n"
        "for _ in range(20): print(decode(Path(sys.argv[1]), sample_rate=16_000).duration_s)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "eight.mov")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1.0"] * 20


def test_a_page_that_is_lost_from_an_ogg_opus_is_damage() -> None:
    """Its second second is gone, or its checksum is wrong."""
    opus = (FIXTURES / "fire_48k_mono.opus").read_bytes()
    pages = ogg_pages(opus)
    flipped = bytearray(pages[3])
    flipped[500] ^= 1
    for damaged in (pages[:3] + pages[4:], [*pages[:3], bytes(flipped), *pages[4:]]):
        with pytest.raises(AudioUnreadable, match=r"is damaged: 1\.00 s or more of it cannot be decoded"):
            decode(b"".join(damaged), sample_rate=16_000)


def test_a_page_that_is_lost_from_an_ogg_vorbis_is_damage() -> None:
    pages = ogg_pages(TRUMPET)
    with pytest.raises(AudioUnreadable, match=r"is damaged: 0\.35 s or more of it cannot be decoded"):
        decode(b"".join(pages[:8] + pages[9:]), sample_rate=16_000)


def test_a_vorbis_recorded_from_its_middle_is_whole() -> None:
    """A radio's stream: its first page says that it is at so many seconds already."""
    pages = ogg_pages(TRUMPET)
    heard = decode(b"".join(pages[:2] + pages[5:]), sample_rate=44_100)
    whole = decode(TRUMPET, sample_rate=44_100)
    assert 4 < heard.duration_s < 4.5
    np.testing.assert_allclose(heard.samples[-100_000:], whole.samples[-100_000:], atol=1e-6)


@pytest.mark.parametrize("n", [1, 100, 500, 2_000, 5_000, 20_000, 90_000])
@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_a_vorbis_is_decoded_to_its_last_sample(n: int, rate_hz: int) -> None:
    """As by libvorbis, which is in libsndfile. FFmpeg takes up to 1024 samples off the end of a short one."""
    noise = np.random.default_rng(n).normal(scale=0.1, size=n).astype(np.float32)
    ogg = wav(noise, rate_hz, "VORBIS", "OGG")
    expected, _ = soundfile.read(io.BytesIO(ogg), dtype="float32")
    assert len(expected) == n
    np.testing.assert_allclose(decode(ogg, sample_rate=rate_hz).samples, expected, atol=1e-5)


def test_a_vorbis_whose_pages_tell_too_few_samples_is_heard_whole() -> None:
    """libsndfile would end where the last page says: after a tenth of it."""
    pages = [bytearray(page) for page in ogg_pages(TRUMPET)]
    for page in pages[2:]:
        struct.pack_into("<q", page, 6, struct.unpack_from("<q", page, 6)[0] // 10)
        seal(page)
    assert decode(b"".join(pages), sample_rate=16_000).duration_s == pytest.approx(5.33, abs=0.05)


def test_a_pause_in_an_ogg_opus_is_none() -> None:
    """A recorder of calls writes nothing while nobody speaks. No number of its pages is missing."""
    pages = [bytearray(page) for page in ogg_pages((FIXTURES / "fire_48k_mono.opus").read_bytes())]
    for page in pages[4:]:
        struct.pack_into("<q", page, 6, struct.unpack_from("<q", page, 6)[0] + 96_000)
        seal(page)
    assert decode(b"".join(pages), sample_rate=16_000).duration_s == pytest.approx(3, abs=0.01)


def seal(page: bytearray) -> None:
    """Ogg's checksum: CRC-32 by the polynomial 04C11DB7, unreflected, of the page with zeros in its place."""
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFF_FFFF
    page[22:26] = checksum.to_bytes(4, "little")


@pytest.mark.parametrize("n_bad", [1, 3])
def test_packets_that_cannot_be_decoded_are_damage_beyond_a_tenth_of_a_second(n_bad: int) -> None:
    """A packet of this M4A lasts 64 ms."""
    with av.open(io.BytesIO(M4A)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    damaged = bytearray(M4A)
    for at, size in packets[5 : 5 + n_bad]:
        damaged[at : at + size] = b"\xff" * size
    if n_bad == 1:
        assert decode(bytes(damaged), sample_rate=16_000).duration_s > 0.9
    else:
        with pytest.raises(AudioUnreadable, match=r"is damaged: 0\.1\d s or more of it cannot be decoded"):
            decode(bytes(damaged), sample_rate=16_000)


def test_what_stands_between_the_frames_of_an_mp3_is_passed_over() -> None:
    mp3 = encoded("mp3", "libmp3lame", TONE, 16_000)
    for foreign in (bytes(3_000), b"<html>503</html>" * 300, b"ID3\3\0\0\0\0\1\0" + bytes(128)):
        assert decode(mp3 + foreign + mp3, sample_rate=16_000).duration_s == pytest.approx(4.2, abs=0.2)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_alaw"])
@pytest.mark.parametrize("layout", ["mono", "3.0", "5.0", "7.0"])
def test_a_w64_is_read_to_its_last_sample_whatever_fills_its_last_bytes(layout: str, codec: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_001).astype(np.float32)
    samples = decode(encoded("w64", codec, noise, 16_000, layout=layout), sample_rate=16_000).samples
    assert len(noise) <= len(samples) < len(noise) + 8
    np.testing.assert_allclose(samples[: len(noise)], noise, atol=0.02 if codec == "pcm_alaw" else 1e-4)


def test_ffmpeg_allocates_no_more_than_it_may() -> None:
    assert IS_FFMPEG_BOUNDED, "PyAV's wheels for Linux hold FFmpeg's libraries"
    with pytest.raises(MemoryError):
        av.AudioFrame("s16", "mono", MAX_ALLOC_BYTES)


def test_blocks_keep_the_channels_apart() -> None:
    left, right = sine(500, 48_000), sine(3_000, 48_000)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        track = out.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        interleaved = (np.stack([left, right], axis=1) * 32_767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout="stereo")
        frame.sample_rate = 48_000
        out.mux([*track.encode(frame), *track.encode(None)])
    (part,) = parts(io.BytesIO(file.getvalue()))
    with ExitStack() as stack:
        blocks = list(FFmpegDecoder(part, stack).blocks())
    samples = np.concatenate([block.samples for block in blocks])
    np.testing.assert_allclose(samples, np.stack([left, right], axis=1), atol=2**-14)
    assert {block.rate_hz for block in blocks} == {48_000}
