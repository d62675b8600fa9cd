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
from service.openai_api import PREFIX, error_content
from service.parameters import properties
from service.upload import ACCEPTED, ACCEPTED_FORM, ACCEPTED_JSON

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


class LogmelAnswer(BaseModel):
    """A clip's log-mel as a picture."""

    model: str
    duration_s: float = Field(description="Length of the clip as sent.")
    n_mels: int
    columns: int
    frames_per_column: int = Field(description="Log-mel frames that a column is the mean of.")
    low: float = Field(description="The log-mel value of a pixel of 0.")
    high: float = Field(description="The log-mel value of a pixel of 255.")
    pixels: str = Field(description="One byte a pixel in base64, band after band from the lowest.")


LOGMEL_EXAMPLE = {
    "model": "byola",
    "duration_s": 0.02,
    "n_mels": 2,
    "columns": 3,
    "frames_per_column": 1,
    "low": -15.9,
    "high": 2.1,
    "pixels": "AAECAwT/",
}


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


class ReloadAnswer(BaseModel):
    """What a reload did, by the names of the models."""

    loaded: list[str] = Field(description="Their folders appeared.")
    changed: list[str] = Field(description="Replaced by what their folders hold now.")
    removed: list[str] = Field(description="Their folders are gone.")
    kept: list[str] = Field(description="Nothing changed.")
    refused: dict[str, str] = Field(
        description="Cannot be served as they are now, with the reason; a model that was loaded is served on."
    )
    processes: int = Field(description="Server processes that did so; VIOLA_WORKERS, all being well.")


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
RELOAD_EXAMPLE = {
    "loaded": ["speech"],
    "changed": [],
    "removed": [],
    "kept": ["byola"],
    "refused": {"torn": "torn: encoder.onnx is missing"},
    "processes": 1,
}
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
    "clip, compress it, or send its bytes themselves where it is JSON now",
    errors.UploadTimeout: "the body came too slowly: 20 bytes so far, and fewer than 500 per second in the "
    "last 20 s; send it again, faster",
    errors.UnsupportedMediaType: f"the Content-Type is text/plain; send {ACCEPTED}, {ACCEPTED_FORM}, "
    f"or {ACCEPTED_JSON}",
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
    errors.AudioUnreadable,
    errors.BodyTooLarge,
    errors.UploadTimeout,
    errors.UnsupportedMediaType,
    errors.Unauthorized,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.InternalError,
)


def error_responses(*kinds: type[ViolaError], path: str = "/") -> dict[int | str, dict[str, Any]]:
    """For the route at `path`: its errors by status, with the codes and an example of each."""
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
                            "error": _error_schema(path, [kind.code for kind in of_status]),
                            "detail": {"type": "string"},
                        },
                    },
                    "examples": {
                        kind.code: {"value": error_content(path, kind.code, ERROR_EXAMPLES[kind])}
                        for kind in of_status
                    },
                }
            },
        }
        for status, of_status in by_status.items()
    }


def _error_schema(path: str, codes: list[str]) -> dict[str, Any]:
    if not path.startswith(PREFIX):
        return {"type": "string", "enum": codes}
    code = {"type": "string", "enum": codes}
    properties = {"message": {"type": "string"}, "type": code, "param": {"type": "null"}, "code": code}
    return {"type": "object", "required": list(properties), "properties": properties}


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

_IN_BASE64 = {"type": "string", "description": "The encoded sound in base64, or as a data: URI."}
_MANY_IN_BASE64 = {
    "description": "The sounds, each in base64 or as a data: URI; a string stands for a list of one.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
}


def one_clip(kind: type[BaseModel]) -> dict[str, Any]:
    """For a route: its body, one clip; in JSON also the parameters of `kind`."""
    return {
        "requestBody": {
            "required": True,
            "description": "One clip: the field `file` of a form, the encoded sound itself, or JSON.",
            "content": {
                "multipart/form-data": {"schema": _FORM},
                "audio/*": {"schema": _SOUND},
                "application/octet-stream": {"schema": _SOUND},
                "application/json": {"schema": _json_body("audio", _IN_BASE64, kind)},
            },
        }
    }


def several_clips(kind: type[BaseModel]) -> dict[str, Any]:
    """For a route: its body, several clips; in JSON also the parameters of `kind`."""
    return {
        "requestBody": {
            "required": True,
            "description": "Several clips: one field `file` for each, or JSON.",
            "content": {
                "multipart/form-data": {"schema": _FORM_OF_MANY},
                "application/json": {"schema": _json_body("audio", _MANY_IN_BASE64, kind)},
            },
        }
    }


def clips_of_openai(kind: type[BaseModel]) -> dict[str, Any]:
    """For OpenAI's route: its body."""
    content = {"application/json": {"schema": _json_body("input", _MANY_IN_BASE64, kind)}}
    return {"requestBody": {"required": True, "description": "Sounds in JSON.", "content": content}}


def _json_body(name: str, sound: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name],
        "properties": {name: sound} | properties(kind),
        "additionalProperties": False,
    }


KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
