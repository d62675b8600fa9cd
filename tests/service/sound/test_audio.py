import contextlib
import csv
import struct
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal
import soundfile

from service.errors import AudioMissing, AudioTooLong, AudioTooShort, AudioUnreadable, ViolaError
from service.sound.audio import AudioStream, decode, size_of
from service.sound.blocks import BLOCK_VALUES

from .sounds import FIXTURES, encoded, flac, loudest_hz, sine, wav, without_length

ROWS = csv.DictReader((FIXTURES / "fixtures.csv").read_text().splitlines())
CLIPS = [row for row in ROWS if "invalid" not in row["file"]]


@pytest.mark.parametrize("row", CLIPS, ids=lambda row: row["file"])
def test_every_fixture_decodes_to_16_khz_mono_of_its_duration(row: dict[str, str]) -> None:
    waveform = decode(FIXTURES / row["file"], sample_rate=16_000)
    assert waveform.duration_s == pytest.approx(float(row["duration_s"]), abs=1e-4)
    assert len(waveform.samples) == pytest.approx(16_000 * waveform.duration_s, abs=1)
    assert waveform.samples.dtype == np.float32
    assert waveform.samples.ndim == 1
    assert np.abs(waveform.samples).max() <= 1
    assert waveform.samples.any() or "silence" in row["file"]


def test_bytes_a_file_and_a_path_give_the_same(fixtures_dir: Path) -> None:
    path = fixtures_dir / "trumpet_44k1_stereo.ogg"
    from_path = decode(path, sample_rate=16_000).samples
    with path.open("rb") as file:
        np.testing.assert_array_equal(decode(file, sample_rate=16_000).samples, from_path)
    np.testing.assert_array_equal(decode(path.read_bytes(), sample_rate=16_000).samples, from_path)


def test_a_source_is_as_long_as_its_file_and_is_decoded_from_its_beginning(fixtures_dir: Path) -> None:
    path = fixtures_dir / "click_10ms_16k_mono.wav"
    with path.open("rb") as file:
        assert size_of(path) == size_of(path.read_bytes()) == size_of(file) == path.stat().st_size
        assert len(decode(file, sample_rate=16_000).samples) == 160


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_tone_keeps_its_pitch_and_loudness_at_any_rate(rate_hz: int) -> None:
    waveform = decode(wav(sine(1000, rate_hz), rate_hz), sample_rate=16_000)
    assert loudest_hz(waveform.samples, 16_000) == pytest.approx(1000, abs=1)
    assert np.abs(waveform.samples[1000:-1000]).max() == pytest.approx(0.5, abs=0.005)


def test_a_tone_above_the_new_nyquist_frequency_is_gone() -> None:
    waveform = decode(wav(sine(10_000, 44_100), 44_100), sample_rate=16_000)
    assert np.abs(waveform.samples[1000:-1000]).max() < 1e-3


def test_channels_are_averaged() -> None:
    channels = np.stack([np.full(100, value, dtype=np.float32) for value in (0.1, 0.2, 0.3, 0.6)], axis=1)
    np.testing.assert_allclose(decode(wav(channels, 16_000), sample_rate=16_000).samples, 0.3, rtol=1e-6)


def test_of_channels_that_cancel_each_other_the_loudest_is_heard() -> None:
    """One of two wires is reversed: the mean is silence, which would be embedded as silence."""
    tone = sine(440, 16_000)
    reversed_ = decode(wav(np.stack([0.5 * tone, -0.5 * tone], axis=1), 16_000), sample_rate=16_000)
    np.testing.assert_array_equal(np.abs(reversed_.samples), np.abs(0.5 * tone))
    softer = np.stack([0.97 * tone, -tone], axis=1)
    np.testing.assert_array_equal(decode(wav(softer, 16_000), sample_rate=16_000).samples, -tone)


def test_channels_that_cancel_each_other_are_known_behind_a_soft_beginning() -> None:
    """The noise of two amplifiers, 80 dB below full scale, tells nothing of the wires."""
    noise = np.random.default_rng(0).normal(scale=1e-4, size=(5 * 16_000, 2))
    tone = sine(440, 16_000, 5)
    clip = np.concatenate([noise, np.stack([tone, -tone], axis=1) + noise]).astype(np.float32)
    samples = decode(wav(clip, 16_000), sample_rate=16_000).samples
    np.testing.assert_allclose(np.abs(samples[-60_000:]), np.abs(tone[-60_000:]), atol=1e-3)


