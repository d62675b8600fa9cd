"""mn04's published weights, where one has them: the authors' tags, by PyTorch and as the folder is served.

The weights (EfficientAT v0.0.1, MIT) and AudioSet's table of classes are no part of the repository: they are
looked for in `shared/teacher` beside the checkout.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from encoders.published import Published, load_published
from model_export.__main__ import main
from model_export.clips import FIXTURES
from service.http.app import create_app
from service.inference.model import Model
from service.inference.windows import embed
from service.settings import Settings
from service.sound.audio import decode
from tests.encoders.test_frontend import efficientats

TEACHER = Path(__file__).parents[4] / "shared" / "teacher"
WEIGHTS = TEACHER / "mn04_as_mAP_432.pt"
SPEECH, ROBIN = FIXTURES / "speech_16k_mono.flac", FIXTURES / "robin_44k1_stereo.mp3"

# What the authors' network says of the first five seconds of the fixtures, at 16 kHz and from there by
# torchaudio's resampler. How much of a speech that ends at 8 kHz is mirrored beyond moves its tags: by the
# server's resampler, which mirrors less, "Female speech" is 0.305.
EXPECTED = {
    SPEECH: {"Speech": 0.738, "Female speech, woman speaking": 0.239, "Speech synthesizer": 0.206},
    ROBIN: {"Bird": 0.776, "Chirp, tweet": 0.646},
}

pytestmark = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"{WEIGHTS.name}, published by EfficientAT's authors, is not at hand"
)


@pytest.fixture(scope="module")
def published() -> Published:
    return load_published("efficientat", torch.load(WEIGHTS, weights_only=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the guide makes it: the names of the classes lie beside the weights."""
    out = tmp_path_factory.mktemp("models") / "mn04"
    words = ["import", "--encoder", "efficientat", "--weights", str(WEIGHTS), "--head", "--out", str(out)]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    settings = Settings(models_dir=folder.parent, model="mn04", device="cpu", threads=1)
    with TestClient(create_app(settings)) as client:
        yield client


def by_torchaudio(path: Path) -> NDArray[np.float32]:
    """(n,) at 32 kHz, of at most five seconds."""
    samples = torch.from_numpy(decode(path, sample_rate=16_000).samples[: 5 * 16_000])
    return torchaudio.functional.resample(samples, 16_000, 32_000).numpy()


def in_torch(published: Published, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(527,) the published sigmoids, by torchaudio's log-mel and without a window or a mask."""
    assert published.tags is not None
    x = (torch.from_numpy(efficientats(samples, torch.float32))[None, None] + 4.5) / 5
    with torch.no_grad():
        logits = published.tags(published.encoder.pool(published.encoder(x)))
    return torch.sigmoid(logits)[0].numpy()


def served(client: TestClient, sound: bytes) -> dict[str, float]:
    """What /classify says of a file: all labels with their scores."""
    answer = client.post("/classify", params={"top_k": 527}, files={"file": ("a", sound)})
    assert answer.status_code == 200, answer.text
    return {tag["label"]: tag["score"] for tag in answer.json()["tags"]}


def wav(samples: NDArray[np.float32], rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_every_entry_of_the_file_is_used(published: Published) -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    assert (len(state), sum(value.numel() for value in state.values())) == (312, 993_485)
    assert published.parameters == {"width": 0.4}
    assert not published.ignored
    assert published.tags is not None
    assert len(published.encoder.state_dict()) + len(published.tags.state_dict()) == 312


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_pytorch_gives_the_published_tags(published: Published, model: Model, path: Path) -> None:
    found = dict(zip(model.heads["audioset"].labels, in_torch(published, by_torchaudio(path)), strict=True))
    for label, score in EXPECTED[path].items():
        assert found[label] == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_the_server_gives_the_published_tags_of_the_same_samples(client: TestClient, path: Path) -> None:
    found = served(client, wav(by_torchaudio(path), 32_000))
    for label, score in EXPECTED[path].items():
        assert found[label] == pytest.approx(score, abs=1e-3)


def test_the_server_gives_the_published_tags_of_the_original_file(client: TestClient) -> None:
    found = served(client, ROBIN.read_bytes())
    for label, score in EXPECTED[ROBIN].items():
        assert found[label] == pytest.approx(score, abs=1e-2)
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    found = served(client, wav(samples[: 5 * rate], rate))
    for label, score in EXPECTED[SPEECH].items():
        assert found[label] == pytest.approx(score, abs=0.07)
    assert list(found)[:3] == list(EXPECTED[SPEECH])


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_all_527_tags_are_pytorchs_of_what_the_server_hears(
    published: Published, model: Model, client: TestClient, path: Path
) -> None:
    samples = decode(path, sample_rate=32_000).samples
    found = served(client, path.read_bytes())
    expected = dict(zip(model.heads["audioset"].labels, in_torch(published, samples), strict=True))
    assert set(found) == set(expected)
    # float32 in another order, through two front-ends
    assert max(abs(found[label] - expected[label]) for label in expected) < 1e-3


def test_ten_seconds_are_one_window_as_published(published: Published, model: Model) -> None:
    birds = decode(FIXTURES / "birds_30s_16k_mono.opus", sample_rate=32_000).samples[:320_000]
    logmel = model.logmel(birds)
    assert logmel.shape[1] == 1000 <= model.card.windows.frames
    vector = embed(model.run, model.card, [logmel]).vector
    scores = model.heads["audioset"].score(vector[None])[0]
    np.testing.assert_allclose(scores, in_torch(published, birds), atol=1e-3)


def test_eight_bits_are_measured_and_found_too_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight channels with one scale for all, in front: other networks of the field lose a thousandth."""
    words = ["import", "--encoder", "efficientat", "--weights", str(WEIGHTS), "--out", str(tmp_path / "a")]
    assert main([*words, "--int8", "--calibration", str(FIXTURES)]) == 1
    assert "their cosine is 0.9" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_of_a_folder_with_fused_blocks_no_tags_are_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", "--encoder", "efficientat", "--weights", str(WEIGHTS), "--out", str(tmp_path / "a")]
    assert main([*words, "--fuse", "9,15", "--head"]) == 1
    assert "the published head reads the plain embedding, not fused layers" in capsys.readouterr().err
    assert main([*words, "--fuse", "9,15"]) == 0
    model = Model.load(tmp_path / "a", device="cpu", precision="float32")
    assert (model.card.embedding_size, model.heads) == (512, {})
