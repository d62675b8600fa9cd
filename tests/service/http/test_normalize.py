"""normalize and dimensions on every route that gives vectors, against the model's own vectors in NumPy."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from service.inference import windows
from service.inference.model import Model
from service.sound import audio
from tests.service.http.live import FIXTURES, RAW, check_error, serving

DOG = FIXTURES / "dog_bark_44k1_mono.ogg"


@pytest.fixture(scope="module")
def client(projected_dir: Path) -> Iterator[httpx.Client]:
    with serving(projected_dir) as (client, _):
        yield client


@pytest.fixture(scope="module")
def raw(projected_dir: Path) -> windows.Embedding:
    """The dog's vectors as the model gives them."""
    model = Model.load(projected_dir / "toy", device="cpu")
    samples = audio.decode(DOG, sample_rate=16_000).samples
    logmel = model.logmel(samples)
    return windows.embed(model.run, model.card, [logmel], frames=True, window_s=0.5)


def projected(vectors: np.ndarray, folder: Path, dimensions: int | None = None) -> np.ndarray:
    """As test_projection.py has it tested against matrices."""
    project = Model.load(folder / "toy", device="cpu").project_of(normalize=True, dimensions=dimensions)
    assert project is not None
    return project(np.atleast_2d(vectors).astype(np.float32))


def ask(client: httpx.Client, route: str = "embed", **query: Any) -> dict[str, Any]:
    answer = client.post(f"/{route}", content=DOG.read_bytes(), headers=RAW, params=query)
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_clip_frames_and_windows_are_projected_alike(
    client: httpx.Client, raw: windows.Embedding, projected_dir: Path
) -> None:
    for asked, n in ({"normalize": True}, None), ({"dimensions": 4}, 4):
        answer = ask(client, frames=True, window_s=0.5, **asked)
        size = n or 16
        assert answer["embedding_size"] == len(answer["embedding"]) == size
        assert np.linalg.norm(answer["embedding"]) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(answer["embedding"], projected(raw.vector, projected_dir, n)[0], atol=1e-4)
        assert raw.frames is not None
        # A frame is a clip of one frame, whose vector is its mean and its maximum: twice the frame.
        np.testing.assert_allclose(
            answer["frames"]["embeddings"], projected(2 * raw.frames, projected_dir, n), atol=1e-4
        )
        rows = np.stack([segment.vector for segment in raw.segments])
        np.testing.assert_allclose(
            answer["windows"]["embeddings"], projected(rows, projected_dir, n), atol=1e-4
        )


def test_base64_npy_and_float16_hold_the_same(client: httpx.Client) -> None:
    expected = ask(client, dimensions=4)["embedding"]
    text = ask(client, dimensions=4, encoding="base64", dtype="float16")["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(text), "<f2"), expected, atol=1e-3)
    answer = client.post(
        "/embed?dimensions=4", content=DOG.read_bytes(), headers=RAW | {"Accept": "application/x-npy"}
    )
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected, atol=1e-6)


def test_tags_do_not_change_with_the_vector_that_comes_with_them(client: httpx.Client) -> None:
    plain = ask(client, "classify", embedding="float", window_s=0.5)
    turned = ask(client, "classify", embedding="float", window_s=0.5, dimensions=4)
    assert turned["tags"] == plain["tags"]
    assert turned["timeline"] == plain["timeline"]
    assert turned["embedding"] == pytest.approx(ask(client, dimensions=4)["embedding"])
    assert plain["embedding"] == pytest.approx(ask(client)["embedding"])


def test_a_batch_and_a_json_body_take_them_too(client: httpx.Client) -> None:
    files = [("file", ("dog.ogg", DOG.read_bytes())), ("file", ("none.txt", b"no sound"))]
    one, bad = client.post("/embed/batch?normalize=true", files=files).json()["results"]
    assert one["embedding"] == pytest.approx(ask(client, normalize=True)["embedding"], abs=1e-5)
    assert bad["error"] == "audio_unreadable"
    body = {"audio": base64.b64encode(DOG.read_bytes()).decode(), "dimensions": 4}
    answer = client.post("/embed", json=body).json()
    assert answer["embedding"] == pytest.approx(ask(client, dimensions=4)["embedding"], abs=1e-5)


def test_openais_client_asks_for_dimensions(client: httpx.Client) -> None:
    uri = "data:audio/ogg;base64," + base64.b64encode(DOG.read_bytes()).decode()
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as asking:
        four = asking.embeddings.create(model="toy", input=[uri], dimensions=4)
        whole = asking.embeddings.create(model="toy", input=[uri], extra_body={"normalize": True})
        plain = asking.embeddings.create(model="toy", input=[uri], dimensions=16)
        with pytest.raises(openai.UnprocessableEntityError, match="1 to 8 rotated numbers"):
            asking.embeddings.create(model="toy", input=[uri], dimensions=9)
    assert four.data[0].embedding == pytest.approx(ask(client, dimensions=4)["embedding"], abs=1e-5)
    assert whole.data[0].embedding == pytest.approx(ask(client, normalize=True)["embedding"], abs=1e-5)
    assert plain.data[0].embedding == pytest.approx(ask(client)["embedding"], rel=1e-5)


@pytest.mark.parametrize(
    ("route", "query", "sentence"),
    [
        ("embed", "dimensions=9", "there are 1 to 8 rotated numbers"),
        ("embed", "dimensions=0", "dimensions: input should be greater than or equal to 1"),
        ("embed", "dimensions=4&normalize=false", "normalize=false: fewer dimensions"),
        ("embed", "normalize=perhaps", "normalize: input should be a valid boolean"),
        ("classify", "normalize=true", "normalize means nothing without embedding"),
        ("classify", "dimensions=4", "dimensions means nothing without embedding"),
        ("classify", "dimensions=9&embedding=float", "there are 1 to 8 rotated numbers"),
    ],
)
def test_what_cannot_be_meant_is_said(route: str, query: str, sentence: str, client: httpx.Client) -> None:
    answer = client.post(f"/{route}?{query}", content=DOG.read_bytes(), headers=RAW)
    assert sentence in check_error(answer, 422, "bad_request")


def test_a_model_without_a_projection_says_so_before_the_sound_is_read(models_dir: Path) -> None:
    with serving(models_dir) as (client, _):
        answer = client.post("/embed?normalize=true", content=b"no sound at all", headers=RAW)
        assert "has no projection.safetensors" in check_error(answer, 422, "bad_request")


def test_the_card_tells_clients_that_there_is_one(client: httpx.Client) -> None:
    card = client.get("/models/toy").json()["card"]
    assert card["projection"]["components"] == 8
