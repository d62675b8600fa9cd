"""The analysis arrays against other libraries, and against sounds whose spectrum one knows."""

import warnings
from dataclasses import fields

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio
from numpy.typing import NDArray

import encoders
from encoders.frontend import (
    AST,
    BYOLA,
    CNN14,
    EFFICIENTAT,
    MSM_MAE,
    VGGISH,
    Frontend,
    frontend_of,
    hann_window,
    htk_mel_of_hz,
    hz_of_htk_mel,
    hz_of_mel,
    mel_filterbank,
    mel_of_hz,
    window_of,
)
from service.sound import logmel as served

SLANEY = {"byola": BYOLA, "cnn14": CNN14, "msm-mae": MSM_MAE}
EVERY = {**SLANEY, "vggish": VGGISH, "ast": AST, "efficientat": EFFICIENTAT}


def logmel(frontend: Frontend, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The server's own routine with the arrays of `frontend`: (n_mels, T)."""
    own = {field.name for field in fields(Frontend)} & set(served.Frontend.model_fields)
    parameters = served.Frontend(**{name: getattr(frontend, name) for name in own})
    return served.LogMel(parameters, window_of(frontend), mel_filterbank(frontend))(waveform)


@pytest.fixture(scope="module")
def waveform() -> NDArray[np.float32]:
    """(21 003,) 1.3 s: a rising tone in noise, with an offset and, at the end, silence."""
    generator = np.random.default_rng(0)
    t = np.arange(21_003) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + 2500 * t) * t) + 0.05 * generator.standard_normal(len(t)) + 0.01
    sound[17_000:] = 0
    return sound.astype(np.float32)


@pytest.mark.parametrize("frontend", SLANEY.values(), ids=SLANEY)
def test_the_slaney_filterbanks_are_librosas(frontend: Frontend) -> None:
    reference = librosa.filters.mel(
        sr=16_000,
        n_fft=frontend.n_fft,
        n_mels=frontend.n_mels,
        fmin=frontend.f_min_hz,
        fmax=frontend.f_max_hz,
        htk=False,
        norm="slaney",
    )
    # Both are computed in float64 and rounded once to float32; the largest weight is about 0.03.
    np.testing.assert_allclose(mel_filterbank(frontend), reference.T, rtol=1e-5, atol=1e-8)


def test_the_filterbank_is_torchaudios_slaney_one() -> None:
    reference = torchaudio.functional.melscale_fbanks(
        513, 60.0, 7800.0, 64, 16_000, norm="slaney", mel_scale="slaney"
    )
    # torchaudio computes in float32: corners up to 7800 Hz are known to 5e-4 Hz, of a slope of 1e-3 per Hz.
    np.testing.assert_allclose(mel_filterbank(BYOLA), reference.numpy(), atol=2e-6)


def test_another_number_of_bands_is_librosas_too() -> None:
    frontend = Frontend(sample_rate=22_050, n_fft=512, win_length=512, n_mels=16, f_min_hz=0, f_max_hz=11_025)
    reference = librosa.filters.mel(sr=22_050, n_fft=512, n_mels=16, fmin=0, fmax=11_025)
    np.testing.assert_allclose(mel_filterbank(frontend), reference.T, rtol=1e-5, atol=1e-8)


def test_asts_filterbank_is_kaldis() -> None:
    with warnings.catch_warnings():
        reference, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 512, 16_000.0, 20.0, 8000.0, 0, 0, 1)
    # (128, 256): Kaldi has no bin at the Nyquist frequency; torchaudio computes in float32.
    np.testing.assert_allclose(mel_filterbank(AST)[:256].T, reference.numpy(), atol=1e-4)
    assert not mel_filterbank(AST)[256].any()


