"""POST /embed/text over real requests: vectors, limits, and whatever text somebody thinks of."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from service.http.json_body import MAX_TEXT_COMMAS, TEXT_BYTES
from service.http.text_request import MAX_TEXT_BYTES, MAX_TEXTS
from service.inference import text
from tests.service.conftest import D, write_toy
from tests.service.http.live import check_error, serving, value
from tests.service.text_towers import vector_of, write_text_toy

URL = "/embed/text"


@pytest.fixture(scope="module")
def words_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clap` with a text tower, and `toy` without."""
    folder = tmp_path_factory.mktemp("models")
    write_toy(folder / "toy")
    write_text_toy(folder / "clap", name="clap")
    return folder


@pytest.fixture(scope="module")
def words(words_dir: Path) -> Iterator[httpx.Client]:
    with serving(words_dir, model="clap") as (client, _):
        yield client


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def test_texts_become_vectors_in_their_order(words: httpx.Client) -> None:
    texts = ["a dog barks", "rain on the roof", "zebra"]
    found = results(words.post(URL, json={"input": texts}))
    np.testing.assert_allclose([each["embedding"] for each in found], list(map(vector_of, texts)), atol=1e-5)
    assert [each["tokens"] for each in found] == [5, 6, 3]
    assert {(each["model"], each["embedding_size"]) for each in found} == {("clap", D)}


def test_one_text_is_a_list_of_one_and_parameters_may_stand_in_the_query(words: httpx.Client) -> None:
    (one,) = results(words.post(URL, json={"input": "dog"}, params={"normalize": True, "model": "clap"}))
    expected = vector_of("dog")
    np.testing.assert_allclose(one["embedding"], expected / np.linalg.norm(expected), atol=1e-5)


def test_a_text_among_others_has_the_vector_that_it_has_alone(words: httpx.Client) -> None:
    texts = ["dog", "rain on the roof . a cat .", "a a a a a a a a a a"]
    together = results(words.post(URL, json={"input": texts * 50}))
    for i, each in enumerate(texts):
        (alone,) = results(words.post(URL, json={"input": each}))
        np.testing.assert_allclose(together[i]["embedding"], alone["embedding"], atol=1e-6)


def test_base64_float16_and_npy_are_the_same_numbers(words: httpx.Client) -> None:
    body = {"input": ["dog", "cat"]}
    plain = np.array([each["embedding"] for each in results(words.post(URL, json=body))], np.float32)
    coded = results(words.post(URL, json=body | {"encoding": "base64"}))
    for row, each in zip(plain, coded, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(each["embedding"]), "<f4"), row)
    answer = words.post(URL, json=body | {"dtype": "float16"}, headers={"Accept": "application/x-npy"})
    assert answer.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(answer.content))
    assert (array.dtype, array.shape) == (np.float16, (2, D))
    np.testing.assert_allclose(array, plain, atol=1e-2)


def test_sounds_of_the_model_are_brought_to_unit_length_like_its_texts(
    words: httpx.Client, fixtures_dir: Path
) -> None:
    sound = (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()
    plain, unit = (
        np.array(words.post("/embed", content=sound, params=each).json()["embedding"])
        for each in ({}, {"normalize": True})
    )
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain), atol=1e-6)
    refused = words.post("/embed", content=sound, params={"dimensions": 4})
    assert "has no projection.safetensors" in check_error(refused, 422, "bad_request")


def test_a_model_without_a_text_tower_says_which_one_has_one(words: httpx.Client) -> None:
    refused = words.post(URL, json={"input": "dog", "model": "toy"})
    assert check_error(refused, 422, "no_text").endswith("`clap` has one")


