"""Sound in pieces of any size: what comes out is what the whole file gives."""

import io
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import AudioUnreadable
from service.sound.audio import decode
from service.sound.pcm import RawFormat, RawPcm
from service.sound.stream import Container, ContainerPieces, PcmPieces, SoundStream
from tests.service.recordings import cut, recorded

FIXTURES = Path("tests/fixtures")


def noise(seconds: float, rate_hz: int, channels: int) -> np.ndarray:
    """(n, channels) float32, every number a multiple of 1 / 32768, so that 16 bits hold it exactly."""
    n = round(seconds * rate_hz)
    values = np.random.default_rng(rate_hz + channels).integers(-20_000, 20_000, size=(n, channels))
    return values.astype(np.float32) / 32_768


def encoded(samples: np.ndarray, form: RawFormat) -> bytes:
    if form == "f32le":
        return samples.astype("<f4").tobytes()
    dtype = "<i2" if form == "s16le" else ">i2"
    return np.round(samples * 32_768).astype(dtype).tobytes()


def streamed(stream: SoundStream, pieces: Sequence[bytes]) -> np.ndarray:
    blocks = [block for piece in pieces for block in stream.push(piece)]
    return np.concatenate([*blocks, *stream.close(), np.empty(0, np.float32)])


def read_all(stream: SoundStream, data: bytes) -> None:
    list(stream.push(data))
    list(stream.close())


def as_file(samples: np.ndarray, rate_hz: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("form", ["s16le", "s16be", "f32le"])
def test_raw_samples_are_what_their_file_gives(rate_hz: int, form: RawFormat) -> None:
    for channels in (1, 2, 8):
        samples = noise(0.3, rate_hz, channels)
        stream = SoundStream(PcmPieces(RawPcm(form, rate_hz, channels)), sample_rate=16_000)
        whole = decode(as_file(samples, rate_hz), sample_rate=16_000)
        np.testing.assert_allclose(
            streamed(stream, cut(encoded(samples, form), [1_000])), whole.samples, atol=1e-6
        )
        assert stream.duration_s == pytest.approx(whole.duration_s)


def test_channels_that_cancel_each_other_are_silence_in_a_stream_alone() -> None:
    """Of a file the loudest channel is taken; which one that is, a stream cannot know."""
    left = noise(0.3, 16_000, 1)
    samples = np.hstack([left, -left])
    stream = SoundStream(PcmPieces(RawPcm("s16le", 16_000, 2)), sample_rate=16_000)
    assert np.abs(streamed(stream, [encoded(samples, "s16le")])).max() < 1e-4
    assert np.abs(decode(as_file(samples, 16_000), sample_rate=16_000).samples).max() > 0.1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=8))
def test_how_samples_are_cut_into_pieces_changes_nothing(sizes: list[int]) -> None:
    samples = noise(0.1, 44_100, 2)
    data = encoded(samples, "f32le")
    form = RawPcm("f32le", 44_100, 2)
    whole = streamed(SoundStream(PcmPieces(form), sample_rate=16_000), [data])
    pieces = streamed(SoundStream(PcmPieces(form), sample_rate=16_000), cut(data, sizes))
    np.testing.assert_array_equal(pieces, whole)


@pytest.mark.parametrize("container", ["webm", "ogg"])
def test_a_container_is_decoded_while_it_comes(container: Container) -> None:
    data = recorded(container, 4)
    stream = SoundStream(ContainerPieces(container), sample_rate=16_000)
    sizes = [1, 7, 400, 3_000]
    behind_s = []
    blocks = []
    for n, piece in enumerate(cut(data, sizes)):
        blocks += list(stream.push(piece))
        behind_s.append(4 * (sum(sizes[k % 4] for k in range(n + 1)) / len(data)) - stream.duration_s)
    blocks += list(stream.close())
    assert max(behind_s) < 0.5  # it waits for a page or cluster, never for the end
    whole = decode(data, sample_rate=16_000)
    samples = np.concatenate(blocks)
    # libsndfile and FFmpeg trim the encoder's run-in to a few milliseconds of each other.
    assert abs(len(samples) - len(whole.samples)) < 320
    n = min(len(samples), len(whole.samples)) - 320
    np.testing.assert_allclose(samples[:n], whole.samples[:n], atol=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4_000), min_size=1, max_size=6), st.sampled_from(["webm", "ogg"]))
