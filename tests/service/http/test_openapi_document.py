"""schemathesis against a live server: what /openapi.json allows and what it does not, in random requests."""

import re
from collections.abc import Iterator
from pathlib import Path

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

from benchmarks.fuzz import serving
from service.app import create_app
from service.audio import CODECS, CONTAINERS, MAX_VALUES_PER_S
from service.json_body import MAX_JSON_BYTES
from service.openai_api import EmbeddingsParameters
from service.parameters import ClassifyParameters, EmbedParameters, properties
from service.pcm import MAX_CHANNELS
from service.protocol import MAX_HEAD_BYTES, Limits
from service.schema import ERROR_EXAMPLES
from service.settings import Settings
from service.upload import MAX_FILES, MIN_BYTES_PER_S

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


api = schemathesis.openapi.from_dict(create_app(Settings()).openapi())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as (url, process):
        yield url
        assert process.poll() is None


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

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_the_page_names_what_json_bodies_may_hold() -> None:
    kinds = (EmbedParameters, ClassifyParameters, EmbeddingsParameters)
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
    assert f"`VIOLA_HEAD_TIMEOUT_S` ({Limits.head_s:.0f} seconds) or {MAX_HEAD_BYTES // 1024} kB" in PAGE
    assert f"{Limits.linger_bytes // 1_000_000} MB and {Limits.linger_s:.0f} seconds" in PAGE
