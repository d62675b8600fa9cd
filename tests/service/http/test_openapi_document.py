"""schemathesis against a live server: what /openapi.json allows and what it does not, in random requests."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.harness.servers import ROOT, running, viola
from service import errors
from service.http.app import create_app
from service.http.json_body import MAX_JSON_BYTES, TEXT_BYTES
from service.http.openai_api import EmbeddingsParameters
from service.http.openapi_document import ERROR_EXAMPLES
from service.http.parameters import ClassifyParameters, EmbedParameters, TextParameters, properties
from service.http.protocol import MAX_HEAD_BYTES, Limits
from service.http.request_body import MIN_BYTES_PER_S
from service.http.text_request import MAX_TEXT_BYTES, MAX_TEXTS
from service.http.upload import MAX_FILES
from service.inference.labels import MAX_LABEL_BYTES, MAX_LABELS, MAX_TEMPLATE
from service.settings import Settings
from service.sound.audio import MAX_VALUES_PER_S
from service.sound.formats import CODECS, CONTAINERS
from service.sound.pcm import MAX_CHANNELS
from tests.service.http.live import INVALID, RAW, check_error


def not_a_fault(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """501 is the documented answer of a server that is not set up to be taught."""
    return None if response.status_code == 501 else not_a_server_error(context, response, case)


CHECKS = [
    not_a_fault,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


api = schemathesis.openapi.from_dict(create_app(Settings()).openapi())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(viola(ROOT / "models" / "byola", "auto")) as up:
        yield f"http://127.0.0.1:{up.port}"
        assert up.process.poll() is None


# It has no generator for `audio/*`; `application/octet-stream` is read by the same code.
@pytest.mark.filterwarnings("ignore:Skipped test cases with unsupported payload:UserWarning")
@api.parametrize()
@hypothesis.settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
def test_no_answer_is_a_fault_or_outside_the_document(case: schemathesis.Case, url: str) -> None:
    case.headers.pop("X-Deadline-S", None)  # whoever asks for 1e-300 s gets a 504, and it is documented
    case.call_and_validate(base_url=url, checks=CHECKS)


# ── The page for people ──

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_the_page_names_what_json_bodies_may_hold() -> None:
    kinds = (EmbedParameters, ClassifyParameters, EmbeddingsParameters, TextParameters)
    assert {name for kind in kinds for name in properties(kind)} | {"audio", "input"} <= WORDS


def test_the_page_names_every_error_with_its_status() -> None:
    for kind in ERROR_EXAMPLES:
        assert f"| {kind.status} | `{kind.code}` |" in PAGE


def test_the_page_names_what_ffmpeg_may_open() -> None:
    assert set(CONTAINERS.split(",")) | set(CODECS.split(",")) <= WORDS


def test_the_page_tells_the_limits_of_the_code() -> None:
    for number in (MAX_FILES, MIN_BYTES_PER_S, f"{MAX_VALUES_PER_S:,}", MAX_CHANNELS):
        assert str(number) in PAGE
    assert f"{MAX_JSON_BYTES // 1_000_000} million bytes" in PAGE
    assert f"Up to {MAX_TEXTS} texts" in PAGE
    assert f"{MAX_TEXT_BYTES:,} bytes" in PAGE
    assert f"{TEXT_BYTES // 1_000_000} million bytes" in PAGE
    assert f"2 to {MAX_LABELS} labels" in PAGE
    assert f"{MAX_LABEL_BYTES} bytes" in PAGE
    assert f"{MAX_TEMPLATE} characters" in PAGE
    assert f"`VIOLA_HEAD_TIMEOUT_S` ({Limits.head_s:.0f} seconds) or {MAX_HEAD_BYTES // 1024} kB" in PAGE
    assert f"{Limits.linger_bytes // 1_000_000} MB and {Limits.linger_s:.0f} seconds" in PAGE


def test_the_openapi_document_lists_routes_parameters_errors_and_examples(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    posts = {"/embed", "/classify", "/embed/batch", "/classify/batch"}
    others = {"/models", "/models/{name}", "/models/reload", "/health/live", "/health/ready", "/metrics"}
    others |= {"/v1/embeddings", "/v1/models", "/v1/models/{name}", "/logmel", "/stream", "/embed/text"}
    v2 = "/v2/models/{name}"
    others |= {"/v2", "/v2/health/live", "/v2/health/ready", v2, f"{v2}/ready", f"{v2}/infer"}
    pipeline = "/models/{name}/pipeline"
    others |= {f"{pipeline}/audio-classification", f"{pipeline}/feature-extraction"}
    head = "/models/{name}/heads/{head}"
    others |= {"/models/{name}/heads", head, f"{head}/fit", f"{head}/file", f"{head}/examples"}
    others |= {f"{head}/examples/{{example}}", f"{head}/examples/{{example}}/clip"}
    assert set(document["paths"]) == posts | others
    embed_route = document["paths"]["/embed"]["post"]
    assert {each["name"] for each in embed_route["parameters"]} == {
        "model", "frames", "window_s", "hop_s", "logmel_columns", "encoding", "dtype", "X-Deadline-S",
        "normalize", "dimensions"
    }  # fmt: skip
    assert all(each["description"] for each in embed_route["parameters"])
    for path in posts:
        route = document["paths"][path]["post"]
        assert "multipart/form-data" in route["requestBody"]["content"]
        assert route["responses"]["200"]["content"]["application/json"]["example"]
        outdated_heads = {"409"} if path.startswith("/classify") else set()
        assert set(route["responses"]) == outdated_heads | {
            "200", "401", "404", "408", "413", "415", "422", "500", "503", "504"
        }  # fmt: skip
    text = json.dumps(document)
    for code in [*(set(INVALID.values())), "audio_too_long", "body_too_large", "unsupported_media_type",
                 "unknown_model", "unknown_head", "unauthorized", "overloaded", "deadline_exceeded",
                 "internal_error", "bad_request", "not_ready"]:  # fmt: skip
        assert f'"{code}"' in text or f"`{code}`" in text
    assert "HTTPValidationError" not in text
    assert client.get("/docs").status_code == 200


def test_the_page_on_the_api_names_every_route_parameter_and_error(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert f"`{method.upper()} {path}`" in PAGE
            for parameter in route.get("parameters", []):
                assert f"`{parameter['name']}`" in PAGE
            for response in route["responses"].values():
                for code in response.get("content", {}).get("application/json", {}).get("examples", {}):
                    assert f"`{code}`" in PAGE


def test_the_sentences_in_the_documents_are_those_of_the_server(client: httpx.Client) -> None:
    for error, response in (
        (errors.BadRequest, client.post("/classify?top_k=0", headers=RAW)),
        (errors.AudioMissing, client.post("/embed", headers=RAW)),
        (errors.AudioUnreadable, client.post("/embed", content=b"text", headers=RAW)),
        (errors.UnsupportedMediaType, client.post("/embed", headers={"Content-Type": "text/plain"})),
        (errors.UnknownModel, client.post("/embed?model=bayola", headers=RAW)),
        (errors.NoText, client.post("/embed/text", json={"input": "dog"})),
    ):
        sentence = check_error(response, error.status, error.code)
        assert sentence == ERROR_EXAMPLES[error].replace("`byola`", "`toy`")
