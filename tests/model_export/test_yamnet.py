"""YAMNet with its real weights: the folder is held against the graph that it was made of."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from scipy.special import expit

from model_export.__main__ import main
from model_export.clips import FIXTURES
from service.bulk.offline import classify_files
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import decode
from training.pretrain.teachers import Teacher

ROOT = Path(__file__).parents[2]
GRAPH = ROOT.parent / "shared" / "teacher" / "yamnet.onnx"
DESCRIPTION = ROOT / "model_export" / "describe" / "yamnet.toml"
SPEECH = FIXTURES / "speech_16k_mono.flac"

pytestmark = pytest.mark.skipif(
    not GRAPH.is_file(), reason="needs YAMNet's graph: ../shared/teacher/yamnet.onnx"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "yamnet"
    words = ["import", "--encoder", "onnx", "--graph", str(GRAPH), "--describe", str(DESCRIPTION)]
    assert main([*words, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder, device="cpu")


def log_mel(samples: np.ndarray) -> np.ndarray:
    """(n,) -> (T, 64), written from the README that lies beside the graph: float64, a loop over frames."""
    frames = np.stack([samples[t : t + 400] for t in range(0, len(samples) - 399, 160)]).astype(np.float64)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    magnitude = np.abs(np.fft.rfft(frames * hann, 512))
    mel = np.linspace(*(1127 * np.log1p(np.array([125.0, 7500.0]) / 700)), 66)
    points = 1127 * np.log1p(np.linspace(0, 8000, 257) / 700)
    corners = zip(mel[:-2], mel[1:-1], mel[2:], strict=True)
    bands = [np.minimum((points - a) / (b - a), (c - points) / (c - b)) for a, b, c in corners]
    return np.log(magnitude @ np.maximum(0, np.stack(bands)).T + 0.001)


def of_graph(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The graph's own embeddings and tags of each patch, 48 frames apart."""
    mel = log_mel(samples).astype(np.float32)
    patches = np.stack([mel[start : start + 96] for start in range(0, len(mel) - 95, 48)])
    vectors, logits = onnxruntime.InferenceSession(GRAPH).run(["emb", "logits"], {"logmel": patches})
    return vectors, expit(logits)


def test_a_second_of_speech_is_speech_as_the_graph_says(model: Model) -> None:
    second = decode(SPEECH, sample_rate=16_000).samples[16_000:32_000]
    vectors, tags = of_graph(second)
    assert len(vectors) == 1
    vector = embed(model.run, model.card, [model.logmel(second)]).vector
    # Our log-mel is float32, the reference's float64: logs of small sums differ by 1e-4 at most.
    np.testing.assert_allclose(vector, vectors[0], atol=2e-3)
    head = model.heads["audioset"]
    np.testing.assert_allclose(head.score(vector[None])[0], tags[0], atol=1e-4)
    assert head.labels[0] == "Speech"
    assert round(float(head.score(vector[None])[0, 0]), 3) == 0.999


def test_a_long_clip_is_the_mean_of_its_patches(model: Model) -> None:
    speech = decode(SPEECH, sample_rate=16_000).samples
    long = np.tile(speech, 1 + 25 * 16_000 // len(speech))[: 25 * 16_000]
    vectors, _ = of_graph(long)
    embedding = embed(model.run, model.card, [model.logmel(long)], frames=True)
    assert embedding.frames is not None
    assert len(embedding.frames) == len(vectors)
    np.testing.assert_allclose(embedding.vector, vectors.mean(axis=0), atol=2e-3)


def test_its_tags_are_served(folder: Path) -> None:
    model = Model.load(folder, device="cpu")
    (result,) = classify_files(model, [SPEECH], head="audioset", top_k=1, threshold=0)
    assert "Speech" in str(result)


def test_it_teaches(folder: Path) -> None:
    teacher = Teacher(folder, sample_rate=16_000, heads=None, threads=1, device="cpu")
    speech = decode(SPEECH, sample_rate=16_000).samples
    waveforms = np.stack([speech[:16_000], speech[16_000:32_000]])
    embedding, tags = teacher.answers(waveforms, embedding=True, tags=True)
    np.testing.assert_allclose(embedding[1], of_graph(waveforms[1])[0][0], atol=2e-3)
    assert tags.shape == (2, 521)
    assert round(float(tags[1, 0]), 3) == 0.999
    assert set(teacher.described()["sha256"]) == {  # type: ignore[call-overload]
        "encoder.onnx",
        "frontend.safetensors",
        "heads/audioset.safetensors",
    }