def test_channels_that_cancel_each_other_survive_an_mp3() -> None:
    tone = sine(440, 44_100)
    stereo = wav(np.stack([tone, -tone], axis=1), 44_100, "MPEG_LAYER_III", "MP3")
    assert np.abs(decode(stereo, sample_rate=16_000).samples[4_000:12_000]).max() > 0.45


def test_channels_with_nothing_in_common_are_averaged() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (16_000, 8)).astype(np.float32)
    np.testing.assert_allclose(
        decode(wav(noise, 16_000), sample_rate=16_000).samples, noise.mean(axis=1), atol=1e-6
    )


def test_channels_and_rate_may_change_within_a_file() -> None:
    """Each number of channels is mixed by itself: of three that agree none is taken alone."""
    tone = sine(440, 16_000)
    parts = [np.stack([tone, -tone], axis=1), np.stack([tone] * 3, axis=1), tone[:, None]]
    waveform = decode(b"".join(wav(part, 16_000) for part in parts), sample_rate=16_000)
    np.testing.assert_allclose(waveform.samples, np.concatenate([tone] * 3), atol=1e-6)


@pytest.mark.parametrize(
    ("subtype", "container", "step"),
    [
        ("PCM_U8", "WAV", 2**-7),
        ("PCM_16", "WAV", 2**-15),
        ("PCM_24", "WAV", 2**-23),
        ("PCM_32", "WAV", 2**-24),
        ("FLOAT", "WAV", 0),
        ("DOUBLE", "WAV", 0),
        ("ULAW", "WAV", 0.03),
        ("ALAW", "WAV", 0.03),
        ("MS_ADPCM", "WAV", 0.03),
        ("IMA_ADPCM", "WAV", 0.03),
        ("PCM_16", "FLAC", 2**-15),
        ("PCM_16", "AIFF", 2**-15),
        ("PCM_16", "RF64", 2**-15),
        ("PCM_16", "AU", 2**-15),
        ("PCM_16", "CAF", 2**-15),
    ],
)
def test_samples_keep_their_value_up_to_the_step_of_the_encoding(
    subtype: str, container: str, step: float
) -> None:
    tone = sine(440, 16_000)
    waveform = decode(wav(tone, 16_000, subtype, container), sample_rate=16_000)
    # The first samples of ADPCM lag behind while its step adapts; its last block is padded.
    np.testing.assert_allclose(waveform.samples[20 : len(tone)], tone[20:], atol=step)


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz"),
    [
        ("ipod", "aac", 44_100),  # m4a
        ("ipod", "alac", 44_100),
        ("adts", "aac", 22_050),
        ("webm", "libopus", 48_000),
        ("matroska", "pcm_s24le", 44_100),
    ],
)
def test_what_libsndfile_cannot_read_is_read_by_ffmpeg(container: str, codec: str, rate_hz: int) -> None:
    waveform = decode(encoded(container, codec, sine(1000, rate_hz), rate_hz), sample_rate=16_000)
    assert waveform.duration_s == pytest.approx(1, abs=0.12)  # AAC counts its run-in
    assert loudest_hz(waveform.samples, 16_000) == pytest.approx(1000, abs=2)
    assert np.abs(waveform.samples[4000:12000]).max() == pytest.approx(0.5, abs=0.02)


CONTAINERS = sorted(path.name for path in (FIXTURES / "containers").glob("keyword_yes_*"))


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_word_is_the_same_in_every_container(name: str) -> None:
    """Up to the delay of the codec and its loss: narrowband AMR has nothing above 4 kHz."""
    word = decode(FIXTURES / "keyword_yes_16k_mono_pcm16.wav", sample_rate=16_000).samples
    samples = decode(FIXTURES / "containers" / name, sample_rate=16_000).samples
    products = scipy.signal.correlate(samples, word)
    delay = int(products.argmax()) - len(word) + 1
    assert abs(delay) < 0.07 * 16_000
    delayed = samples[max(delay, 0) :]
    original = word[max(-delay, 0) :]
    n = min(len(delayed), len(original))
    assert n > 0.9 * len(word)
    assert np.corrcoef(delayed[:n], original[:n])[0, 1] > (0.7 if "8k" in name else 0.94)


