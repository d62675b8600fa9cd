"""Embeddings in, the bytes of an answer out: JSON with numbers or base64, or npy; float32 or float16.

JSON is written by orjson straight from the array; `tolist` and the framework's encoder would take fifty times
as long for a vector of 3072.
"""

import base64
import io
import re
from functools import partial
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.embedder import Sound
from service.model import Head, Model
from service.parameters import ClassifyParameters, EmbedParameters
from service.upload import INTAKE, Intake, no_room

Array = NDArray[np.float32]
Encoding = Literal["float", "base64"]
Dtype = Literal["float32", "float16"]

NPY = "application/x-npy"
REFUSED = re.compile(r"q=0(\.0*)?")  # RFC 9110 (12.4.2): not acceptable
SCORE_DIGITS = 6  # the seventh is rounding error of float32
LARGE_BYTES = 1_000_000  # an answer over this counts as held until the client has read it
PIECE_BYTES = 250_000  # of a large answer, sent once the client has read the one before


class Answer(Response):
    """A response that, where it is large, is sent at the pace of its reader, and until then takes room in the
    intake that its request came through. Calling it raises Overloaded, before anything is sent, where there
    is no room left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        intake: Intake | None = scope.get(INTAKE)
        n = len(self.body)
        if intake is None or n <= LARGE_BYTES:
            await super().__call__(scope, receive, send)
            return
        if intake.held_bytes + n > intake.max_held_bytes:
            raise no_room("answers of this length")
        intake.held_bytes += n
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            for start in range(0, n, PIECE_BYTES):
                end = start + PIECE_BYTES
                await send({"type": "http.response.body", "body": self.body[start:end], "more_body": end < n})
        finally:
            intake.held_bytes -= n


def embed_content(model: str, sound: Sound, parameters: EmbedParameters) -> dict[str, Any]:
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
    return content


def classify_content(
    model: Model, head: Head, sound: Sound, parameters: ClassifyParameters
) -> dict[str, Any]:
    scores = head.score(sound.embedding.vector[None])[0]
    content: dict[str, Any] = {
        "model": model.card.name,
        "head": head.name,
        "duration_s": sound.duration_s,
        "tags": _tags(head, scores, parameters),
    }
    if sound.embedding.segments:
        content["timeline"] = [
            {"start_s": segment.start_s, "end_s": segment.end_s, "tags": _tags(head, scores, parameters)}
            for segment, scores in zip(
                sound.embedding.segments, head.score(_segment_vectors(sound)), strict=True
            )
        ]
    return content


def asked_array(sound: Sound, parameters: EmbedParameters) -> Array:
    """What an npy answer holds: the clip's vector (D,), its frames (n, D) or its windows (n, D)."""
    if sound.embedding.frames is not None:
        return sound.embedding.frames
    return _segment_vectors(sound) if sound.embedding.segments else sound.embedding.vector


def numbers(array: Array, *, encoding: Encoding, dtype: Dtype) -> Any:
    """A value for `json_answer`: the array (D,) or (n, D) itself, or its bytes in base64, row by row.

    Little-endian. float16 is half as long and rounds to 11 bits; beyond ±65504 it becomes infinite.
    """
    converted = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(converted.data).decode("ascii") if encoding == "base64" else converted


def json_answer(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` may hold contiguous arrays. Non-finite numbers become null."""
    body = orjson.dumps(content, default=_array)
    return Answer(body, status, headers, "application/json")


def npy_answer(array: Array, *, dtype: Dtype) -> Response:
    """The array in NumPy's own format: `numpy.load(io.BytesIO(answer.content))`."""
    file = io.BytesIO()
    np.save(file, array.astype(np.dtype(dtype).newbyteorder("<"), copy=False), allow_pickle=False)
    return Answer(file.getvalue(), media_type=NPY)


def wants_npy(accept: str) -> bool:
    """Whether the Accept header names the array's type, but not with q=0; `*/*` means JSON."""
    for media_range in accept.lower().replace(" ", "").split(","):
        media_type, *options = media_range.split(";")
        if media_type == NPY:
            return not any(REFUSED.fullmatch(option) for option in options)
    return False


def _array(array: Array) -> Any:
    """For orjson: an array row by row, for it holds the GIL while it writes, and 5000 rows take a second."""
    if array.ndim > 1:
        return list(array)
    return orjson.Fragment(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY))


def _segment_vectors(sound: Sound) -> Array:
    """(n, D)"""
    return np.stack([segment.vector for segment in sound.embedding.segments])


def _tags(head: Head, scores: Array, parameters: ClassifyParameters) -> list[dict[str, Any]]:
    """The top_k labels of scores (C,) that reach the threshold, best first."""
    best = np.argsort(-scores, kind="stable")[: parameters.top_k]
    return [
        {"label": head.labels[i], "score": round(float(scores[i]), SCORE_DIGITS)}
        for i in best
        if scores[i] >= parameters.threshold
    ]
