"""A trained encoder -> a folder -> the server's own Model, on real sounds."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from model_export.clips import FIXTURES
from model_export.errors import ExportError
from model_export.export import add_self_test, export
from model_export.sources.trained import Trained
from model_export.verify import cosines, distance, torch_embedding
from service.inference.card import load_card, write_card
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import decode

from .conftest import ABOUT, MEAN, STD, random_encoder, random_trained

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(trained: Trained, clips: list[Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "small"
    export(trained, out, about=ABOUT, clips=clips, int8=True, float16=True)
    return out


@pytest.fixture(scope="module", params=["float32", "float16", "int8"])
def model(request: pytest.FixtureRequest, folder: Path) -> Model:
    return Model.load(folder, device="cpu", precision=request.param)


def test_a_folder_holds_what_its_card_lists(folder: Path, trained: Trained) -> None:
    card = load_card(folder)
    files = ["encoder.float16.onnx", "encoder.int8.onnx", "encoder.onnx", "frontend.safetensors"]
    assert sorted(card.files) == files
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", *files]
    assert (card.normalization.mean, card.normalization.std) == (MEAN, STD)
    assert (card.windows.stride, card.frame_period_ms) == {
        "byola-2020": (8, 80.0),
        "byola-2022": (4, 40.0),
    }[trained.name]
    assert card.min_samples == {"byola-2020": 1120, "byola-2022": 513}[trained.name]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir()), "others may read it"


def test_the_server_gives_what_pytorch_gives(folder: Path, trained: Trained, clips: list[Array]) -> None:
    model = Model.load(folder, device="cpu", precision="float32")
    for clip in clips[:6]:
        logmel = model.logmel(clip)
        frames, vector = torch_embedding(trained, logmel)
        served = embed(model.run, model.card, [logmel], frames=True)
        assert served.frames is not None
        assert distance(served.frames, frames) < 1e-5
        assert distance(served.vector, vector) < 1e-5


def test_30_seconds_in_windows_are_exactly_the_clip_in_one_pass(model: Model) -> None:
    samples = decode(FIXTURES / "birds_30s_16k_mono.opus", sample_rate=16_000).samples
    logmel = model.logmel(samples)
    windowed = embed(model.run, model.card, [logmel], frames=True)
    whole = model.run([logmel], frames=True)[0]
    assert windowed.frames is not None
    assert whole.frames is not None
    assert logmel.shape[1] > 3 * model.card.windows.frames
    assert distance(windowed.frames, whole.frames) < 1e-5
    assert distance(windowed.vector, whole.sum / whole.count + whole.max) < 1e-5


def test_int8_is_near_float32_and_the_card_says_how_near(folder: Path, clips: list[Array]) -> None:
    exact, quantised = (Model.load(folder, device="cpu", precision=p) for p in ("float32", "int8"))
    found = cosines(quantised, exact, [exact.logmel(clip) for clip in clips])
    variant = load_card(folder).variants["int8"]
    assert found.mean() > 0.999
    assert variant["clips"] == len(clips[::3])
    assert variant["calibration_clips"] == len(clips) - len(clips[::3])
    assert found.min() - 1e-6 <= float(str(variant["cosine_min"])) <= float(str(variant["cosine_mean"])) <= 1


def test_float16_is_nearer_and_half_as_large(folder: Path, clips: list[Array]) -> None:
    """On the CPU's provider, which may keep 32 bits between two layers; a GPU keeps 16."""
    exact, half = (Model.load(folder, device="cpu", precision=p) for p in ("float32", "float16"))
    variant = load_card(folder).variants["float16"]
    assert cosines(half, exact, [exact.logmel(clip) for clip in clips]).min() > 0.99999
    assert 0.99999 < float(str(variant["cosine_min"])) <= float(str(variant["cosine_mean"])) <= 1
    sizes = [(folder / name).stat().st_size for name in ("encoder.float16.onnx", "encoder.onnx")]
    assert sizes[0] < 0.51 * sizes[1]
    types = {each.data_type for each in onnx.load(folder / "encoder.float16.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


def test_a_network_whose_numbers_16_bits_cannot_hold_is_refused(clips: list[Array], tmp_path: Path) -> None:
    trained = random_trained("byola-2020")
    first, second = (each for each in trained.encoder.fc if isinstance(each, torch.nn.Linear))
    with torch.no_grad():
        first.weight.mul_(1e7)
        first.bias.mul_(1e7)
        second.weight.mul_(1e-7)
    with pytest.raises(ExportError, match="float16 graph is too far"):
        export(trained, tmp_path / "a", about=ABOUT, clips=clips[:6], float16=True)
    assert list(tmp_path.iterdir()) == []


def test_the_card_has_the_self_test_of_every_graph(folder: Path) -> None:
    expected = load_card(folder).self_test
    assert expected is not None
    assert sorted(expected.expected) == ["float16", "float32", "int8"]
    for precision in ("float32", "float16", "int8"):
        assert Model.load(folder, device="cpu", precision=precision).probe() is None


def test_a_self_test_is_added_to_a_folder_that_has_none(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    with_test = load_card(tmp_path / "old")
    write_card(tmp_path / "old", with_test.model_copy(update={"self_test": None}))
    assert add_self_test(tmp_path / "old") == with_test == load_card(tmp_path / "old")


def test_int8_too_far_from_float32_is_refused_and_leaves_nothing(clips: list[Array], tmp_path: Path) -> None:
    quiet = [clip * np.float32(1e-4) if i % 3 else clip for i, clip in enumerate(clips)]
    with pytest.raises(ExportError, match=r"cosine is 0\.\d+ in the mean, less than 0\.999"):
        export(random_trained("byola-2020"), tmp_path / "a", about=ABOUT, clips=quiet, int8=True)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_the_trained_encoder_is_refused_and_leaves_nothing(
    clips: Sequence[Array], tmp_path: Path
) -> None:
    trained = random_trained("byola-2020")
    trained.encoder.features.train()  # PyTorch normalises by the batch now, the graph by the statistics
    with pytest.raises(ExportError, match="not the trained encoder"):
        export(trained, tmp_path / "a", about=ABOUT, clips=clips)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_card_cannot_hold_is_refused(clips: list[Array], tmp_path: Path) -> None:
    about = replace(ABOUT, name="my model")
    with pytest.raises(ExportError, match="name 'my model'"):
        export(random_trained("byola-2020"), tmp_path / "a", about=about, clips=clips)
    assert list(tmp_path.iterdir()) == []


def test_too_few_clips_to_calibrate_with_are_refused(clips: list[Array], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="5 clips are too few"):
        export(random_trained("byola-2020"), tmp_path / "a", about=ABOUT, clips=clips[:5], int8=True)


def test_the_full_size_files_fit_into_git(clips: list[Array], tmp_path: Path) -> None:
    parameters = {"n_mels": 64, "d": 3072}
    trained = Trained("byola-2022", parameters, random_encoder("byola-2022", **parameters), MEAN, STD, {})
    out = tmp_path / "byola"
    export(trained, out, about=ABOUT, clips=clips[:6], int8=True, least_cosine=0.9)
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert 25.3e6 < sizes["encoder.onnx"] < 25.5e6
    assert sizes["encoder.int8.onnx"] < 6.5e6
