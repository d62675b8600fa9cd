"""HEAR's common API over model folders: the real validator, its successor's rules, the server's figures."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import encoders
import hear
from hear import Served
from model_export.clips import FIXTURES, read_clips
from model_export.export import About, export
from model_export.sources.trained import Trained
from service.errors import ModelFolderError
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import decode

from ..published_files import CASES

# HEAR knows 16, 22.05, 44.1 and 48 kHz: its evaluation cannot feed a model of 32 kHz (docs/hear.md).
AT_32_KHZ = {"efficientat", "efficientat-9-15"}

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models" / "byola"
RATE = 16_000


@pytest.fixture(scope="module")
def model() -> Served:
    return hear.load_model("models/byola")


@pytest.fixture(scope="module")
def folder_of_80_ms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of byola-2020 with random weights: its frames are further apart than HEAR suggests."""
    torch.manual_seed(0)
    parameters = {"n_mels": 64, "d": 512}
    encoder = encoders.build("byola-2020", **parameters).eval()
    out = tmp_path_factory.mktemp("models") / "untrained"
    export(
        Trained("byola-2020", parameters, encoder, -9.0, 5.0, {}),
        out,
        about=About("untrained", "1", "random weights", "CC0-1.0", "tests", "knows nothing"),
        clips=read_clips(FIXTURES, sample_rate=RATE, at_most=3),
    )
    return out


