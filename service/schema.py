"""What /docs and /openapi.json say of bodies, answers and errors; nothing here runs in a request.

The routes read bodies and write answers themselves, for speed, so that the framework cannot know their
shapes.
"""

from collections import defaultdict
from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue

from service import errors
from service.audio import KNOWN_FORMATS
from service.errors import ViolaError
from service.model import Card
from service.upload import ACCEPTED, ACCEPTED_FORM

VECTOR = "`embedding_size` numbers, or with encoding=base64 one string of their little-endian bytes."
VECTORS = "One list of numbers per row, or with encoding=base64 one string of all rows' bytes, row by row."


class Frames(BaseModel):
    """One vector per frame."""

    times_s: list[float] = Field(description="Centre of each frame in seconds.")
    embeddings: list[list[float]] | str = Field(description=VECTORS)


class Windows(BaseModel):
    """One vector per window."""

    start_s: list[float]
    end_s: list[float]
    embeddings: list[list[float]] | str = Field(description=VECTORS)


class EmbedAnswer(BaseModel):
    """A clip's embedding."""

    model: str
    duration_s: float = Field(description="Length of the clip as sent.")
    embedding_size: int
    embedding: list[float] | str = Field(description=VECTOR)
    frames: Frames | None = Field(default=None, description="With frames=true, else left out.")
    windows: Windows | None = Field(default=None, description="With window_s, else left out.")


class Tag(BaseModel):
    label: str
    score: float = Field(ge=0, le=1)


class Span(BaseModel):
    """The tags of one window."""

    start_s: float
    end_s: float
    tags: list[Tag]


class ClassifyAnswer(BaseModel):
    """A clip's tags, best first."""

    model: str
    head: str
    duration_s: float
    tags: list[Tag]
    timeline: list[Span] | None = Field(default=None, description="With window_s, else left out.")


class FileEmbedded(EmbedAnswer):
    """One file of a batch; one that failed has `error` and `detail` instead."""

    file: str = Field(description="File name as sent.")


class FileClassified(ClassifyAnswer):
    """One file of a batch; one that failed has `error` and `detail` instead."""

    file: str = Field(description="File name as sent.")


class FileFailed(BaseModel):
    """A file of a batch that failed; the others did not."""

    file: str
    error: str
    detail: str


class EmbedBatchAnswer(BaseModel):
    """One result per file, in order."""

    results: list[FileEmbedded | FileFailed]


class ClassifyBatchAnswer(BaseModel):
    """One result per file, in order."""

    results: list[FileClassified | FileFailed]


class HeadAnswer(BaseModel):
    """A linear head."""

    name: str
    task: Literal["multiclass", "multilabel"]
    labels: list[str]
    training_data: str
    results: JsonValue


class ModelAnswer(BaseModel):
    """A model: its card, and how it is served."""

    card: Card
    heads: list[HeadAnswer] = Field(description="The first one is used where a request names none.")
    default: bool
    loaded: bool
    precision: str | None = Field(description="Which graph runs; null while the model is not loaded.")
    device: str | None = Field(description="Where it runs; null while the model is not loaded.")


class ModelsAnswer(BaseModel):
    """All models."""

    default: str
    models: list[ModelAnswer]
    refused: dict[str, str] = Field(description="Folders that cannot be served, with the reason.")