def kaldis_banks() -> torch.Tensor:
    """(128, 513) as EfficientAT has them: without a bin at the Nyquist frequency, then a zero for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        banks, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 1024, 32_000.0, 0.0, 15_000.0, 0, 0, 1)
    return torch.nn.functional.pad(banks, (0, 1))


def test_efficientats_filterbank_is_kaldis() -> None:
    # torchaudio computes in float32: 2800 mels are known to 1e-4, of a slope of a mel in 20 at the bottom.
    np.testing.assert_allclose(mel_filterbank(EFFICIENTAT).T, kaldis_banks().numpy(), atol=1e-4)


@pytest.mark.parametrize("frontend", EVERY.values(), ids=EVERY)
def test_a_filterbank_has_one_row_per_bin_and_no_weight_outside_its_range(frontend: Frontend) -> None:
    filters = mel_filterbank(frontend)
    assert filters.shape == (frontend.n_fft // 2 + 1, frontend.n_mels)
    assert filters.dtype == np.float32
    assert (filters >= 0).all()
    bins_hz = np.linspace(0, frontend.sample_rate / 2, frontend.n_fft // 2 + 1)
    outside = (bins_hz < frontend.f_min_hz) | (bins_hz > frontend.f_max_hz)
    assert not filters[outside].any()
    # 128 bands on 31 Hz bins: as in Kaldi, one of AST's lowest triangles lies between two bins.
    assert int((filters.max(axis=0) == 0).sum()) == (1 if frontend is AST else 0)


def test_every_wide_filter_has_area_one() -> None:
    bin_hz = 8000 / 512
    areas = mel_filterbank(BYOLA)[:, 40:].sum(axis=0) * bin_hz
    np.testing.assert_allclose(areas, 1, atol=0.02)  # a sum over bins is not quite the integral


def test_the_mel_scale_passes_through_slaneys_fixed_points() -> None:
    hz = np.array([0.0, 200.0, 1000.0, 6400.0])  # 200 / 3 Hz a mel, then 27 mels for a factor of 6.4
    np.testing.assert_allclose(mel_of_hz(hz), [0, 3, 15, 42], rtol=1e-12)
    np.testing.assert_allclose(hz_of_mel(mel_of_hz(hz)), hz, rtol=1e-12)


def test_htks_scale_is_a_thousand_mels_at_a_kilohertz() -> None:
    hz = np.array([0.0, 700.0, 1000.0, 8000.0])
    np.testing.assert_allclose(htk_mel_of_hz(hz), [0, 1127 * np.log(2), 1000, 2840], atol=0.05)
    np.testing.assert_allclose(htk_mel_of_hz(hz), librosa.hz_to_mel(hz, htk=True), rtol=1e-4)
    np.testing.assert_allclose(hz_of_htk_mel(htk_mel_of_hz(hz)), hz, rtol=1e-12)


def test_the_window_is_the_periodic_hann_window() -> None:
    np.testing.assert_allclose(hann_window(1024), scipy.signal.get_window("hann", 1024), atol=1e-7)
    np.testing.assert_allclose(hann_window(1024), torch.hann_window(1024).numpy(), atol=1e-6)
    assert hann_window(1024)[0] == 0
    assert hann_window(1024)[512] == 1


def test_the_windows_of_ast_and_efficientat_alone_are_symmetric() -> None:
    for frontend in (AST, EFFICIENTAT):
        symmetric = scipy.signal.get_window("hann", frontend.win_length, fftbins=False)
        np.testing.assert_allclose(window_of(frontend), symmetric, atol=1e-7)
        assert window_of(frontend)[-1] == 0
    for frontend in (BYOLA, CNN14, MSM_MAE, VGGISH):
        assert np.array_equal(window_of(frontend), hann_window(frontend.win_length))


def test_a_tone_of_1_khz_lights_the_band_around_1_khz() -> None:
    centres_hz = hz_of_mel(np.linspace(*mel_of_hz(np.array([60.0, 7800.0])), 66))[1:-1]
    nearest = int(np.abs(centres_hz - 1000).argmin())
    tone = np.sin(2 * np.pi * 1000 * np.arange(1024) / 16_000)
    power = np.abs(np.fft.rfft(tone * hann_window(1024))) ** 2
    assert int((power @ mel_filterbank(BYOLA)).argmax()) == nearest


def test_reflect_padding_needs_half_a_window_and_a_sample() -> None:
    assert BYOLA.min_samples == 513
    assert MSM_MAE.min_samples == 201
    assert VGGISH.min_samples == 400  # no padding: a whole window
    assert EFFICIENTAT.min_samples == 514  # one more, which the pre-emphasis takes


def test_the_shortest_clips_are_those_of_the_papers() -> None:
    assert VGGISH.samples_for(96) == 15_600
    assert CNN14.samples_for(32) == 4_960
    assert AST.samples_for(16) == 2_800
    assert BYOLA.samples_for(1) == 513
    assert EFFICIENTAT.samples_for(100) == 99 * 320 + 1


def test_another_number_of_bands_changes_nothing_else() -> None:
    assert frontend_of(64) == BYOLA
    assert frontend_of(16) == Frontend(n_mels=16)


def centred_power(waveform: NDArray[np.float32], n_fft: int) -> NDArray[np.float64]:
    """(samples,) -> (n_fft // 2 + 1, frames), by torch in float64."""
    window = torch.from_numpy(scipy.signal.get_window("hann", n_fft))
    spectrum = torch.stft(
        torch.from_numpy(waveform).double(),
        n_fft,
        hop_length=160,
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    return (spectrum.abs() ** 2).numpy()


def test_cnn14s_log_mel_is_librosas_in_decibel(waveform: NDArray[np.float32]) -> None:
    filters = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64, fmin=50, fmax=8000)
    power = filters @ centred_power(waveform, 512)
    reference = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)
    assert reference.min() == -100  # silence: 10 log10(1e-10)
    # float32 against float64; 2e-3 dB is 5e-4 of the power in a band.
    np.testing.assert_allclose(logmel(CNN14, waveform), reference, atol=2e-3)


