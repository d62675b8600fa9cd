"""Hugging Face's own client, unchanged, against a live server; what its JavaScript sends; what is refused."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.service.http.live import noise, serving, wav

NODE = shutil.which("node")
CLASSIFY = "/models/toy/pipeline/audio-classification"
FEATURES = "/models/toy/pipeline/feature-extraction"
SOUND = wav(noise(1.0, seed=1))
OTHER = wav(noise(0.6, seed=2), 22_050)
IN_BASE64 = base64.b64encode(SOUND).decode()


@pytest.fixture
def client() -> InferenceClient:
    return InferenceClient(token="any")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would ask the hub fails at once."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")


def tags(live_url: str, sound: bytes, **parameters: Any) -> list[dict[str, Any]]:
    answer = httpx.post(
        f"{live_url}/classify", content=sound, params=parameters, headers={"Content-Type": "audio/wav"}
    )
    found: list[dict[str, Any]] = answer.json()["tags"]
    return found


def embedded(live_url: str, sound: bytes) -> np.ndarray:
    answer = httpx.post(f"{live_url}/embed", content=sound, headers={"Content-Type": "audio/wav"})
    return np.array(answer.json()["embedding"], np.float32)


@pytest.mark.parametrize("form", ["bytes", "path", "file"])
def test_the_client_gets_the_tags_of_classify(
    form: str, client: InferenceClient, live_url: str, tmp_path: Path
) -> None:
    (tmp_path / "sound.wav").write_bytes(SOUND)
    given: Any = {"bytes": SOUND, "path": str(tmp_path / "sound.wav"), "file": tmp_path / "sound.wav"}[form]
    labels = client.audio_classification(given, model=live_url + CLASSIFY)
    assert [(each.label, each.score) for each in labels] == [
        (tag["label"], tag["score"]) for tag in tags(live_url, SOUND)
    ]


def test_parameters_come_beside_the_sound_in_json(client: InferenceClient, live_url: str) -> None:
    labels = client.audio_classification(
        SOUND, model=live_url + CLASSIFY, top_k=2, function_to_apply="softmax"
    )
    assert [each.label for each in labels] == [tag["label"] for tag in tags(live_url, SOUND, top_k=2)]


def test_the_url_may_name_another_head(client: InferenceClient, live_url: str) -> None:
    labels = client.audio_classification(SOUND, model=f"{live_url}{CLASSIFY}?head=moods")
    assert {each.label for each in labels} == {"calm", "wild"}


def test_the_client_gets_the_vector_of_embed(client: InferenceClient, live_url: str) -> None:
    for sound in (IN_BASE64, f"data:audio/wav;base64,{IN_BASE64}"):
        vectors = client.feature_extraction(sound, model=live_url + FEATURES)
        assert vectors.shape == (1, 16)
        np.testing.assert_allclose(vectors[0], embedded(live_url, SOUND), rtol=1e-5, atol=1e-6)


def test_the_client_can_ask_for_normalised_vectors(client: InferenceClient, projected_dir: Path) -> None:
    with serving(projected_dir) as (http, _):
        url = f"{http.base_url}".rstrip("/") + FEATURES
        vectors = client.feature_extraction(IN_BASE64, model=url, normalize=True, truncate=True)
        assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)
        assert client.feature_extraction(IN_BASE64, model=url, dimensions=4).shape == (1, 4)


def test_what_javascript_sends_is_answered(live_url: str) -> None:
    """`fetch(url, {method: "POST", body: blob})` has the blob's type, or none; huggingface.js sends JSON."""
    expected = tags(live_url, SOUND)
    for headers in ({"Content-Type": "audio/wav"}, {"Content-Type": "audio/x-wav"}, {}):
        assert httpx.post(live_url + CLASSIFY, content=SOUND, headers=headers).json() == expected
    vectors = httpx.post(
        live_url + FEATURES, json={"inputs": [IN_BASE64] * 2, "options": {"use_cache": False}}
    )
    assert np.array(vectors.json()).shape == (2, 16)
    raw = httpx.post(live_url + FEATURES, content=SOUND, headers={"Content-Type": "audio/wav"})
    np.testing.assert_allclose(raw.json()[0], embedded(live_url, SOUND), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_nodes_fetch_gets_the_tags_of_classify(live_url: str, tmp_path: Path) -> None:
    """As docs/protocols.md has it, with the blob from a file."""
    assert NODE is not None
    page = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text(encoding="utf-8")
    program = page.partition("```js\n")[2].partition("```")[0]
    program = program.replace("http://localhost:8000/models/byola", f"{live_url}/models/toy")
    (tmp_path / "sound.wav").write_bytes(SOUND)
    (tmp_path / "program.mjs").write_text(
        'import { readFileSync } from "node:fs";\n'
        'const blob = new Blob([readFileSync("sound.wav")]);\n'
        f"{program}\nconsole.log(JSON.stringify(labels));\n"
    )
    done = subprocess.run([NODE, "program.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tags(live_url, SOUND)


def test_the_client_shows_the_sentence_of_an_error(client: InferenceClient, live_url: str) -> None:
    with pytest.raises(HfHubHTTPError, match="there is no model `bayola`; there is `toy`"):
        client.audio_classification(SOUND, model=f"{live_url}/models/bayola/pipeline/audio-classification")
    with pytest.raises(HfHubHTTPError, match="the file is not audio"):
        client.audio_classification(b"text", model=live_url + CLASSIFY)
    with pytest.raises(HfHubHTTPError, match="the head `pets` makes its scores by softmax"):
        client.audio_classification(SOUND, model=live_url + CLASSIFY, function_to_apply="none")


@pytest.mark.parametrize(
    ("path", "content", "code", "sentence"),
    [
        (CLASSIFY, {}, "audio_missing", "the JSON has no `inputs`"),
        (CLASSIFY, {"inputs": [IN_BASE64]}, "bad_request", "is a list; one sound is taken here"),
        (CLASSIFY, {"inputs": IN_BASE64, "parameters": 3}, "bad_request", "`parameters` is no object"),
        (CLASSIFY, {"inputs": IN_BASE64, "parameters": {"top_k": 0}}, "bad_request", "top_k"),
        (CLASSIFY, {"inputs": IN_BASE64, "top_k": 1, "parameters": {"top_k": 2}}, "bad_request", "once"),
        (FEATURES, {"inputs": "a text to embed"}, "bad_request", "`inputs` is no base64"),
        (FEATURES, {"inputs": IN_BASE64, "prompt_name": "query"}, "bad_request", "is not known"),
        (FEATURES, {"inputs": [IN_BASE64, "dGV4dA=="]}, "audio_unreadable", "`inputs[1]`: the file is not"),
        (FEATURES, {"inputs": IN_BASE64, "encoding_format": "base64"}, "bad_request", "encoding_format"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    path: str, content: dict[str, Any], code: str, sentence: str, live_url: str
) -> None:
    answer = httpx.post(live_url + path, json=content)
    assert answer.status_code == 422
    assert sorted(answer.json()) == ["code", "error"]
    assert answer.json()["code"] == code
    assert sentence in answer.json()["error"]


def test_a_key_is_asked_for_and_the_clients_token_is_one(models_dir: Path) -> None:
    with serving(models_dir, api_keys=("key",)) as (http, state):
        url = f"{http.base_url}".rstrip("/") + CLASSIFY
        with pytest.raises(HfHubHTTPError, match="show a key as"):
            InferenceClient(token="wrong").audio_classification(SOUND, model=url)
        assert InferenceClient(token="key").audio_classification(SOUND, model=url)
        page = http.get("/metrics").text
        assert f'route="{CLASSIFY.replace("toy", "{name}")}"' in page
        counted = [line for line in page.splitlines() if line.startswith("viola_errors_total{")]
        (refusals,) = (line for line in counted if "unauthorized" in line)
        assert refusals.endswith(" 1.0")
        assert state.budget.held_bytes == 0


def test_an_open_file_is_a_sound_too(live_url: str) -> None:
    """The client takes no file objects for this task; a form, as other tools send it, is taken."""
    answer = httpx.post(live_url + CLASSIFY, files={"file": io.BytesIO(OTHER)})
    assert answer.json() == tags(live_url, OTHER)
