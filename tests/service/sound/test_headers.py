import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest

from service.errors import AudioTooShort, AudioUnreadable, ViolaError
from service.sound import headers
from service.sound.audio import decode
from service.sound.headers import flac_samples
from service.sound.parts import KINDS, parts

from .sounds import WILD, encoded, flac, sine, wav, with_size, without_length

TONE = sine(440, 16_000)
N = len(TONE)

# file, the chunk that tells how much sound there is, how its size is written
CHUNKED = {
    "WAV": (wav(TONE, 16_000, "PCM_16"), b"data", "<I"),
    "RIFX": (b"", b"data", ">I"),
    "AIFF": (wav(TONE, 16_000, "PCM_16", "AIFF"), b"SSND", ">I"),
    "AU": (wav(TONE, 16_000, "PCM_16", "AU"), b".snd" + struct.pack(">I", 24), ">I"),
    "CAF": (wav(TONE, 16_000, "PCM_16", "CAF"), b"data", ">Q"),
    "W64": (wav(TONE, 16_000, "PCM_16", "W64"), headers.W64_DATA, "<Q"),
    "RF64": (wav(TONE, 16_000, "PCM_16", "RF64"), b"ds64" + struct.pack("<I", 28) + bytes(8), "<Q"),
}


def chunked(name: str) -> tuple[bytes, bytes, str]:
    file, chunk, form = CHUNKED[name]
    if name == "RIFX":
        import soundfile

        out = io.BytesIO()
        soundfile.write(out, TONE, 16_000, subtype="PCM_16", format="WAV", endian="BIG")
        file = out.getvalue()
    if name == "RF64":  # libsndfile tells the size of the file before that of the samples
        at = file.index(b"ds64")
        chunk = file[at : at + 16]
    return file, chunk, form