def test_msm_maes_log_mel_is_the_natural_logarithm_of_librosas_bands(waveform: NDArray[np.float32]) -> None:
    filters = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=80, fmin=50, fmax=8000)
    reference = np.log(filters @ centred_power(waveform, 400) + np.finfo(np.float32).eps)
    np.testing.assert_allclose(logmel(MSM_MAE, waveform), reference, atol=5e-4)


def test_asts_log_mel_is_kaldis_fbank(waveform: NDArray[np.float32]) -> None:
    samples = torch.from_numpy(waveform)
    reference = torchaudio.compliance.kaldi.fbank(
        (samples - samples.mean())[None],
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
        htk_compat=True,
    )
    found = logmel(AST, waveform)
    assert found.shape == (128, 1 + (21_003 - 400) // 160)
    np.testing.assert_allclose(found[:, :100].T, reference[:100].numpy(), atol=2e-3)
    # Removing the mean of the waveform makes silence a constant, which float32 leaves near but not at zero:
    # here and there it is below Kaldi's floor.
    np.testing.assert_allclose(found[:, 110:], np.log(np.finfo(np.float32).eps), atol=1e-5)
    np.testing.assert_allclose(reference[110:].numpy(), np.log(np.finfo(np.float32).eps), atol=1e-5)


def test_asts_log_mel_and_statistics_are_those_of_transformers(waveform: NDArray[np.float32]) -> None:
    from transformers import ASTFeatureExtractor

    extract = ASTFeatureExtractor(max_length=128)  # padded with zeros to so many frames
    reference = extract(waveform, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    normalised = (logmel(AST, waveform).T - encoders.AST.mean) / encoders.AST.std
    # It works on int16's scale nowhere; two float32 implementations, divided by 9.
    np.testing.assert_allclose(normalised[:100], reference[:100], atol=1e-3)


def efficientats(waveform: NDArray[np.float32], dtype: torch.dtype) -> NDArray[np.floating]:
    """(samples,) at 32 kHz -> (128, frames) of torch and torchaudio, computed in `dtype`."""
    x = torch.from_numpy(waveform).to(dtype)
    window = torch.hann_window(800, periodic=False, dtype=dtype)
    emphasised = x[1:] - 0.97 * x[:-1]
    spectrum = torch.stft(
        emphasised, 1024, hop_length=320, win_length=800, window=window, center=True, pad_mode="reflect",
        return_complex=True,
    )  # fmt: skip
    return (kaldis_banks().to(dtype) @ spectrum.abs() ** 2 + 1e-5).log().numpy()


def test_efficientats_log_mel_is_torchaudios(waveform: NDArray[np.float32]) -> None:
    found = logmel(EFFICIENTAT, waveform)
    assert found.shape == (128, 1 + 21_002 // 320)
    # Kaldi's banks are float32 in either case (1e-4 of a weight, above), which a band's logarithm shows.
    for dtype in (torch.float64, torch.float32):
        np.testing.assert_allclose(found, efficientats(waveform, dtype), atol=1e-3)
    np.testing.assert_allclose(found[:, 56:], np.log(1e-5), atol=1e-5)  # silence
    normalised = (found - encoders.EfficientAT.mean) / encoders.EfficientAT.std
    np.testing.assert_allclose(normalised, (found + 4.5) / 5, rtol=1e-6)


def vggish_in_float64(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """(samples,) -> (frames, 64), written from the description of AudioSet's recipe, frame by frame."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    edges = 1127 * np.log(1 + np.array([125.0, 7500.0]) / 700)
    rows = []
    for start in range(0, len(waveform) - 400 + 1, 160):
        magnitude = np.abs(np.fft.rfft(waveform[start : start + 400].astype(np.float64) * window, 512))
        bands = np.zeros(64)
        for band in range(64):
            step = (edges[1] - edges[0]) / 65
            low, centre, high = (edges[0] + (band + i) * step for i in range(3))
            for k in range(1, 257):  # not the constant part
                mel = 1127 * np.log(1 + k * 31.25 / 700)
                slope = min((mel - low) / (centre - low), (high - mel) / (high - centre))
                bands[band] += max(0.0, slope) * magnitude[k]
        rows.append(np.log(bands + 0.01))
    return np.array(rows)


def test_vggishs_log_mel_is_a_plain_one_in_float64(waveform: NDArray[np.float32]) -> None:
    short = waveform[14_000:19_000]
    reference = vggish_in_float64(short)
    assert reference[-1] == pytest.approx(np.full(64, np.log(0.01)))  # silence
    np.testing.assert_allclose(logmel(VGGISH, short).T, reference, atol=1e-4)


@pytest.mark.parametrize("frontend", EVERY.values(), ids=EVERY)
def test_the_card_can_say_all_that_the_server_computes_with(frontend: Frontend) -> None:
    ours = {field.name for field in fields(Frontend)}
    # The window's kind is in its array, the rate is the model's; all else has the card's name.
    assert ours - set(served.Frontend.model_fields) == {"window", "sample_rate"}
    assert set(served.Frontend.model_fields) <= ours
