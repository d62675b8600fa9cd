"""OpenAI's own client, unchanged, against a live server; and what such clients send that is refused."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from service.model import Model


def data_uri(sound: bytes, kind: str = "audio/wav") -> str:
    return f"data:{kind};base64,{base64.b64encode(sound).decode()}"


@pytest.fixture(scope="module")
def client(live_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live_url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def yes(fixtures_dir: Path) -> bytes:
    return (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()


@pytest.fixture(scope="module")
def trumpet(fixtures_dir: Path) -> bytes:
    return (fixtures_dir / "trumpet_44k1_stereo.ogg").read_bytes()


def embedded(live_url: str, sound: bytes) -> list[float]:
    """By the server's own route."""
    answer = httpx.post(f"{live_url}/embed", content=sound, headers={"Content-Type": "audio/x"})
    vector: list[float] = answer.json()["embedding"]
    return vector


# The client asks for base64 and decodes it where nothing is said, and takes what comes where it is.
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_the_client_gets_what_embed_gives(
    options: Any, client: openai.OpenAI, live_url: str, yes: bytes, trumpet: bytes
) -> None:
    sounds = [data_uri(yes), data_uri(trumpet, "audio/ogg")]
    answer = client.embeddings.create(model="toy", input=sounds, **options)
    assert answer.object == "list"
    assert answer.model == "toy"
    assert [each.index for each in answer.data] == [0, 1]
    assert [each.object for each in answer.data] == ["embedding"] * 2
    for each, sound in zip(answer.data, [yes, trumpet], strict=True):
        np.testing.assert_allclose(each.embedding, embedded(live_url, sound), rtol=1e-5, atol=1e-6)


def test_usage_counts_log_mel_frames(client: openai.OpenAI, yes: bytes) -> None:
    answer = client.embeddings.create(model="toy", input=[data_uri(yes)] * 3)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 300  # three seconds, a hop of 10 ms


def test_one_input_and_all_that_clients_add_is_taken(client: openai.OpenAI, yes: bytes) -> None:
    answer = client.embeddings.create(
        model="toy",
        input=base64.b64encode(yes).decode(),
        dimensions=16,
        user="somebody",
        extra_body={"modality": "audio"},  # infinity's
    )
    assert len(answer.data[0].embedding) == 16


def test_the_async_client_works_too(live_url: str, yes: bytes) -> None:
    import asyncio

    async def create() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{live_url}/v1", api_key="any") as client:
            return await client.embeddings.create(model="toy", input=[data_uri(yes)])

    assert len(asyncio.run(create()).data) == 1


def test_an_unknown_model_is_a_404_whose_sentence_the_client_shows(client: openai.OpenAI, yes: bytes) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model `text-embedding-3-small`") as refused:
        client.embeddings.create(model="text-embedding-3-small", input=data_uri(yes))
    assert refused.value.code == "unknown_model"
    assert refused.value.response.json()["detail"].startswith("there is no model")


def test_one_bad_sound_fails_the_request_and_is_named(client: openai.OpenAI, yes: bytes) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=r"`input\[1\]`: the file is not audio"):
        client.embeddings.create(model="toy", input=[data_uri(yes), data_uri(b"text")])


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": "toy"}, 422, "the JSON has no `input`"),
        ({"model": "toy", "input": "a text to embed"}, 422, "`input` is no base64"),
        ({"model": "toy", "input": [[1, 2, 3]]}, 422, "`input` is the sound as a string"),
        ({"model": "toy", "input": []}, 422, "empty list"),
        ({"model": "toy", "input": "https://example.org/a.wav"}, 422, "nothing is fetched"),
        ({"model": "toy", "input": "SOUND", "dimensions": 8}, 422, "the embeddings of `toy` have 16"),
        ({"model": "toy", "input": "SOUND", "modality": "text"}, 422, "modality: input should be 'audio'"),
        ({"model": "toy", "input": "SOUND", "encoding_format": "int8"}, 422, "encoding_format"),
        ({"model": "toy", "input": "SOUND", "dimension": 16}, 422, "`dimension` is not known"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    body: dict[str, Any], status: int, sentence: str, live_url: str, yes: bytes
) -> None:
    if body.get("input") == "SOUND":
        body = body | {"input": data_uri(yes)}
    answer = httpx.post(f"{live_url}/v1/embeddings", json=body)
    assert answer.status_code == status
    assert sentence in answer.json()["detail"]


def test_another_content_type_is_sent_to_embed(live_url: str, yes: bytes) -> None:
    answer = httpx.post(f"{live_url}/v1/embeddings", content=yes, headers={"Content-Type": "audio/wav"})
    assert answer.status_code == 415
    assert "/embed takes the sound itself" in answer.json()["detail"]


def test_models_are_listed_and_found(client: openai.OpenAI, toy_model: Model) -> None:
    (listed,) = client.models.list().data
    found = client.models.retrieve("toy")
    assert listed == found
    assert found.id == "toy"
    assert found.owned_by == "viola"
    assert found.created == 1767225600  # 2026-01-01, the day of the toy's card
    with pytest.raises(openai.NotFoundError, match="no model `other`"):
        client.models.retrieve("other")