@pytest.mark.parametrize("name", CHUNKED)
def test_a_header_that_promises_more_than_there_is_belongs_to_a_broken_file(name: str) -> None:
    file, _, _ = chunked(name)
    with pytest.raises(AudioUnreadable, match=r"ends early: its header promises \d+ bytes .* send the whole"):
        decode(file[: len(file) // 2], sample_rate=16_000)


@pytest.mark.parametrize("name", CHUNKED)
def test_a_few_bytes_may_be_missing(name: str) -> None:
    """Writers count the header in, or a byte of padding."""
    file, _, _ = chunked(name)
    assert len(decode(file[:-8], sample_rate=16_000).samples) == N - 4


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("size", ["0", "the most", "2^31"])
def test_a_header_that_was_never_completed_leaves_the_sound_whole(name: str, size: str) -> None:
    """A recorder that crashed, and programs that write into a pipe."""
    file, chunk, form = chunked(name)
    most = (1 << 8 * struct.calcsize(form)) - 1
    streamed = with_size(file, chunk, {"0": 0, "the most": most, "2^31": 1 << 31}[size], form)
    samples = decode(streamed, sample_rate=16_000).samples
    np.testing.assert_allclose(samples, TONE, atol=2**-15)


@pytest.mark.parametrize("name", ["WAV", "RIFX", "AIFF"])
def test_an_empty_sound_before_another_chunk_stays_empty(name: str) -> None:
    file, chunk, form = chunked(name)
    order = form[0]
    at = file.index(chunk) + 8
    before = 8 if name == "AIFF" else 0
    behind = (
        b"LIST" + struct.pack(f"{order}I", 5) + b"INFO0\0" + b"JUNK" + struct.pack(f"{order}I", 2) + b"ab"
    )
    empty = with_size(file[: at + before] + behind, chunk, before, form)
    with pytest.raises(AudioTooShort, match="holds no samples"):
        decode(empty, sample_rate=16_000)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("ipod", "aac", {}),
        ("matroska", "pcm_s16le", {}),
        ("webm", "libopus", {}),
        ("asf", "wmav2", {}),
    ],
)
def test_containers_that_tell_their_bytes_are_held_to_them(
    container: str, codec: str, options: dict[str, str]
) -> None:
    file = encoded(container, codec, sine(440, 48_000, 2), 48_000, options=options)
    with pytest.raises(AudioUnreadable, match=r"ends early: its header promises \d+ bytes"):
        decode(file[: len(file) * 3 // 4], sample_rate=16_000)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}),
        ("matroska", "aac", {"live": "1"}),
        ("adts", "aac", {}),
        ("ogg", "libopus", {}),
        ("mp2", "mp2", {}),
    ],
)
def test_a_file_that_tells_no_length_is_read_to_its_end(
    container: str, codec: str, options: dict[str, str]
) -> None:
    file = encoded(container, codec, sine(440, 48_000, 2), 48_000, options=options)
    whole = decode(file, sample_rate=16_000)
    half = decode(file[: len(file) // 2], sample_rate=16_000)
    assert 0.3 < half.duration_s < 0.7 * whole.duration_s
    np.testing.assert_allclose(half.samples[:4000], whole.samples[:4000], atol=1e-3)


def test_a_last_frame_that_is_not_whole_is_passed_over_however_long_it_is() -> None:
    """At 8 kHz a frame of AAC lasts 0.128 s, more than may be damaged within a sound."""
    fragments = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "10000000"}
    file = encoded("mp4", "aac", sine(440, 8_000, 3), 8_000, options=fragments)
    lengths = range(len(file) // 2, len(file) // 2 + 2_000, 97)
    heard_s = [decode(file[:length], sample_rate=16_000).duration_s for length in lengths]
    assert 0.5 < heard_s[0] < heard_s[-1] < 3


def test_an_mp4_without_its_index_is_told_so() -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "200000"}
    file = encoded("mp4", "aac", sine(440, 48_000, 2), 48_000, options=fragments)
    piece = file[file.index(b"moof", 4000) - 4 :]
    with pytest.raises(AudioUnreadable, match=r"lacks its index \(moov\)"):
        decode(piece, sample_rate=16_000)


def test_a_later_piece_of_a_webm_recording_is_told_so() -> None:
    with pytest.raises(AudioUnreadable, match=r"later piece of a WebM recording; send .* from its beginning"):
        decode(WILD / "w_without_header.webm", sample_rate=16_000)


def test_a_flood_of_chunks_is_refused() -> None:
    """Eight bytes each: millions of them fit into an upload."""
    flood = wav(TONE, 16_000)[:12] + b"JUNK\0\0\0\0" * (headers.MAX_CHUNKS + 1)
    with pytest.raises(AudioUnreadable, match=f"more than {headers.MAX_CHUNKS} pieces"):
        decode(flood, sample_rate=16_000)
    boxes = b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x08free" * (headers.MAX_CHUNKS + 1)
    with pytest.raises(AudioUnreadable, match=f"more than {headers.MAX_CHUNKS} pieces"):
        decode(boxes, sample_rate=16_000)


def test_a_flood_of_chunks_behind_many_empty_sounds_is_not_read_by_each_of_them() -> None:
    """200 empty sounds and 20,000 empty chunks, 170 kB: four million steps, if each took them all."""

    class Counting(io.BytesIO):
        n_reads = 0

        def read(self, n: int | None = -1, /) -> bytes:
            self.n_reads += 1
            return super().read(n)

    empty = bytearray(wav(TONE, 16_000, "PCM_16")[:44])
    struct.pack_into("<I", empty, 40, 0)
    struct.pack_into("<I", empty, 4, 36)
    flood = Counting(bytes(empty) * 200 + b"JUNK\0\0\0\0" * 20_000)
    with contextlib.suppress(AudioUnreadable):
        decode(flood, sample_rate=16_000)
    assert flood.n_reads < 100_000


@pytest.mark.parametrize("size", [b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7)])
def test_sizes_beyond_all_files_are_no_reason_to_crash(size: bytes, tmp_path: Path) -> None:
    """In a file, too: of a temporary one on a disk one cannot seek everywhere."""
    files = {
        "asf": headers.ASF_HEAD + size[::-1],
        "w64": headers.W64_HEAD + bytes(8) + headers.W64_HEAD + bytes(24) + size[::-1],
        "caf": b"caff\0\1\0\0desc" + size,
        "mp4": b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\1free" + size,
        "mkv": b"\x1a\x45\xdf\xa3\x01" + size[1:] + b"\x42\x82\x84webm",
    }
    for name, file in files.items():
        (tmp_path / name).write_bytes(file + bytes(100))
        with pytest.raises(AudioUnreadable):
            decode(tmp_path / name, sample_rate=16_000)
        with pytest.raises(AudioUnreadable):
            decode(file + bytes(100), sample_rate=16_000)


def test_the_samples_that_a_flac_tells() -> None:
    assert flac_samples(flac(TONE, 16_000)) == N
    assert flac_samples(without_length(flac(TONE, 16_000))) == 0
    assert flac_samples(b"fLaC") == flac_samples(b"") == flac_samples(wav(TONE, 16_000)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bytes_of_a_file_of_any_kind_are_no_reason_to_crash(kind: str) -> None:
    examples = {
        "WAV": chunked("WAV")[0],
        "AIFF": chunked("AIFF")[0],
        "AU": chunked("AU")[0],
        "CAF": chunked("CAF")[0],
        "W64": chunked("W64")[0],
        "FLAC": flac(TONE, 16_000),
        "Ogg": encoded("ogg", "libopus", sine(440, 48_000), 48_000),
        "WebM or Matroska": encoded("webm", "libopus", sine(440, 48_000), 48_000),
        "MP4": encoded("ipod", "aac", sine(440, 48_000), 48_000),
        "WMA": encoded("asf", "wmav2", sine(440, 48_000), 48_000),
        "AMR": b"#!AMR\n" + b"\x3c" + bytes(31),
    }
    file = examples[kind]
    assert next(iter(parts(io.BytesIO(file)))).kind == kind
    for n in range(0, 200):
        with contextlib.suppress(ViolaError):
            decode(file[:n], sample_rate=16_000)
