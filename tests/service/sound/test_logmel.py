from pathlib import Path

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from service.sound.audio import decode
from service.sound.logmel import CHUNK_FRAMES, Frontend, LogMel

BYOLA = Frontend(
    n_fft=1024,
    win_length=1024,
    hop_length=160,
    n_mels=64,
    centred=True,
    power=2,
    log="ln_add",
    log_floor=1.1920929e-07,
    f_min_hz=60,
    f_max_hz=7800,
    mel_scale="slaney",
    mel_norm="slaney",
)
VGGISH = BYOLA.model_copy(
    update={"n_fft": 512, "win_length": 400, "centred": False, "power": 1, "log": "ln_add", "log_floor": 0.01}
)
CNN14 = BYOLA.model_copy(update={"n_fft": 512, "win_length": 512, "log": "db", "log_floor": 1e-10})
AST = BYOLA.model_copy(
    update={
        "n_fft": 512,
        "win_length": 400,
        "centred": False,
        "remove_frame_mean": True,
        "preemphasis": 0.97,
        "log": "ln_max",
        "n_mels": 128,
    }
)
EFFICIENTAT = BYOLA.model_copy(
    update={
        "win_length": 800,
        "hop_length": 320,
        "n_mels": 128,
        "preemphasis": 0.97,
        "preemphasis_of": "waveform",
        "log_floor": 1e-5,
    }
)
SHORT_WINDOW = BYOLA.model_copy(update={"win_length": 400})
UNCENTRED_WAVEFORM = AST.model_copy(update={"preemphasis_of": "waveform"})
FRONTENDS = {
    "byola": BYOLA,
    "vggish": VGGISH,
    "cnn14": CNN14,
    "ast": AST,
    "efficientat": EFFICIENTAT,
    "short window": SHORT_WINDOW,
    "uncentred, waveform emphasised": UNCENTRED_WAVEFORM,
}


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


