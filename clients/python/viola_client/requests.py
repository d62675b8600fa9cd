"""What a caller asks in, a request out; the answer in, a result or an error out. Sends nothing itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx

from viola_client.errors import BadRequest, Unreachable, error_of
from viola_client.results import (
    Array,
    Classification,
    Embedding,
    classification_of,
    embedding_of,
    text_vectors_of,
)
from viola_client.retries import Retries
from viola_client.sounds import Body, Content, Sound

T = TypeVar("T")
Dtype = Literal["float32", "float16"]
Pooling = Literal["max", "mean"]
Option = str | float | None  # of a method; None where the caller leaves it out
Texts = str | Iterable[str]
Outcome = httpx.Response | httpx.RequestError  # of one attempt

TEXTS_AT_A_TIME = 64  # in one request
MAX_QUERY_BYTES = 32_000  # of labels in the address: servers and proxies read heads of 64 kB, or less


@dataclass(frozen=True)
class Json:
    """A body that is no sound."""

    content: Mapping[str, Any]

    def open(self) -> Content:
        """For one attempt."""
        text = json.dumps(self.content).encode()
        return Content(BytesIO(text), len(text), "the JSON", "application/json")


@dataclass(frozen=True)
class Request(Generic[T]):
    """body: the sound, or JSON; read: what becomes of the answer's JSON; verb: where it is neither a POST of
    the body nor a GET without one."""

    route: str
    read: Callable[[dict[str, Any]], T]
    query: Mapping[str, str] = field(default_factory=dict)
    body: Body | Json | None = None
    verb: str = ""

    @property
    def method(self) -> str:
        return self.verb or ("POST" if self.body else "GET")

    def result(self, outcome: Outcome) -> T:
        """Of the last attempt. Raises ViolaError."""
        answer = content_of(outcome)
        try:
            return self.read(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise error_of(httpx.codes.OK, None) from error


MODELS: Request[dict[str, Any]] = Request("models", read=dict)


def embed_request(sound: Sound, dtype: Dtype, **options: Option) -> Request[Embedding]:
    """Raises SoundError for what is no sound."""
    query = query_of(encoding="base64", dtype=dtype, **options)
    return Request("embed", lambda answer: embedding_of(answer, dtype), query, Body(sound))


def text_requests(texts: Texts, dtype: Dtype, **options: Option) -> list[Request[Array]]:
    """Each gives (n, D) of some of the texts. Raises TypeError for what are no texts."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    for each in listed:
        if not isinstance(each, str):
            raise TypeError(f"a {type(each).__name__} is no text: give a string, or several of them")
    query = query_of(encoding="base64", dtype=dtype, **options)
    parts = [listed[at : at + TEXTS_AT_A_TIME] for at in range(0, max(1, len(listed)), TEXTS_AT_A_TIME)]
    return [
        Request("embed/text", lambda answer: text_vectors_of(answer, dtype), query, Json({"input": part}))
        for part in parts
    ]


def classify_request(
    sound: Sound, *, labels: Texts | None = None, **options: Option
) -> Request[Classification]:
    """Raises as `embed_request` does, and BadRequest where the labels are too long for an address."""
    query = query_of(labels=None if labels is None else labels_of(labels), **options)
    return Request("classify", classification_of, query, Body(sound))


def labels_of(labels: Texts) -> str:
    """As they stand in a query: with commas between, or a list in JSON where a label holds a comma."""
    if not isinstance(labels, str):
        listed = list(labels)
        has_comma = any("," in label or label.lstrip().startswith("[") for label in listed)
        labels = json.dumps(listed, ensure_ascii=False) if has_comma else ",".join(listed)
    length = len(quote(labels))
    if length > MAX_QUERY_BYTES:
        raise BadRequest(
            f"the labels take {length} bytes of the request's address, and {MAX_QUERY_BYTES} is the most: "
            "give fewer, or shorter ones"
        )
    return labels


def wait_s(retries: Retries, attempt: int, outcome: Outcome) -> float | None:
    """Seconds until the next attempt; None where the outcome of this one (1, 2 …) is the last."""
    if isinstance(outcome, httpx.RequestError):
        return retries.wait_s(attempt, 0, None)
    if outcome.is_success:
        return None
    return retries.wait_s(attempt, outcome.status_code, outcome.headers.get("Retry-After"))


def content_of(outcome: Outcome) -> dict[str, Any]:
    """The answer's JSON. Raises ViolaError for what is no answer, or none of viola's."""
    if isinstance(outcome, httpx.RequestError):
        raise Unreachable(f"no answer from the server: {outcome or type(outcome).__name__}") from outcome
    try:
        answer = outcome.json()
    except ValueError:
        answer = None
    if not outcome.is_success or not isinstance(answer, dict):
        raise error_of(outcome.status_code, answer)
    return answer


def query_of(**options: Option) -> dict[str, str]:
    """Without those that were left out: the server's defaults count."""
    return {name: _text(value) for name, value in options.items() if value is not None}


def _text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