def test_without_the_package_the_answer_tells_what_is_missing(
    words_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PACKAGE", "a_package_that_is_not_there")
    with serving(words_dir, model="clap") as (client, _):
        sentence = check_error(client.post(URL, json={"input": "dog"}), 422, "no_text")
        assert "the text tower of `clap` is off: the package `tokenizers` is missing" in sentence
        assert client.get("/models/clap").json()["text"] is False


@pytest.mark.parametrize(
    ("body", "status", "code", "sentence"),
    [
        ({}, 422, "bad_request", "the JSON has no `input`"),
        ({"input": []}, 422, "bad_request", "empty list"),
        ({"input": ""}, 422, "bad_request", "`input` is empty; send words"),
        ({"input": ["dog", " \n"]}, 422, "bad_request", "`input[1]` is empty"),
        ({"input": [1, 2]}, 422, "bad_request", "a text, or a list of texts; tokens"),
        ({"input": None}, 422, "bad_request", "a text, or a list of texts"),
        ({"input": ["dog"] * (MAX_TEXTS + 1)}, 422, "bad_request", "more than 256 texts"),
        ({"input": "a " * 20}, 413, "text_too_long", "`input` has 22 tokens, and the text tower takes 12"),
        ({"input": ["dog", "a " * 20]}, 413, "text_too_long", "`input[1]` has 22 tokens"),
        ({"input": "é" * MAX_TEXT_BYTES}, 413, "text_too_long", "`input` has 20000 bytes in UTF-8"),
        ({"input": "dog", "model": "none"}, 404, "unknown_model", "there is no model `none`"),
        ({"input": "dog", "dimensions": 4}, 422, "bad_request", "`dimensions` is not known"),
        ({"input": "dog", "normalize": "perhaps"}, 422, "bad_request", "normalize"),
        ({"input": "dog"} | {f"f{i}": 1 for i in range(1000)}, 422, "bad_request", "has 1001 fields"),
    ],
)
def test_what_is_wrong_is_told(
    body: dict[str, Any], status: int, code: str, sentence: str, words: httpx.Client
) -> None:
    assert sentence in check_error(words.post(URL, json=body), status, code)


def test_other_bodies_are_refused(words: httpx.Client) -> None:
    headers = {"Content-Type": "text/plain"}
    refused = words.post(URL, content="a dog", headers=headers)
    assert "the Content-Type of this route is application/json" in check_error(
        refused, 415, "unsupported_media_type"
    )
    headers = {"Content-Type": "application/json"}
    check_error(words.post(URL, content=b'{"input": "\\ud800"}', headers=headers), 422, "bad_request")
    long = json.dumps({"input": "a" * TEXT_BYTES}).encode()
    sentence = check_error(words.post(URL, content=long, headers=headers), 413, "body_too_large")
    assert "send fewer at a time" in sentence
    many = json.dumps({"input": [0] * (MAX_TEXT_COMMAS + 2)}).encode()
    check_error(words.post(URL, content=many, headers=headers), 422, "bad_request")


def test_texts_may_hold_the_commas_that_they_like(words: httpx.Client) -> None:
    texts = ["dog" + "," * 9] * MAX_TEXTS
    assert len(results(words.post(URL, json={"input": texts}))) == MAX_TEXTS


def test_metrics_and_models_tell_of_texts(words: httpx.Client) -> None:
    results(words.post(URL, json={"input": "dog"}))
    page = words.get("/metrics").text
    assert value(page, 'viola_text_duration_seconds_count{model="clap"}') >= 1
    assert value(page, 'viola_requests_total{code="200",model="clap",route="/embed/text"}') >= 1
    models = {each["card"]["name"]: each for each in words.get("/models").json()["models"]}
    assert (models["clap"]["text"], models["toy"]["text"]) == (True, False)
    assert models["clap"]["card"]["text"]["max_tokens"] == 12
    assert "inference;dur=" in words.post(URL, json={"input": "dog"}).headers["Server-Timing"]


odd_texts = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(codec="utf-8", categories=["Cc", "Cf", "Mn", "So", "Zs"]), max_size=40),
    st.sampled_from(["\0", "a\0b", "[PAD]", "[CLS] [SEP]", "{}", "\u202e", "a" * 9999, "𝒟" * 2500, "́" * 100]),
)


@hypothesis.given(odd_texts | st.lists(odd_texts, max_size=5))
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_is_embedded_or_refused_with_a_reason(words: httpx.Client, odd: Any) -> None:
    answer = words.post(URL, json={"input": odd})
    if answer.status_code == 200:
        assert np.isfinite([each["embedding"] for each in answer.json()["results"]]).all()
    else:
        code = answer.json()["error"]
        assert (answer.status_code, code) in {(422, "bad_request"), (413, "text_too_long")}
        assert len(answer.content) < 8000
