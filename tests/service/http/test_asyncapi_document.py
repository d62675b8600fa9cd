"""What /asyncapi.json says is what the WebSocket does."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from service.http.asyncapi_document import MESSAGES, message_schema
from service.http.parameters import StreamParameters
from service.http.schemas import STREAM_EXAMPLE
from tests.service.http.live import serving
from tests.service.recordings import recorded


def document_of(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/asyncapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def every_ref(part: Any) -> list[str]:
    if isinstance(part, list):
        return [ref for each in part for ref in every_ref(each)]
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [ref for each in part.values() for ref in every_ref(each)]
    return []


def test_all_that_it_refers_to_is_there(client: httpx.Client) -> None:
    document = document_of(client)
    assert document["asyncapi"] == "3.0.0"
    refs = every_ref(document)
    assert len(refs) > 10
    for ref in refs:
        found: Any = document
        for name in ref.removeprefix("#/").split("/"):
            found = found[name]
    query = document["channels"]["stream"]["bindings"]["ws"]["query"]["properties"]
    assert set(query) == set(StreamParameters.model_fields)


def test_schemas_and_examples_fit(client: httpx.Client) -> None:
    for kind in MESSAGES:
        Draft202012Validator.check_schema(message_schema(kind))
    for example in STREAM_EXAMPLE:
        Draft202012Validator(message_schema(str(example["type"]))).validate(example)


@pytest.mark.parametrize(
    "content", [recorded("webm", 2), b"no sound", recorded("webm", 2)[:-700] + b"\0" * 700]
)
def test_every_message_of_a_stream_fits_its_schema(client: httpx.Client, content: bytes) -> None:
    parameters = {"format": "webm", "embeddings": "true", "begin": 0.1}
    lines = client.post("/stream", content=content, params=parameters).text.splitlines()
    messages = [json.loads(line) for line in lines]
    assert messages[0]["type"] == "ready"
    assert messages[-1]["type"] in ("end", "error")
    for message in messages:
        Draft202012Validator(message_schema(message["type"])).validate(message)


def test_it_asks_for_no_key_and_tells_how_keys_are_shown(models_dir: Path, client: httpx.Client) -> None:
    assert "securitySchemes" not in document_of(client)["components"]
    with serving(models_dir, api_keys=("secret",)) as (restricted, _):
        schemes = document_of(restricted)["components"]["securitySchemes"]
    assert schemes["subprotocol"]["name"] == "Sec-WebSocket-Protocol"