def test_what_a_browser_records_has_no_length_in_its_header() -> None:
    recorded = FIXTURES / "containers" / "keyword_yes_48k_mono_recorded.webm"
    with av.open(str(recorded)) as file:
        assert file.duration is None
    with pytest.raises(AudioTooLong, match=r"or more, at most 0\.5 s"):
        decode(recorded, sample_rate=16_000, max_audio_s=0.5)


def test_the_sound_of_a_film_is_taken() -> None:
    film = encoded("mp4", "aac", sine(1000, 44_100), 44_100, video=True)
    assert loudest_hz(decode(film, sample_rate=16_000).samples, 16_000) == pytest.approx(1000, abs=2)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(wav(sine(440, 16_000), 16_000))
    playlist = f"ffconcat version 1.0\nfile {tmp_path / 'secret.wav'}\n"
    with pytest.raises(AudioUnreadable, match="not audio in a known format"):
        decode(playlist.encode(), sample_rate=16_000)


def test_blocks_are_the_whole_clip() -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * BLOCK_VALUES + 1).astype(np.float32)
    blocks = list(AudioStream(wav(noise, 16_000), sample_rate=16_000))
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate(blocks), noise)


def test_a_stream_counts_the_seconds_it_has_read() -> None:
    stream = AudioStream(wav(np.zeros(10 * 44_100), 44_100), sample_rate=16_000)
    seconds = [stream.duration_s for _ in stream]
    assert 0 < seconds[0] < seconds[-1] == 10


def test_a_float_file_beyond_full_scale_is_clipped() -> None:
    loud = np.array([0.5, 1.5, -3.0], dtype=np.float32)
    np.testing.assert_array_equal(decode(wav(loud, 16_000), sample_rate=16_000).samples, [0.5, 1, -1])


def test_integers_stored_as_floats_are_refused() -> None:
    with pytest.raises(AudioUnreadable, match=r"samples reach 16000; .* scaled to"):
        decode(wav(sine(440, 16_000) * 32_000, 16_000), sample_rate=16_000)


@pytest.mark.parametrize(
    ("file", "error", "sentence"),
    [
        ("empty.wav", AudioMissing, "the file is empty"),
        ("no_frames.wav", AudioTooShort, "holds no samples"),
        ("text.wav", AudioUnreadable, "not audio in a known format; send WAV, FLAC"),
        ("truncated.flac", AudioUnreadable, "ends early, or is damaged: .*; send the whole file"),
        ("nan_inf_float32.wav", AudioUnreadable, "holds NaN or infinite samples"),
    ],
)
def test_each_invalid_file_gets_its_own_sentence(
    file: str, error: type[ViolaError], sentence: str, fixtures_dir: Path
) -> None:
    with pytest.raises(error, match=sentence):
        decode(fixtures_dir / "invalid" / file, sample_rate=16_000)


def test_a_missing_file_is_said() -> None:
    with pytest.raises(AudioMissing, match="cannot be opened: No such file"):
        decode(Path("nowhere.wav"), sample_rate=16_000)


def test_a_clip_over_the_limit_is_refused_by_its_header_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(AudioTooLong, match=r"lasts 3.0 s by its header, at most 2.5 s are accepted"):
        decode(wav(np.zeros(48_000), 16_000), sample_rate=16_000, max_audio_s=2.5)


def test_a_bomb_whose_header_lies_is_refused_while_it_is_decoded() -> None:
    bomb = without_length(wav(np.zeros(600 * 16_000), 16_000, "PCM_16", "FLAC"))
    assert len(bomb) < 100_000
    stream = AudioStream(bomb, sample_rate=16_000, max_audio_s=20)
    with pytest.raises(AudioTooLong, match="or more, at most 20 s"):
        list(stream)
    assert stream.duration_s < 40


