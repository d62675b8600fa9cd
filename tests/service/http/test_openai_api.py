"""OpenAI's own client, unchanged, against a live server; and what such clients send that is refused."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from service.inference.model import Model
from tests.service.conftest import write_toy
from tests.service.http.live import serving
from tests.service.text_towers import vector_of, write_text_toy


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


def test_what_gateways_add_without_meaning_for_a_sound_is_passed_over(
    client: openai.OpenAI, yes: bytes
) -> None:
    added = {
        "input_type": "query",
        "truncate": "END",
        "priority": 3,
        "metadata": {"tags": ["a"], "team": None},
        "user": "u",
    }
    plain = client.embeddings.create(model="toy", input=[data_uri(yes)])
    answer = client.embeddings.create(model="toy", input=[data_uri(yes)], extra_body=added)
    assert answer.data[0].embedding == plain.data[0].embedding


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
        ({"model": "toy", "input": "SOUND", "dimensions": 8}, 422, "the folder of `toy` has no projection"),
        ({"model": "toy", "input": "SOUND", "modality": "text"}, 413, "bytes in UTF-8, and a text may have"),
        ({"model": "toy", "input": "dog", "modality": "text"}, 422, "`toy` has no text tower"),
        ({"model": "toy", "input": "SOUND", "modality": "image"}, 422, "modality: input should be 'audio'"),
        ({"model": "toy", "input": "SOUND", "encoding_format": "int8"}, 422, "encoding_format"),
        ({"model": "toy", "input": "SOUND", "dimension": 16}, 422, "`dimension` is not known"),
        ({"model": "toy", "input": "SOUND", "normalize": True}, 422, "normalize: the folder of `toy` has no"),
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


# ── A model with a text tower ──


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("models")
    write_toy(folder / "toy")
    write_text_toy(folder / "clap", name="clap")
    with (
        serving(folder, model="clap") as (live, _),
        openai.OpenAI(base_url=f"{live.base_url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


def test_plain_strings_are_texts_though_they_may_look_like_base64(words: openai.OpenAI) -> None:
    texts = ["a dog barks", "dogs", "a://dog"]
    answer = words.embeddings.create(model="clap", input=texts)
    np.testing.assert_allclose(
        [each.embedding for each in answer.data[:2]], list(map(vector_of, texts[:2])), atol=1e-5
    )
    assert answer.usage.prompt_tokens > 5 + 3
    assert words.embeddings.create(model="clap", input="dogs").usage.prompt_tokens == 3


def test_texts_and_sounds_may_stand_in_one_request(words: openai.OpenAI, yes: bytes) -> None:
    answer = words.embeddings.create(model="clap", input=["dog", data_uri(yes), "cat"])
    alone = words.embeddings.create(model="clap", input=data_uri(yes))
    np.testing.assert_allclose(answer.data[1].embedding, alone.data[0].embedding, atol=1e-6)
    np.testing.assert_allclose(answer.data[2].embedding, vector_of("cat"), atol=1e-5)
    assert answer.usage.prompt_tokens == 3 + 100 + 3


def test_whoever_says_what_the_inputs_are_is_believed(words: openai.OpenAI, yes: bytes) -> None:
    bare = base64.b64encode(yes).decode()
    sound = words.embeddings.create(model="clap", input=bare, extra_body={"modality": "audio"})
    same = words.embeddings.create(model="clap", input=data_uri(yes))
    assert sound.data[0].embedding == same.data[0].embedding
    text = words.embeddings.create(model="clap", input="data: dog", extra_body={"modality": "text"})
    assert text.usage.prompt_tokens == 5  # data : dog, and the marks


def test_unit_length_is_asked_for_by_normalize(words: openai.OpenAI, yes: bytes) -> None:
    answer = words.embeddings.create(
        model="clap", input=["dog", data_uri(yes)], extra_body={"normalize": True}
    )
    lengths = [np.linalg.norm(each.embedding) for each in answer.data]
    np.testing.assert_allclose(lengths, [1, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "options", "kind", "sentence"),
    [
        (["dog", ""], {}, openai.UnprocessableEntityError, r"`input\[1\]` is empty"),
        (["dog", "a " * 20], {}, openai.APIStatusError, r"`input\[1\]` has 22 tokens"),
        (["dog", "data:dog"], {}, openai.UnprocessableEntityError, r"`input\[1\]` is a data: URI without"),
        (["dog", "data:;base64,AAAA"], {}, openai.UnprocessableEntityError, r"`input\[1\]`: the file is not"),
        (["dog"], {"dimensions": 4}, openai.UnprocessableEntityError, "texts have none but all"),
        ("a" * 20_000, {}, openai.APIStatusError, "20000 bytes in UTF-8"),
    ],
)
def test_a_bad_input_among_texts_is_named(
    inputs: Any, options: Any, kind: type[openai.APIStatusError], sentence: str, words: openai.OpenAI
) -> None:
    with pytest.raises(kind, match=sentence):
        words.embeddings.create(model="clap", input=inputs, **options)


def test_a_model_without_a_text_tower_takes_what_it_always_took(words: openai.OpenAI, yes: bytes) -> None:
    bare = base64.b64encode(yes).decode()
    assert len(words.embeddings.create(model="toy", input=bare).data) == 1
    with pytest.raises(openai.UnprocessableEntityError, match="`input` is no base64"):
        words.embeddings.create(model="toy", input="a dog barks")
