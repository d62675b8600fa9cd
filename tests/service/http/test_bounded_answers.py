"""Nothing that comes back grows with what was sent: answers and log lines, over all routes and fields.

The limits are those that docs/api.md and docs/operations.md state.
"""

import base64
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st

from service.errors import MAX_SENTENCE
from service.http.error_response import error_codes
from service.http.parameters import ClassifyParameters, EmbedParameters, LogmelParameters
from service.process.logs import JsonLines, TextLines
from tests.service.http.live import noise, serving, wav

MAX_ANSWER_BYTES = 8_000  # of an error; its sentence in UTF-8, escaped, and a short frame around it
MAX_LINE = 16_000  # characters of a request's log line
CLIP_ROUTES = (
    "/embed",
    "/classify",
    "/logmel",
    "/embed/batch",
    "/classify/batch",
    "/embed/text",
    "/v1/embeddings",
    "/v2/models/toy/infer",
    "/models/toy/pipeline/audio-classification",
    "/models/toy/pipeline/feature-extraction",
)
OTHER_ROUTES = (
    "/models",
    "/v1/models",
    "/v2/models",
    "/models/reload",
    "/health/ready",
    "/page/page.js",
    "/",
    "/docs",
    "/no",
)
FIELDS = sorted(
    {"audio", "input", "inputs", "outputs", "parameters", "id", "user", "encoding_format"}.union(
        *(kind.model_fields for kind in (EmbedParameters, ClassifyParameters, LogmelParameters))
    )
)
HEADERS = ("Content-Type", "Content-Encoding", "Accept", "X-Deadline-S", "X-Request-ID", "X-API-Key",
           "Authorization", "Origin", "X-Forwarded-For", "Traceparent", "User-Agent")  # fmt: skip
SOUND = wav(noise(0.1))
BASE64 = base64.b64encode(SOUND).decode()

# A few characters, many times: what grows shows at once. Those that need an escape grow most.
pieces = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5) | st.sampled_from(
    ["\0", "\x1b", '"', "\\", "\n", "%", "&", "=", ";", ",", "é", "\U000e0001", "../", "[", "9", "`"]
)
long_texts = st.builds(lambda piece, n: (piece * n)[:n], pieces, st.sampled_from([1, 100, 5_000, 20_000]))
values = st.one_of(
    long_texts,
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
    st.booleans(),
    st.builds(lambda text, n: [text[:100]] * n, long_texts, st.sampled_from([1, 300, 1900])),
    st.builds(lambda n: {f"key{i}": i for i in range(n)}, st.sampled_from([1, 300, 5000])),
    st.builds(lambda n: json.loads("[" * n + "]" * n), st.sampled_from([5, 300])),
)


@pytest.fixture(scope="module")
def live(models_dir: Path) -> Iterator[httpx.Client]:
    with serving(models_dir, api_keys=("key",)) as (client, _):
        client.headers["X-API-Key"] = "key"
        yield client


@pytest.fixture(scope="module")
def logs() -> Iterator[list[io.StringIO]]:
    """What is logged, as text and as JSON."""
    handlers = []
    for kind in (TextLines, JsonLines):
        handler = logging.StreamHandler(io.StringIO())
        handler.setFormatter(kind())
        logging.getLogger().addHandler(handler)
        handlers.append(handler)
    logging.getLogger("viola.request").setLevel(logging.INFO)
    yield [handler.stream for handler in handlers]
    for handler in handlers:
        logging.getLogger().removeHandler(handler)


def sound_field(route: str) -> str:
    """Of its JSON."""
    return (
        "input" if route.startswith(("/v1", "/embed/text")) else "inputs" if "pipeline" in route else "audio"
    )


def in_the_query(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    return client.build_request("POST", f"{route}?{quote(name)}={quote(str(value)[:20_000])}", content=SOUND)


def many_in_the_query(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    return client.build_request("POST", f"{route}?{f'{quote(name[:3])}=1&' * 2000}", content=SOUND)


def in_json(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    content = {sound_field(route): BASE64, name: value}
    return client.build_request("POST", route, json=content)


def many_in_json(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    content = {sound_field(route): BASE64}
    return client.build_request("POST", route, json=content | {f"{name[:9]}{i}": 1 for i in range(1900)})


def in_a_form(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    return client.build_request("POST", route, files={name[:9]: (str(value)[:4000], SOUND)})


def as_a_field_of_a_form(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    return client.build_request("POST", route, files={"file": SOUND}, data={str(value)[:4000]: "1"})


def as_a_boundary(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    headers = {"Content-Type": b"multipart/form-data; boundary=" + header_text(value)}
    return client.build_request("POST", route, content=b"--x\r\n", headers=headers)


def as_a_header(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    header = HEADERS[len(name) % len(HEADERS)]
    return client.build_request("POST", route, content=SOUND, headers={header: header_text(value)})


def in_the_path(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    return client.build_request("GET", f"{route.rstrip('/')}/{quote(str(value)[:20_000], safe='/')}")


def as_what_is_no_json(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    headers = {"Content-Type": "application/json"}
    return client.build_request("POST", route, content=str(value).encode(), headers=headers)


def as_a_data_uri(client: httpx.Client, route: str, name: str, value: object) -> httpx.Request:
    sounds = f"data:audio/{value};base64,{BASE64}"
    return client.build_request("POST", route, json={sound_field(route): sounds})


def header_text(value: object) -> bytes:
    """What an HTTP client may put into a header: no control characters."""
    return re.sub(rb"[\x00-\x1f\x7f]", b"!", str(value)[:50_000].encode("latin-1", "replace")).strip() or b"!"


WAYS = (
    in_the_query,
    many_in_the_query,
    in_json,
    many_in_json,
    in_a_form,
    as_a_field_of_a_form,
    as_a_boundary,
    as_a_header,
    in_the_path,
    as_what_is_no_json,
    as_a_data_uri,
)


@pytest.mark.parametrize("way", WAYS)
@hypothesis.given(
    route=st.sampled_from([*CLIP_ROUTES, *OTHER_ROUTES]),
    name=st.sampled_from(FIELDS) | long_texts,
    value=values,
)
@hypothesis.settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_answers_and_log_lines_stay_short_and_are_documented(
    way: object, route: str, name: str, value: object, live: httpx.Client, logs: list[io.StringIO]
) -> None:
    assert callable(way)
    for log in logs:
        log.seek(0)
        log.truncate()
    try:
        request = way(live, route, name, value)
    except httpx.InvalidURL:  # longer than httpx sends
        return
    answer = live.send(request)
    if answer.status_code >= 400:
        assert len(answer.content) <= MAX_ANSWER_BYTES
        told = answer.json()
        code = told["error"]["code"] if isinstance(told["error"], dict) else told.get("code", told["error"])
        assert code in error_codes() - {"internal_error", "model_folder"}
        assert len(told["detail"] if "detail" in told else told["error"]) <= MAX_SENTENCE + len("...")
    for log in logs:
        assert all(len(line) <= MAX_LINE for line in log.getvalue().splitlines())
        assert "Traceback" not in log.getvalue()
