from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from encoders.frontend import VGGISH, Frontend, Waveform, mel_filterbank, window_of
from model_export.errors import ExportError
from model_export.sources.description import (
    Description,
    arrays_of,
    frontend_of,
    labels_of,
    read_description,
    statistics_of,
)
from tests.model_export.own_graphs import LOGMEL, WAVEFORM

SCORES = '\n[scores]\noutput = "scores"\nlabels = "names.csv"\n'


def described(text: str, folder: Path) -> Description:
    (folder / "own.toml").write_text(text, encoding="utf-8")
    return read_description(folder / "own.toml")


def test_a_description_is_read_with_its_front_end(tmp_path: Path) -> None:
    said = described(LOGMEL, tmp_path)
    frontend = frontend_of(said)
    assert isinstance(frontend, Frontend)
    assert (frontend.sample_rate, frontend.n_mels, frontend.f_max_hz) == (16_000, 16, 7500.0)
    assert statistics_of(said) == (-3.0, 2.0)
    assert (said.window.patch, said.window.hop, said.outputs.pooling) == (20, 10, "mean")


def test_a_waveform_comes_in_columns_that_patch_and_hop_are_multiples_of(tmp_path: Path) -> None:
    assert frontend_of(described(WAVEFORM, tmp_path)) == Waveform(16_000, 160)
    patches = WAVEFORM.replace("longest = 32000\nshortest = 400", "patch = 15600\nhop = 7800")
    assert frontend_of(described(patches, tmp_path)) == Waveform(16_000, 156)  # 50 of them in a hop
    odd = WAVEFORM.replace("16000", "22050").replace("longest = 32000\nshortest = 400", "patch = 22051")
    assert frontend_of(described(odd, tmp_path)) == Waveform(22_050, 1)  # a prime


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("hop = 10", "hops = 10", r"there is no \[window\] hops; known are patch, hop, longest, shortest"),
        ("licence", "license", "there is no license; known are licence, description"),
        ('licence = "CC0-1.0"', "", "licence is missing"),
        ('kind = "logmel"', 'kind = "mel"', r"\[input\] kind: Input should be 'logmel' or 'waveform'"),
        ('"frames", "mels"', '"frames"', "the layout of a logmel names frames and mels once"),
        ('"batch", "frames"', '"frames", "batch"', "`batch` must be the first axis"),
        ("patch = 20\nhop = 10", "hop = 10", "give either `patch`"),
        ("patch = 20\nhop = 10", "longest = 20\nhop = 10", "without `patch` there is none"),
        ("hop = 10", "hop = 21", "leaves out sound between patches of 20"),
        ("hop = 10", "hop = 10\nshortest = 10", "more than the 10 that the patch before it has too"),
        ("hop = 10", "hop = 0", r"\[window\] hop: Input should be greater than 0"),
        ('vector = "vector"', "", "name either `vector` or `frames`"),
        ('vector = "vector"', 'vector = "a"\nframe_period_ms = 10', "leave the times of frames out"),
        ('vector = "vector"', 'frames = "a"\nlayout = ["frames"]', "names frames and numbers once"),
        ("[window]", "[window", "is no TOML"),
        ("[outputs]", SCORES + 'name = "../a"\n[outputs]', r"\[scores\] name: String should match"),
    ],
)
def test_what_does_not_fit_is_told_by_its_key(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    assert old in LOGMEL
    with pytest.raises(ExportError, match=sentence):
        described(LOGMEL.replace(old, new), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("n_fft = 512", "fft = 512", r"\[frontend\] has no fft; it has n_fft, "),
        ("n_fft = 512\n", "", r"\[frontend\] lacks n_fft: what is not said would be guessed"),
        ("n_fft = 512", "n_fft = 512.5", r"n_fft = 512.5 is no int"),
        ("centred = false", "centred = 0", r"centred = 0 is no bool"),
        ('log = "ln_add"', 'log = "log10"', "'log10' is none of 'ln_add', 'ln_max', 'db'"),
        ("win_length = 400", "win_length = 600", "must be even and hold win_length = 600"),
        ("f_max_hz = 7500", "f_max_hz = 9000", "between 0 and 8000 Hz, half the sample rate, not"),
        ("std = 2.0", "std = 0", "std must be positive"),
    ],
)
def test_a_front_end_that_cannot_be_is_told(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    assert old in LOGMEL
    said = described(LOGMEL.replace(old, new), tmp_path)
    with pytest.raises(ExportError, match=sentence):
        statistics_of(said), frontend_of(said)


def test_a_waveform_has_no_front_end(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a network that takes a waveform has none"):
        frontend_of(described(WAVEFORM + "\n[frontend]\nn_fft = 512\n", tmp_path))


def test_window_and_filterbank_may_be_the_users_own(tmp_path: Path) -> None:
    said = described(LOGMEL, tmp_path)
    frontend = frontend_of(said)
    assert isinstance(frontend, Frontend)
    np.testing.assert_array_equal(arrays_of(said, frontend)["filterbank"], mel_filterbank(frontend))
    own = {"window": window_of(VGGISH), "filterbank": 2 * mel_filterbank(frontend)}
    save_file(own, tmp_path / "own.safetensors")
    said = described(LOGMEL.replace("n_fft = 512", 'n_fft = 512\narrays = "own.safetensors"'), tmp_path)
    np.testing.assert_array_equal(arrays_of(said, frontend)["filterbank"], own["filterbank"])
    save_file({"window": own["window"]}, tmp_path / "own.safetensors")
    with pytest.raises(
        ExportError, match=r"\[frontend\] arrays: own.safetensors holds no tensor `filterbank`"
    ):
        arrays_of(said, frontend)


def test_labels_lie_in_a_table_beside_the_description_or_the_graph(tmp_path: Path) -> None:
    said = described(LOGMEL + SCORES, tmp_path)
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "names.csv").write_text("index,mid,display_name\n1,b,Wild\n0,a,Calm\n")
    assert labels_of(said, beside=tmp_path / "graph") == ("Calm", "Wild")
    with pytest.raises(ExportError, match=r"names.csv cannot be read"):
        labels_of(said, beside=tmp_path)
    twice = described(LOGMEL + SCORES.replace('"names.csv"', '["a", "a"]'), tmp_path)
    with pytest.raises(ExportError, match="each must be a name of its own"):
        labels_of(twice, beside=tmp_path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none.toml cannot be read"):
        read_description(tmp_path / "none.toml")