def filterbank(frontend: Frontend) -> np.ndarray:
    """Any filters do where the reference uses the same."""
    random = np.random.default_rng(1)
    return random.uniform(0, 0.01, (frontend.n_fft // 2 + 1, frontend.n_mels)).astype(np.float32)


def log_mel(frontend: Frontend) -> LogMel:
    window = scipy.signal.get_window("hann", frontend.win_length).astype(np.float32)
    return LogMel(frontend, window, filterbank(frontend))


def in_float64(frontend: Frontend, waveform: np.ndarray) -> np.ndarray:
    """The definition, frame by frame."""
    f, samples = frontend, waveform.astype(np.float64)
    window = scipy.signal.get_window("hann", f.win_length)
    left = 0
    if f.preemphasis_of == "waveform":
        samples = samples[1:] - f.preemphasis * samples[:-1]
    if f.centred:
        left = (f.n_fft - f.win_length) // 2
        samples = np.pad(samples, f.n_fft // 2, mode="reflect")
    columns = []
    for t in range(f.n_frames(len(waveform))):
        frame = samples[t * f.hop_length + left :][: f.win_length].copy()
        if f.remove_frame_mean:
            frame -= frame.mean()
        if f.preemphasis and f.preemphasis_of == "frame":
            frame -= f.preemphasis * np.concatenate([frame[:1], frame[:-1]])
        spectrum = np.abs(np.fft.rfft(frame * window, f.n_fft)) ** f.power
        columns.append(spectrum @ filterbank(f).astype(np.float64))
    mel = np.stack(columns, axis=1)
    if f.log == "ln_add":
        return np.log(mel + f.log_floor)
    mel = np.maximum(mel, f.log_floor)
    return 10 * np.log10(mel) if f.log == "db" else np.log(mel)


@pytest.mark.parametrize("name", FRONTENDS)
def test_every_kind_of_front_end_agrees_with_its_definition_in_float64(name: str) -> None:
    frontend = FRONTENDS[name]
    waveform = noise(25_000)  # more than one chunk
    mel = log_mel(frontend)(waveform)
    assert mel.dtype == np.float32
    # float32 against float64: 1e-6 of the power is as much in its logarithm, and ten times that in dB.
    np.testing.assert_allclose(mel, in_float64(frontend, waveform), atol=5e-5)


def test_it_agrees_with_torchaudio_and_librosas_mel_filters(fixtures_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    torchaudio = pytest.importorskip("torchaudio")
    librosa_filters = pytest.importorskip("librosa.filters")
    filters = librosa_filters.mel(sr=16_000, n_fft=1024, n_mels=64, fmin=60, fmax=7800)  # Slaney, area norm
    window = torch.hann_window(1024).numpy()
    reference = torchaudio.transforms.MelSpectrogram(
        sample_rate=16_000,
        n_fft=1024,
        hop_length=160,
        f_min=60,
        f_max=7800,
        n_mels=64,
        mel_scale="slaney",
        norm="slaney",
    )
    speech = decode(fixtures_dir / "speech_16k_mono.flac", sample_rate=16_000).samples
    for waveform in (noise(16_000), speech, np.zeros(8_000, dtype=np.float32)):
        expected = torch.log(reference(torch.from_numpy(waveform)) + 1.1920929e-07).numpy()
        mel = LogMel(BYOLA, window, filters.T)(waveform)
        assert mel.shape == expected.shape
        np.testing.assert_allclose(mel, expected, atol=1e-4)


def test_silence_is_the_logarithm_of_the_floor() -> None:
    np.testing.assert_allclose(log_mel(BYOLA)(np.zeros(16_000, dtype=np.float32)), -15.942385, rtol=1e-6)


def test_a_centred_second_has_101_frames_and_an_uncentred_one_98() -> None:
    assert log_mel(BYOLA)(noise(16_000)).shape == (64, 101)
    assert log_mel(VGGISH)(noise(16_000)).shape == (64, 98)


def test_pre_emphasis_of_the_waveform_takes_a_sample() -> None:
    """So that a second at 32 kHz has 100 frames of 10 ms, not 101."""
    assert log_mel(EFFICIENTAT)(noise(32_000)).shape == (128, 100)
    assert log_mel(EFFICIENTAT)(noise(32_001)).shape == (128, 101)
    off = EFFICIENTAT.model_copy(update={"preemphasis": 0.0})
    assert off.n_frames(32_000) == 101


def test_a_constant_is_nearly_gone_after_pre_emphasis() -> None:
    """1 - 0.97 of it is left: 30.5 dB less."""
    off = EFFICIENTAT.model_copy(update={"preemphasis": 0.0, "log_floor": 1e-30})
    on = off.model_copy(update={"preemphasis": 0.97})
    constant = np.full(32_000, 0.5, dtype=np.float32)
    difference = log_mel(on)(constant)[:, :100] - log_mel(off)(constant)[:, :100]
    np.testing.assert_allclose(difference, 2 * np.log(0.03), atol=1e-3)


def test_ten_times_the_amplitude_is_20_db_more() -> None:
    quiet = noise(16_000) / 10
    np.testing.assert_allclose(log_mel(CNN14)(10 * quiet) - log_mel(CNN14)(quiet), 20, atol=1e-3)


@pytest.mark.parametrize(("frontend", "shortest"), [(BYOLA, 513), (VGGISH, 400), (EFFICIENTAT, 514)])
def test_a_clip_too_short_for_one_frame_is_an_error(frontend: Frontend, shortest: int) -> None:
    assert log_mel(frontend)(noise(shortest)).shape[1] > 0
    for samples in (noise(shortest - 1), noise(0)):
        with pytest.raises(ValueError, match="too few for one frame"):
            log_mel(frontend)(samples)
        stream = log_mel(frontend).stream()
        with pytest.raises(ValueError, match="too few for one frame"):
            list(stream.push(samples)) + list(stream.close())


@pytest.mark.parametrize("name", sorted(FRONTENDS))
def test_frames_may_be_taken_as_they_become_ready(name: str) -> None:
    logmel = log_mel(FRONTENDS[name])
    samples = noise(20_000)
    stream = logmel.stream()
    taken, n_taken = [], 0
    for start in range(0, len(samples), 777):
        stream.add(samples[start : start + 777])
        if stream.n_ready > n_taken % 7:  # now and then, and never all of them
            taken.append(stream.take(stream.n_ready - n_taken % 7))
            n_taken += 1
    whole = logmel(samples)
    found = np.concatenate([*taken, *stream.close()], axis=1)
    # Products of matrices of other sizes are rounded otherwise.
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-4)
    assert sum(each.shape[1] for each in taken) > whole.shape[1] - 20


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(FRONTENDS)),
    n=st.integers(600, 3 * CHUNK_FRAMES * 160),
    sizes=st.lists(st.integers(0, 30_000), min_size=1, max_size=8),
)
def test_a_clip_in_blocks_gives_to_the_bit_what_it_gives_as_a_whole(
    name: str, n: int, sizes: list[int]
) -> None:
    logmel = log_mel(FRONTENDS[name])
    waveform = noise(n)
    stream = logmel.stream()
    cuts = np.minimum(np.cumsum(sizes), n)
    parts = [part for block in np.split(waveform, cuts) for part in stream.push(block)]
    parts += stream.close()
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), logmel(waveform))


def test_a_clip_of_exactly_full_chunks_ends_cleanly_in_blocks_too() -> None:
    logmel = log_mel(VGGISH)
    waveform = noise(400 + (2 * CHUNK_FRAMES - 1) * 160)
    stream = logmel.stream()
    parts = [*stream.push(waveform), *stream.close()]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), logmel(waveform))


def test_a_short_stream_is_padded_with_zeros() -> None:
    logmel = log_mel(BYOLA)
    stream = logmel.stream(min_samples=1000)
    parts = [*stream.push(noise(160)), *stream.close()]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), logmel(np.pad(noise(160), (0, 840))))


def test_a_window_longer_than_the_transform_is_refused() -> None:
    with pytest.raises(ValueError, match="hold a window of 600"):
        Frontend(**{**BYOLA.model_dump(), "n_fft": 512, "win_length": 600})