def test_how_a_container_is_cut_into_pieces_changes_nothing(sizes: list[int], container: Container) -> None:
    data = recorded(container, 1)
    whole = streamed(SoundStream(ContainerPieces(container), sample_rate=16_000), [data])
    pieces = streamed(SoundStream(ContainerPieces(container), sample_rate=16_000), cut(data, sizes))
    np.testing.assert_array_equal(pieces, whole)


def test_half_a_sample_at_the_end_is_refused() -> None:
    stream = SoundStream(PcmPieces(RawPcm("s16le", 16_000, 2)), sample_rate=16_000)
    list(stream.push(bytes(401)))
    with pytest.raises(AudioUnreadable, match="401 bytes, no whole number of frames of 4 bytes"):
        list(stream.close())


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "stream holds NaN"), (np.inf, "NaN or infinite"), (2e4, "stream of floats")]
)
def test_samples_that_are_no_sound_are_refused(value: float, words: str) -> None:
    stream = SoundStream(PcmPieces(RawPcm("f32le", 16_000, 1)), sample_rate=16_000)
    with pytest.raises(AudioUnreadable, match=words):
        list(stream.push(np.array([0, value], dtype="<f4").tobytes()))


@pytest.mark.parametrize("container", ["webm", "ogg"])
def test_a_container_that_begins_in_its_middle_is_refused(container: Container) -> None:
    data = recorded(container, 1)
    for start in (1, 100, len(data) // 2):
        stream = SoundStream(ContainerPieces(container), sample_rate=16_000)
        with pytest.raises(AudioUnreadable, match="from its beginning"):
            list(stream.push(data[start:]))
        stream.abandon()


@pytest.mark.parametrize("container", ["webm", "ogg"])
def test_what_only_begins_as_a_container_is_refused(container: Container) -> None:
    data = recorded(container, 1)[:40] + np.random.default_rng(0).bytes(200_000)
    stream = SoundStream(ContainerPieces(container), sample_rate=16_000)
    with pytest.raises(AudioUnreadable):
        read_all(stream, data)
    stream.abandon()


def test_a_container_without_sound_is_refused() -> None:
    command = "ffmpeg -v error -f lavfi -i testsrc=d=1:s=64x64:r=5 -c:v libvpx -f webm -"
    try:
        data = subprocess.run(command.split(), capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no ffmpeg that encodes VP8")
    stream = SoundStream(ContainerPieces("webm"), sample_rate=16_000)
    with pytest.raises(AudioUnreadable, match="no audio track"):
        read_all(stream, data)


def test_an_abandoned_decoder_leaves_no_thread() -> None:
    data = recorded("webm", 1)

    def decoders() -> int:
        return sum(thread.name == "viola-ffmpeg" for thread in threading.enumerate())

    before = decoders()
    streams = [SoundStream(ContainerPieces("webm"), sample_rate=16_000) for _ in range(8)]
    for n, stream in enumerate(streams):
        list(stream.push(data[: 548 + 500 * n]))
    assert decoders() == before + 5  # three have not begun
    for stream in streams:
        stream.abandon()
        stream.abandon()
    assert decoders() == before
    for stream in streams:
        assert list(stream.push(data)) == []
    assert decoders() == before


def test_little_of_a_container_unfolds_to_a_second_at_a_time() -> None:
    data = recorded("webm", 10)
    stream = SoundStream(ContainerPieces("webm"), sample_rate=16_000)
    lengths = [len(block) for block in stream.push(data)]
    stream.abandon()
    assert max(lengths) <= 1.1 * 16_000
    assert len(lengths) >= 9