@pytest.mark.parametrize(
    ("rate_hz", "channels", "most_s"), [(48_000, 8, 2), (192_000, 8, 0.5), (8_000, 2, 2)]
)
def test_many_channels_at_a_high_rate_may_last_shorter(rate_hz: int, channels: int, most_s: float) -> None:
    """A FLAC of silence holds a thousand values in a byte, and each costs time."""
    bomb = without_length(wav(np.zeros((rate_hz * 3, channels)), rate_hz, "PCM_16", "FLAC"))
    with pytest.raises(AudioTooLong, match=f"or more, at most {most_s} s"):
        decode(bomb, sample_rate=16_000, max_audio_s=2)


def test_an_mp4_that_announces_millions_of_packets_gets_no_index_of_them(fixtures_dir: Path) -> None:
    """Unbounded, FFmpeg makes one of 400 MB for this file of 5 kB, and then finds the packets missing."""
    file = bytearray((fixtures_dir / "containers" / "keyword_yes_16k_mono.m4a").read_bytes())
    n_packets = 10_000_000
    struct.pack_into(">II", file, file.index(b"stsz") + 8, 1, n_packets)  # of a byte each
    struct.pack_into(">III", file, file.index(b"stsc") + 12, 1, n_packets, 1)  # all in the first chunk
    struct.pack_into(">II", file, file.index(b"stts") + 12, n_packets, 1024)
    with pytest.raises(AudioTooShort, match="the file holds no samples"):
        decode(bytes(file), sample_rate=16_000)


@pytest.mark.parametrize("container", ["FLAC", "MP3", "AAC"])
def test_a_bomb_is_refused_at_the_limit_block_by_block(container: str) -> None:
    """Minutes of silence in some kilobytes: nothing is decoded beyond the limit, and nothing kept."""
    silence = np.zeros(240 * 8_000, np.float32)
    bomb = {
        "FLAC": lambda: without_length(flac(silence, 8_000)),
        "MP3": lambda: encoded("mp3", "libmp3lame", silence, 8_000, options={"write_xing": "0"}),
        "AAC": lambda: encoded("adts", "aac", silence, 8_000),
    }[container]()
    stream = AudioStream(bomb, sample_rate=8_000, max_audio_s=60)
    longest_block = 0
    with contextlib.suppress(AudioTooLong):
        for block in stream:
            longest_block = max(longest_block, len(block))
        pytest.fail("the whole bomb was decoded")
    assert 60 < stream.duration_s < 60 + 2 * BLOCK_VALUES / 8_000
    assert longest_block <= BLOCK_VALUES


@pytest.mark.parametrize("rate_hz", [10, 2_000_000])
def test_an_absurd_sample_rate_is_refused(rate_hz: int) -> None:
    with pytest.raises(AudioUnreadable, match=f"sample rate is {rate_hz} Hz; send one between"):
        decode(wav(np.zeros(100), rate_hz), sample_rate=16_000)


def test_damaged_files_give_samples_or_a_clear_error_and_nothing_else(fixtures_dir: Path) -> None:
    random = np.random.default_rng(0)
    names = [
        "digit7_8k_mono_pcm16.wav",
        "footstep_44k1_mono_short.ogg",
        "fire_48k_mono.opus",
        "rain_44k1_mono.mp3",
    ]
    clips = [(fixtures_dir / name).read_bytes() for name in [*names, "hihat_192k_mono.flac"]]
    clips.append(encoded("ipod", "aac", sine(440, 16_000, 0.2), 16_000))
    for round_ in range(120):
        damaged = bytearray(clips[round_ % len(clips)])
        reach = len(damaged) if round_ % 2 else 200
        for at in random.integers(0, reach, size=5):
            damaged[at] = random.integers(256)
        with contextlib.suppress(ViolaError):
            assert np.isfinite(decode(bytes(damaged), sample_rate=16_000, max_audio_s=60).samples).all()


def test_threads_decode_side_by_side(fixtures_dir: Path) -> None:
    data = (fixtures_dir / "robin_44k1_stereo.mp3").read_bytes()
    expected = decode(data, sample_rate=16_000).samples
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.append(decode(data, sample_rate=16_000).samples))
        for _ in "1234"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(samples, expected) for samples in found)
