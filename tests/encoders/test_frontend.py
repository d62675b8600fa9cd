"""The analysis arrays against other libraries, and against sounds whose spectrum one knows."""

import librosa
import numpy as np
import scipy.signal
import torch
import torchaudio

from encoders.frontend import BYOLA, Frontend, frontend_of, hann_window, hz_of_mel, mel_filterbank, mel_of_hz


def test_the_filterbank_is_librosas_slaney_one() -> None:
    reference = librosa.filters.mel(
        sr=16_000, n_fft=1024, n_mels=64, fmin=60, fmax=7800, htk=False, norm="slaney"
    )
    # Both are computed in float64 and rounded once to float32; the largest weight is about 0.03.
    np.testing.assert_allclose(mel_filterbank(BYOLA), reference.T, rtol=1e-5, atol=1e-8)


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


def test_the_filterbank_has_one_row_per_bin_and_no_empty_filter() -> None:
    filters = mel_filterbank(BYOLA)
    assert filters.shape == (513, 64)
    assert filters.dtype == np.float32
    assert (filters >= 0).all()
    assert (filters.max(axis=0) > 0).all()


def test_every_wide_filter_has_area_one() -> None:
    bin_hz = 8000 / 512
    areas = mel_filterbank(BYOLA)[:, 40:].sum(axis=0) * bin_hz
    np.testing.assert_allclose(areas, 1, atol=0.02)  # a sum over bins is not quite the integral


def test_the_mel_scale_passes_through_slaneys_fixed_points() -> None:
    hz = np.array([0.0, 200.0, 1000.0, 6400.0])  # 200 / 3 Hz a mel, then 27 mels for a factor of 6.4
    np.testing.assert_allclose(mel_of_hz(hz), [0, 3, 15, 42], rtol=1e-12)
    np.testing.assert_allclose(hz_of_mel(mel_of_hz(hz)), hz, rtol=1e-12)


def test_the_window_is_the_periodic_hann_window() -> None:
    np.testing.assert_allclose(hann_window(1024), scipy.signal.get_window("hann", 1024), atol=1e-7)
    np.testing.assert_allclose(hann_window(1024), torch.hann_window(1024).numpy(), atol=1e-6)
    assert hann_window(1024)[0] == 0
    assert hann_window(1024)[512] == 1


def test_a_tone_of_1_khz_lights_the_band_around_1_khz() -> None:
    centres_hz = hz_of_mel(np.linspace(*mel_of_hz(np.array([60.0, 7800.0])), 66))[1:-1]
    nearest = int(np.abs(centres_hz - 1000).argmin())
    tone = np.sin(2 * np.pi * 1000 * np.arange(1024) / 16_000)
    power = np.abs(np.fft.rfft(tone * hann_window(1024))) ** 2
    assert int((power @ mel_filterbank(BYOLA)).argmax()) == nearest


def test_reflect_padding_needs_half_a_window_and_a_sample() -> None:
    assert BYOLA.min_samples == 513


def test_another_number_of_bands_changes_nothing_else() -> None:
    assert frontend_of(64) == BYOLA
    assert frontend_of(16) == Frontend(n_mels=16)