def noise(n_sounds: int, duration_s: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(n_sounds, int(duration_s * RATE), generator=generator) - 1


def sound(name: str) -> Tensor:
    """(1, n_samples) of a fixture."""
    return torch.from_numpy(decode(FIXTURES / name, sample_rate=RATE).samples)[None]


# The validators


def validate(*words: str) -> "subprocess.CompletedProcess[str]":
    """`hear-validator` in a fresh interpreter, an empty module for TensorFlow; every warning shown."""
    pytest.importorskip("hearvalidator", reason="pip install --no-deps hearvalidator==2021.0.2")
    return subprocess.run(
        [sys.executable, "-W", "always", "-m", "hearvalidator.validate", "hear", "-d", "cpu", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent / "no_tensorflow")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("words", [(), ("-m", "models/byola")], ids=["by default", "by its folder"])
def test_hears_validator_finds_the_default_model_good_without_a_warning(words: tuple[str, ...]) -> None:
    done = validate(*words)
    assert done.returncode == 0, done.stderr
    assert "Looks good!" in done.stdout
    assert "Warning" not in done.stderr


def test_hears_validator_warns_of_frames_longer_than_50_ms_and_of_nothing_else(folder_of_80_ms: Path) -> None:
    done = validate("-m", str(folder_of_80_ms))
    assert done.returncode == 0, done.stderr
    assert "Looks good!" in done.stdout
    assert done.stderr.count("Warning") == 1
    assert "less than or equal to 50ms" in done.stderr


@pytest.mark.parametrize("case", [case for case in CASES if case not in AT_32_KHZ])
def test_hears_validator_finds_every_encoder_good(
    case: str,
    imported: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No warning but the one about frames longer than 50 ms. In this interpreter: torch is loaded once."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "no_tensorflow")
    validator = pytest.importorskip(
        "hearvalidator.validate", reason="pip install --no-deps hearvalidator==2021.0.2"
    )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        validator.ValidateModel("hear", str(imported(case)), "cpu")()
    frames = re.search(r"Interval between timestamps is (\S+)ms", capsys.readouterr().out)
    assert frames is not None
    # of a single frame there is no interval
    assert ["50ms" in str(warning.message) for warning in seen] == [True] * (float(frames[1]) > 50)


@pytest.mark.parametrize("case", CASES)
def test_the_timestamps_of_every_encoder_lie_within_the_sound(
    case: str, imported: Callable[[str], Path]
) -> None:
    model = hear.load_model(str(imported(case)))
    for duration_s in (0.3, 1.07, 12.5):
        _, (times_ms, *_) = hear.get_timestamp_embeddings(noise(1, duration_s), model)
        assert 0 <= times_ms.min() <= times_ms.max() <= 1000 * duration_s


@pytest.mark.parametrize(("n_sounds", "duration_s"), [(2, 1.07), (2, 1.98), (2, 4.0), (4, 2.74)])
def test_the_newer_validators_rules_hold(model: Served, n_sounds: int, duration_s: float) -> None:
    audio = noise(n_sounds, duration_s)
    embeddings, times_ms = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (n_sounds, times_ms.shape[1], model.timestamp_embedding_size)
    assert times_ms.shape[0] == n_sounds
    spacing = torch.diff(times_ms)
    assert (spacing - spacing.mean()).abs().max() < 1e-3
    assert spacing.mean() <= 50
    assert times_ms.min() <= spacing.mean()
    assert 0 <= 1000 * duration_s - times_ms.max() <= 50
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (n_sounds, model.scene_embedding_size)


# The attributes


def test_the_attributes_are_plain_integers(model: Served) -> None:
    assert isinstance(model, torch.nn.Module)
    sizes = model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size
    assert sizes == (16_000, 3072, 3072)
    assert all(type(size) is int for size in sizes)


def test_the_options_of_heareval_choose_the_graph() -> None:
    assert hear.load_model().model.precision == "float32"
    assert hear.load_model("models/byola", precision="int8").model.precision == "int8"


def test_a_folder_that_holds_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"card\.json cannot be read"):
        hear.load_model(str(tmp_path))


# The embeddings


def test_a_scene_embedding_is_what_the_server_gives(model: Served) -> None:
    served = Model.load(SHIPPED, device="cpu", precision="float32")
    for name in ("dog_bark_44k1_mono.ogg", "birds_30s_16k_mono.opus"):
        audio = sound(name)
        expected = embed(served.run, served.card, [served.logmel(audio[0].numpy())], frames=True)
        (scene,) = hear.get_scene_embeddings(audio, model)
        frames, times_ms = hear.get_timestamp_embeddings(audio, model)
        np.testing.assert_allclose(scene.numpy(), expected.vector, rtol=1e-5, atol=1e-5)
        assert expected.frames is not None
        np.testing.assert_allclose(frames[0].numpy(), expected.frames, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(times_ms[0].numpy() / 1000, expected.times_s, atol=1e-6)


def test_the_mean_and_maximum_of_the_frames_are_the_scene(model: Served) -> None:
    audio = sound("keyword_yes_16k_mono_pcm16.wav")
    frames, _ = hear.get_timestamp_embeddings(audio, model)
    scene = hear.get_scene_embeddings(audio, model)
    furthest = (scene - frames.mean(dim=1) - frames.amax(dim=1)).abs().max()
    assert furthest <= 1e-5 * scene.max()


def test_an_embedding_depends_neither_on_its_batch_nor_on_the_time_of_asking(model: Served) -> None:
    audio = noise(25, 1.0)  # more than one batch
    together = hear.get_scene_embeddings(audio, model)
    assert torch.equal(together, hear.get_scene_embeddings(audio, model))
    alone = hear.get_scene_embeddings(audio[23:24], model)
    assert (together[23] - alone[0]).abs().max() <= 1e-5 * alone.max()


def test_a_click_is_found_where_it_is(model: Served) -> None:
    audio = torch.zeros(1, 2 * RATE)
    audio[0, RATE] = 1.0  # at 1000 ms
    frames, times_ms = hear.get_timestamp_embeddings(audio, model)
    change = (frames[0] - frames[0, 0]).norm(dim=-1)
    assert abs(float(times_ms[0, change.argmax()]) - 1000) <= 40


def test_timestamps_are_milliseconds_of_every_sound(model: Served) -> None:
    _, times_ms = hear.get_timestamp_embeddings(noise(3, 1.0), model)
    assert times_ms.shape == (3, 25)
    assert times_ms[:, :3].tolist() == 3 * [[15.0, 55.0, 95.0]]


def test_an_hours_timestamps_would_still_be_exact(model: Served) -> None:
    """Half a minute in windows of ten seconds is regular, and float32 holds the last one of an hour."""
    _, times_ms = hear.get_timestamp_embeddings(noise(1, 30.5), model)
    assert torch.equal(torch.diff(times_ms), torch.full_like(times_ms[:, 1:], 40))
    assert float(torch.tensor(3_599_975.0)) == 3_599_975


@pytest.mark.parametrize("n_samples", [1, 160, 512, 513, 640])
def test_a_very_short_sound_has_one_frame_within_it(model: Served, n_samples: int) -> None:
    frames, times_ms = hear.get_timestamp_embeddings(noise(2, 1.0)[:, :n_samples], model)
    assert frames.shape == (2, 1, 3072)
    assert 0 <= float(times_ms[0, 0]) <= n_samples / 16
    assert torch.isfinite(hear.get_scene_embeddings(noise(2, 1.0)[:, :n_samples], model)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_samples_of_another_precision_are_heard_as_well(model: Served, dtype: torch.dtype) -> None:
    audio = sound("dog_bark_44k1_mono.ogg")
    scene = hear.get_scene_embeddings(audio.to(dtype), model)
    assert scene.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(scene, hear.get_scene_embeddings(audio, model))
    assert cosine > 0.999


def test_audio_that_asks_for_a_gradient_gets_embeddings_without(model: Served) -> None:
    scene = hear.get_scene_embeddings(noise(1, 0.5).requires_grad_(), model)
    assert not scene.requires_grad


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(160),
        torch.zeros(2, 1, 160),
        torch.zeros(1, 0),
        torch.zeros(2, 160, dtype=torch.int16),
    ],
    ids=["one sound alone", "channels", "no samples", "integers"],
)
def test_what_is_no_batch_of_sounds_is_refused(model: Served, audio: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give floating-point samples .* \(n_sounds, n_samples\)"):
        hear.get_scene_embeddings(audio, model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device for torch")
def test_embeddings_lie_where_the_audio_lies(model: Served) -> None:
    audio = noise(2, 1.0).cuda()
    frames, times_ms = hear.get_timestamp_embeddings(audio, model.to("cuda"))
    assert {frames.device, times_ms.device, hear.get_scene_embeddings(audio, model).device} == {audio.device}
