"""Embeddings in, the bytes of an answer out: JSON with numbers or base64, or npy; float32 or float16.

JSON is written by orjson straight from the array; `tolist` and the framework's encoder would take fifty times
as long for a vector of 3072.
"""

import base64
import io
from functools import partial
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.parameters import (
    ClassifyParameters,
    EmbedParameters,
    StreamParameters,
    TextParameters,
)
from service.http.request_body import BUDGET, UploadBudget, no_room
from service.inference.embedder import EmbeddedClip
from service.inference.events import GAP_S, SHORTEST_S, events_of, hysteresis_of
from service.inference.heads import SCORE_DIGITS, Head, best_tags
from service.inference.model import Model
from service.inference.tags import ClipScores, Spans, clip_scores
from service.inference.text_worker import TextVectors

Array = NDArray[np.float32]
Encoding = Literal["float", "base64"]
Dtype = Literal["float32", "float16"]

NPY = "application/x-npy"
JSON_RANGES = ("application/json", "application/*", "*/*")  # that JSON is in, the most specific one first
TIME_DIGITS = 6  # microseconds: what is beyond them is rounding error
LARGE_BYTES = 1_000_000  # an answer over this counts as held until the client has read it
PIECE_BYTES = 250_000  # of a large answer, sent once the client has read the one before


class PacedResponse(Response):
    """Where it is large, it is sent as fast as the client reads it, and counts until then in the budget of
    the request's body. Calling it raises Overloaded, before anything is sent, where there is no room left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        budget: UploadBudget | None = scope.get(BUDGET)
        n = len(self.body)
        if budget is None or n <= LARGE_BYTES:
            await super().__call__(scope, receive, send)
            return
        if budget.held_bytes + n > budget.max_held_bytes:
            raise no_room("answers of this length")
        budget.held_bytes += n
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            for start in range(0, n, PIECE_BYTES):
                end = start + PIECE_BYTES
                await send({"type": "http.response.body", "body": self.body[start:end], "more_body": end < n})
        finally:
            budget.held_bytes -= n


def embed_content(model: str, sound: EmbeddedClip, parameters: EmbedParameters) -> dict[str, Any]:
    embedding = sound.embedding
    write = partial(numbers, encoding=parameters.encoding, dtype=parameters.dtype)
    content: dict[str, Any] = {
        "model": model,
        "duration_s": sound.duration_s,
        "embedding_size": len(embedding.vector),
        "embedding": write(embedding.vector),
    }
    if embedding.frames is not None:
        content["frames"] = {"times_s": embedding.times_s, "embeddings": write(embedding.frames)}
    if embedding.segments:
        content["windows"] = {
            "start_s": [segment.start_s for segment in embedding.segments],
            "end_s": [segment.end_s for segment in embedding.segments],
            "embeddings": write(_segment_vectors(sound)),
        }
    return content | _picture_content(sound)


def text_content(model: str, made: TextVectors, parameters: TextParameters) -> dict[str, Any]:
    write = partial(numbers, encoding=parameters.encoding, dtype=parameters.dtype)
    return {
        "results": [
            {"model": model, "tokens": n, "embedding_size": len(vector), "embedding": write(vector)}
            for vector, n in zip(made.vectors, made.n_tokens, strict=True)
        ]
    }


def classify_content(
    model: Model, head: Head, sound: EmbeddedClip, parameters: ClassifyParameters
) -> dict[str, Any]:
    """sound: embedded with the head in its options, so that its windows are scored already."""
    clip = clip_scores(head, sound.embedding, pooling=parameters.pooling, min_known=parameters.min_known)
    content: dict[str, Any] = {"model": model.card.name, "head": head.name, "duration_s": sound.duration_s}
    if clip.known is not None:
        content["known"] = round(clip.known, SCORE_DIGITS)
    content["tags"] = tag_content(head, clip.scores, parameters) if clip.is_known else []
    if parameters.segments:
        content["segments"] = _segments(head, clip, parameters)
    if parameters.window_s is not None and clip.windows is not None:
        content["timeline"] = _timeline(head, clip.windows, parameters)
    if parameters.embedding:
        content["embedding"] = numbers(sound.vector, encoding=parameters.embedding, dtype="float32")
    return content | _picture_content(sound)


def requested_array(sound: EmbeddedClip, parameters: EmbedParameters) -> Array:
    """What an npy answer holds: the clip's vector (D,), its frames (n, D) or its windows (n, D)."""
    if sound.embedding.frames is not None:
        return sound.embedding.frames
    return _segment_vectors(sound) if sound.embedding.segments else sound.embedding.vector


