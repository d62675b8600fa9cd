"""Triton's own client, unchanged, against a live server; and what the protocol allows that is refused."""

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from service.http.tensors import HEADER, MAX_JSON_VALUES
from service.http.upload import MAX_FILES
from tests.service.http.live import noise, serving, value, wav

INFER = "/v2/models/toy/infer"
YES = wav(noise(1.0, seed=1))
NO = wav(noise(0.6, seed=2), 22_050)
LONG = wav(noise(12.0, seed=3))  # several passages, over which heads are pooled


@pytest.fixture(scope="module")
def client(live_url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(urlparse(live_url).netloc) as client:
        yield client


@pytest.fixture(scope="module")
def http(live_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_url) as client:
        yield client


def files(*sounds: bytes, binary: bool = True) -> triton.InferInput:
    """The sounds as the tensor `audio`; in JSON, which holds no bytes, in base64."""
    given = list(sounds) if binary else [base64.b64encode(sound) for sound in sounds]
    tensor = triton.InferInput("audio", [len(sounds)], "BYTES")
    tensor.set_data_from_numpy(np.array(given, dtype=object), binary_data=binary)
    return tensor


def samples(rows: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("samples", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return tensor


def embedded(http: httpx.Client, sound: bytes) -> np.ndarray:
    answer = http.post("/embed", content=sound, headers={"Content-Type": "audio/wav"})
    return np.array(answer.json()["embedding"], np.float32)


def scored(http: httpx.Client, sound: bytes, head: str) -> dict[str, float]:
    parameters: dict[str, Any] = {"head": head, "top_k": 100}
    answer = http.post("/classify", content=sound, params=parameters, headers={"Content-Type": "audio/wav"})
    return {tag["label"]: tag["score"] for tag in answer.json()["tags"]}


def refused(http: httpx.Client, status: int, code: str, **request: Any) -> str:
    answer = http.post(request.pop("path", INFER), **request)
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert sorted(content) == ["code", "error"]
    assert content["code"] == code
    sentence: str = content["error"]
    return sentence


def test_the_client_finds_the_server_and_the_model_alive_and_ready(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert not client.is_model_ready("bayola")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]


def test_the_metadata_tells_inputs_and_outputs_with_their_sizes(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("toy")
    assert metadata["name"] == "toy"
    assert [(each["name"], each["datatype"]) for each in metadata["inputs"]] == [
        ("audio", "BYTES"),
        ("samples", "FP32"),
    ]
    shapes = {each["name"]: each["shape"] for each in metadata["outputs"]}
    assert shapes["embedding"] == [-1, 16]
    assert shapes["pets.scores"] == [-1, 3]
    assert shapes["pets.labels"] == [3]
    assert {"moods.scores", "moods.labels"} < shapes.keys()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_files_of_any_length_give_what_embed_and_classify_give(
    binary: bool, binary_out: bool, client: triton.InferenceServerClient, http: httpx.Client
) -> None:
    names = ["embedding", "pets.scores", "pets.labels", "moods.scores", "moods.labels"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    answer = client.infer("toy", [files(YES, NO, LONG, binary=binary)], outputs=outputs, request_id="7")
    assert answer.get_response()["id"] == "7"
    assert answer.get_response()["model_name"] == "toy"
    for i, sound in enumerate((YES, NO, LONG)):
        # Of the same samples; the batch is padded, and JSON's numbers round in the seventh digit.
        np.testing.assert_allclose(
            answer.as_numpy("embedding")[i], embedded(http, sound), rtol=1e-5, atol=1e-6
        )
        for head in ("pets", "moods"):
            labels = answer.as_numpy(f"{head}.labels")
            names = [label.decode() if isinstance(label, bytes) else label for label in labels]
            scores = answer.as_numpy(f"{head}.scores")[i]
            expected = scored(http, sound, head)
            np.testing.assert_allclose(scores, [expected[name] for name in names], atol=2e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_samples_at_any_rate_give_what_their_wav_gives(
    binary: bool, client: triton.InferenceServerClient, http: httpx.Client
) -> None:
    rows = np.stack([noise(0.5, seed=4), noise(0.5, seed=5)])
    for rate_hz in (16_000, 44_100):
        answer = client.infer(
            "toy", [samples(rows, binary=binary)], parameters={"sample_rate": rate_hz}
        ).as_numpy("embedding")
        for vector, row in zip(answer, rows, strict=True):
            expected = embedded(http, wav(row, rate_hz))
            np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)


def test_samples_without_a_rate_have_the_models(
    client: triton.InferenceServerClient, http: httpx.Client
) -> None:
    row = noise(0.5, seed=6)
    answer = client.infer("toy", [samples(row)])
    np.testing.assert_allclose(
        answer.as_numpy("embedding")[0], embedded(http, wav(row)), rtol=1e-4, atol=1e-5
    )


def test_whoever_asks_for_nothing_gets_everything(client: triton.InferenceServerClient) -> None:
    answer = client.infer("toy", [files(YES)])
    names = [each["name"] for each in answer.get_response()["outputs"]]
    assert names == [
        "embedding",
        *(f"{head}.{of}" for head in ("pets", "moods") for of in ("scores", "labels")),
    ]


def test_the_classification_extension_gives_the_best_labels(
    client: triton.InferenceServerClient, http: httpx.Client
) -> None:
    wanted = triton.InferRequestedOutput("pets.scores", class_count=2)
    texts = client.infer("toy", [files(YES, NO)], outputs=[wanted]).as_numpy("pets.scores")
    assert texts.shape == (2, 2)
    expected = sorted(scored(http, YES, "pets").items(), key=lambda item: -item[1])[:2]
    for text, (label, score) in zip(texts[0], expected, strict=True):
        written, place, name = text.decode().split(":")
        assert name == label
        assert ["cat", "dog", "fish"][int(place)] == label
        assert float(written) == pytest.approx(score, abs=2e-6)


def test_the_async_client_works_too(live_url: str) -> None:
    async def infer() -> Any:
        async with triton_aio.InferenceServerClient(urlparse(live_url).netloc) as client:
            return (await client.infer("toy", [files(YES)])).as_numpy("embedding")

    assert asyncio.run(infer()).shape == (1, 16)


def test_a_large_file_comes_through_the_temporary_file(
    client: triton.InferenceServerClient, http: httpx.Client
) -> None:
    large = wav(noise(40.0, seed=7))  # 2.6 MB, more than is kept in memory or written at once
    answer = client.infer("toy", [files(large, YES)])
    np.testing.assert_allclose(answer.as_numpy("embedding")[0], embedded(http, large), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer.as_numpy("embedding")[1], embedded(http, YES), rtol=1e-5, atol=1e-6)


def test_the_client_shows_the_sentence_of_an_error(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there is no model `bayola`; there is `toy`"):
        client.infer("bayola", [files(YES)])
    with pytest.raises(InferenceServerException, match=r"`audio\[1\]`: the file is not audio"):
        client.infer("toy", [files(YES, b"text")])
    with pytest.raises(InferenceServerException, match="no head `birds`"):
        client.infer("toy", [files(YES)], outputs=[triton.InferRequestedOutput("birds.scores")])
    with pytest.raises(InferenceServerException, match="there is no output `logits`; there is embedding"):
        client.infer("toy", [files(YES)], outputs=[triton.InferRequestedOutput("logits")])
    with pytest.raises(InferenceServerException, match="classification means nothing"):
        client.infer("toy", [files(YES)], outputs=[triton.InferRequestedOutput("embedding", class_count=2)])


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "samples", "datatype": "FP32", "shape": [4], "data": [0.0, 0.1, 0.2, 0.3]} | changes


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        ({}, "bad_request", "inputs: field required"),
        ({"inputs": []}, "bad_request", "inputs"),
        ({"inputs": [tensor()] * 2}, "bad_request", "inputs"),
        ({"inputs": [tensor(name="audio")]}, "bad_request", "`audio` is of the datatype BYTES"),
        ({"inputs": [tensor(shape=[5])]}, "bad_request", "has 4 elements, and by its shape 5"),
        ({"inputs": [tensor(shape=[-1])]}, "bad_request", "a size in a shape is 0 or more"),
        ({"inputs": [tensor(shape=[0], data=[])]}, "audio_missing", "empty by its shape"),
        ({"inputs": [tensor(shape=[2, 2], data=[[1], [2, 3]])]}, "bad_request", "its rows differ"),
        ({"inputs": [tensor(data=["a", "b", "c", "d"])]}, "bad_request", "no list of numbers"),
        ({"inputs": [tensor(data=[0, 1e300, 0, 0])]}, "audio_unreadable", ""),
        ({"inputs": [tensor(data=None)]}, "bad_request", "a tensor has data, or"),
        ({"inputs": [tensor(shape=[300, 1], data=[0] * 300)]}, "bad_request", f"more than {MAX_FILES}"),
        ({"inputs": [tensor()], "parameters": {"sample_rate": 0}}, "bad_request", "parameters"),
        ({"inputs": [tensor()], "parameters": {"sequence_id": 3}}, "bad_request", "is not known"),
        ({"inputs": [tensor(data=None, parameters={"binary_data_size": 16})]}, "bad_request", "0 are there"),
        ({"inputs": [tensor()], "outputs": [{"name": "embedding"}] * 2}, "bad_request", "asked for twice"),
        ({"inputs": [tensor()], "id": "x" * 300}, "bad_request", "id"),
        (
            {"inputs": [{"name": "audio", "datatype": "BYTES", "shape": [1], "data": ["no base64!"]}]},
            "bad_request",
            "is no base64",
        ),
        (
            {"inputs": [{"name": "audio", "datatype": "BYTES", "shape": [2], "data": ["UklG"]}]},
            "bad_request",
            "has 1 elements, and by its shape 2",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    content: dict[str, Any], code: str, sentence: str, http: httpx.Client
) -> None:
    assert sentence in refused(http, 422, code, json=content)


def binary_body(sounds: list[bytes], **changes: Any) -> tuple[bytes, bytes]:
    """(JSON, bytes behind it) of a request by the binary extension."""
    elements = b"".join(struct.pack("<I", len(sound)) + sound for sound in sounds)
    parameters = {"binary_data_size": len(elements)}
    given = {"name": "audio", "datatype": "BYTES", "shape": [len(sounds)], "parameters": parameters} | changes
    return json.dumps({"inputs": [given]}).encode(), elements


@pytest.mark.parametrize(
    ("changes", "cut", "more", "sentence"),
    [
        ({}, 3, b"", "are there"),
        ({}, 0, b"behind", "6 bytes follow that no tensor claims"),
        ({"shape": [2]}, 0, b"", "ends within an element: its shape tells 2"),
        ({"shape": [0]}, 0, b"", "empty by its shape"),
        ({"parameters": {"binary_data_size": 3}}, 0, b"", "ends within an element"),
        ({"parameters": {"binary_data_size": 40}}, 0, b"", "bytes 36 are there"),
        ({"parameters": {"binary_data_size": 1 << 40}}, 0, b"", "are there"),
    ],
)
def test_tensors_that_do_not_fit_their_bytes_are_refused(
    changes: dict[str, Any], cut: int, more: bytes, sentence: str, http: httpx.Client
) -> None:
    head, elements = binary_body([YES], **changes)
    content = head + elements[: len(elements) - cut] + more
    answer = http.post(INFER, content=content, headers={HEADER: str(len(head))})
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


def test_an_element_longer_than_its_tensor_is_refused(http: httpx.Client) -> None:
    head, elements = binary_body([YES])
    wrong = struct.pack("<I", 0xFFFFFFFF) + elements[4:]
    sentence = refused(http, 422, "bad_request", content=head + wrong, headers={HEADER: str(len(head))})
    assert "of 4294967295 bytes" in sentence


@pytest.mark.parametrize("length", ["-1", "x", "99999999999999", "1000000000", "²"])
def test_a_header_that_is_no_length_of_the_json_is_refused(length: str, http: httpx.Client) -> None:
    headers = {HEADER: length.encode("latin-1")}
    assert HEADER in refused(http, 422, "bad_request", content=b"{}", headers=headers)


def test_json_with_too_many_values_is_refused_unread(http: httpx.Client) -> None:
    content = b'{"inputs": [' + b"0," * (MAX_JSON_VALUES + 1) + b"0]}"
    assert "send samples by the binary extension" in refused(http, 422, "bad_request", content=content)
    content = b'{"inputs": [' + b"[]," * 3000 + b"0]}"
    assert "lists and objects" in refused(http, 422, "bad_request", content=content)


def test_keys_are_asked_for_and_probes_need_none(models_dir: Path) -> None:
    with serving(models_dir, api_keys=("key",)) as (http, _):
        assert http.get("/v2/health/live").json() == {"live": True}
        assert http.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2", "/v2/models/toy", "/v2/models/toy/ready"):
            assert http.get(path).status_code == 401
        sentence = refused(http, 401, "unauthorized", json={})
        assert "show a key" in sentence
        head, elements = binary_body([YES])
        headers = {HEADER: str(len(head)), "Authorization": "Bearer key"}
        assert http.post(INFER, content=head + elements, headers=headers).status_code == 200


def test_requests_count_by_route_and_hold_nothing_afterwards(models_dir: Path) -> None:
    with serving(models_dir) as (http, state):
        head, elements = binary_body([YES, b"text"])
        for content in (head + elements, head + elements + b"more", head + elements[:-1]):
            http.post(INFER, content=content, headers={HEADER: str(len(head))})
        http.post("/v2/models/nobody/infer", json={})
        http.get("/v2/models/nobody")
        page = http.get("/metrics").text
        count = 'viola_requests_total{code="422",model="toy",route="/v2/models/{name}/infer"}'
        assert value(page, count) == 3
        assert 'route="/v2/models/{name}"' in page
        assert "nobody" not in page
        assert state.budget.held_bytes == state.budget.bytes_in_memory == 0


def test_a_server_that_is_not_ready_says_so_in_the_protocols_shape(models_dir: Path) -> None:
    with serving(models_dir) as (http, state):
        state.is_draining = True
        answer = http.get("/v2/health/ready")
        assert answer.status_code == 503
        assert answer.json() == {"error": "the server is shutting down", "code": "not_ready"}
        state.is_draining = False