EMBED_EXAMPLE = {
    "model": "byola",
    "duration_s": 1.0,
    "embedding_size": 4,
    "embedding": [0.61, 1.93, 0.02, 0.4],
}
TAGS_EXAMPLE = [{"label": "dog", "score": 0.93}, {"label": "rooster", "score": 0.04}]
CLASSIFY_EXAMPLE = {"model": "byola", "head": "esc50", "duration_s": 5.0, "tags": TAGS_EXAMPLE}
MODEL_EXAMPLE = {
    "card": {"name": "byola", "sample_rate": 16000, "embedding_size": 3072, "…": "…"},
    "heads": [{"name": "esc10", "task": "multiclass", "labels": ["dog", "rain"], "…": "…"}],
    "default": True,
    "loaded": True,
    "precision": "int8",
    "device": "cpu",
}
MODELS_EXAMPLE = {"default": "byola", "models": [MODEL_EXAMPLE], "refused": {}}
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "`not_ready`",
        "content": {
            "application/json": {"example": {"error": "not_ready", "detail": "the server is shutting down"}}
        },
    }
}
# One sentence each, as the server says it; a test asks for most of them.
ERROR_EXAMPLES: dict[type[ViolaError], str] = {
    errors.BadRequest: "top_k: input should be greater than or equal to 1 (it is '0')",
    errors.AudioMissing: f"the body is empty; send {ACCEPTED}, or {ACCEPTED_FORM}",
    errors.AudioUnreadable: f"the file is not audio in a known format; send {KNOWN_FORMATS}",
    errors.AudioTooShort: "the file holds no samples; send at least one",
    errors.AudioTooLong: "the clip lasts 9000.0 s by its header, at most 7200 s are accepted; send a part",
    errors.BodyTooLarge: "the body is longer than the 200000000 bytes that are accepted; send a shorter "
    "clip, or compress it",
    errors.UnsupportedMediaType: f"the Content-Type is text/plain; send {ACCEPTED}, or {ACCEPTED_FORM}",
    errors.UnknownModel: "there is no model `bayola`; there is `byola`",
    errors.UnknownHead: "the model `byola` has no head `esc500`; it has `esc50`",
    errors.Unauthorized: "show a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    errors.Overloaded: "the queue is full, try again later",
    errors.DeadlineExceeded: "the request was not done within 60 s; send less sound, or try again later",
    errors.InternalError: "the server failed; its log tells why",
}
FAILED_EXAMPLE = {
    "file": "b.wav",
    "error": errors.AudioUnreadable.code,
    "detail": ERROR_EXAMPLES[errors.AudioUnreadable],
}
OF_MODELS = (errors.UnknownModel, errors.Unauthorized, errors.InternalError)
OF_EMBED = tuple(error for error in ERROR_EXAMPLES if error is not errors.UnknownHead)
OF_CLASSIFY = tuple(ERROR_EXAMPLES)
# The others of a batch are those of its files, and stand in their results.
OF_BATCH = (
    errors.BadRequest,
    errors.AudioMissing,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.Unauthorized,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.InternalError,
)


def error_responses(*kinds: type[ViolaError]) -> dict[int | str, dict[str, Any]]:
    """For a route: its errors by status, with the codes and an example of each."""
    by_status = defaultdict(list)
    for kind in kinds:
        by_status[kind.status].append(kind)
    return {
        status: {
            "description": ", ".join(f"`{kind.code}`" for kind in of_status),
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["error", "detail"],
                        "properties": {
                            "error": {"type": "string", "enum": [kind.code for kind in of_status]},
                            "detail": {"type": "string"},
                        },
                    },
                    "examples": {
                        kind.code: {"value": {"error": kind.code, "detail": ERROR_EXAMPLES[kind]}}
                        for kind in of_status
                    },
                }
            },
        }
        for status, of_status in by_status.items()
    }


def answer(
    model: type[BaseModel], example: dict[str, Any], *, npy: bool = False
) -> dict[int | str, dict[str, Any]]:
    """For a route: its answer with status 200."""
    content: dict[str, Any] = {"application/json": {"example": example}}
    if npy:
        content["application/x-npy"] = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"model": model, "description": model.__doc__, "content": content}}


_SOUND = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _SOUND}}
_FORM_OF_MANY = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "array", "items": _SOUND, "minItems": 1}},
}

ONE_CLIP = {
    "requestBody": {
        "required": True,
        "description": "One clip: the field `file` of a form, or the encoded sound itself as the body.",
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "audio/*": {"schema": _SOUND},
            "application/octet-stream": {"schema": _SOUND},
        },
    }
}
SEVERAL_CLIPS = {
    "requestBody": {
        "required": True,
        "description": "Several clips: one field `file` for each.",
        "content": {"multipart/form-data": {"schema": _FORM_OF_MANY}},
    }
}
KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