def numbers(array: Array, *, encoding: Encoding, dtype: Dtype) -> Any:
    """A value for `json_response`: the array (D,) or (n, D) itself, or its bytes in base64, row by row.

    Little-endian. float16 is half as long and rounds to 11 bits; beyond ±65504 it becomes infinite.
    """
    converted = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(converted.data).decode("ascii") if encoding == "base64" else converted


def json_bytes(content: Any) -> bytes:
    """`content` may hold contiguous arrays. Non-finite numbers become null."""
    return orjson.dumps(content, default=_array)


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content`: as for `json_bytes`."""
    return PacedResponse(json_bytes(content), status, headers, "application/json")


def npy_response(array: Array, *, dtype: Dtype) -> Response:
    """The array in NumPy's own format: `numpy.load(io.BytesIO(answer.content))`."""
    file = io.BytesIO()
    np.save(file, array.astype(np.dtype(dtype).newbyteorder("<"), copy=False), allow_pickle=False)
    return PacedResponse(file.getvalue(), media_type=NPY)


def wants_npy(accept: str) -> bool:
    """Whether the Accept header asks for the array rather than JSON, by quality (RFC 9110, 12.5.1). It must
    name the array's type; at the same quality the array is meant, and where neither will do JSON is sent."""
    if NPY not in accept.lower():
        return False
    qualities = _qualities(accept)
    if NPY not in qualities:
        return False
    json = next((qualities[name] for name in JSON_RANGES if name in qualities), 0.0)
    return qualities[NPY] > 0 and qualities[NPY] >= json


def _qualities(accept: str) -> dict[str, float]:
    """`a/b;q=0.5, */*` → {"a/b": 0.5, "*/*": 1.0}. What is no number counts as 0."""
    qualities = {}
    for media_range in "".join(accept.lower().split()).split(","):
        media_type, *options = media_range.split(";")
        written = next((option[2:] for option in options if option.startswith("q=")), "1")
        is_quality = written.replace(".", "", 1).isdecimal() and len(written) <= 5
        qualities[media_type] = min(float(written), 1.0) if is_quality else 0.0
    return qualities


def _array(array: Array) -> Any:
    """For orjson: an array row by row, for it holds the GIL while it writes, and 5000 rows take a second."""
    if array.ndim > 1:
        return list(array)
    return orjson.Fragment(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY))


def _picture_content(sound: EmbeddedClip) -> dict[str, Any]:
    return {"logmel": sound.picture.content()} if sound.picture else {}


def _segment_vectors(sound: EmbeddedClip) -> Array:
    """(n, D)"""
    return np.stack([segment.vector for segment in sound.embedding.segments])


def _timeline(head: Head, windows: Spans, parameters: ClassifyParameters) -> list[dict[str, Any]]:
    spans: list[dict[str, Any]] = []
    for (start_s, end_s), scores, known, is_known in zip(
        windows.times_s.tolist(), windows.scores, windows.known.tolist(), windows.is_known, strict=True
    ):
        span: dict[str, Any] = {"start_s": start_s, "end_s": end_s}
        if head.known is not None:
            span["known"] = round(known, SCORE_DIGITS)
        spans.append(span | {"tags": tag_content(head, scores, parameters) if is_known else []})
    return spans


def _segments(head: Head, clip: ClipScores, parameters: ClassifyParameters) -> list[dict[str, Any]]:
    assert clip.windows is not None, "the clip was embedded without the windows of events"
    hysteresis = hysteresis_of(
        head,
        begin=parameters.begin,
        end=parameters.end,
        shortest_s=SHORTEST_S if parameters.shortest_s is None else parameters.shortest_s,
        gap_s=GAP_S if parameters.gap_s is None else parameters.gap_s,
    )
    return [
        {
            "label": event.label,
            "start_s": round(event.start_s, TIME_DIGITS),
            "end_s": round(event.end_s, TIME_DIGITS),
            "score": round(event.score, SCORE_DIGITS),
        }
        for event in events_of(head.labels, clip.windows.times_s, clip.windows.scores, hysteresis)
    ]


def tag_content(
    head: Head, scores: Array, parameters: ClassifyParameters | StreamParameters
) -> list[dict[str, Any]]:
    """Of scores (C,)."""
    best = best_tags(head, scores, top_k=parameters.top_k, threshold=parameters.threshold)
    return [tag._asdict() for tag in best]
