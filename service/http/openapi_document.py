"""What the OpenAPI document (/openapi.json, shown by /docs) says of each route: parameters, bodies, errors.

The routes read bodies and write answers themselves, for speed, so that the framework cannot know their
shapes. Nothing here runs in a request. What the answers look like is told in schemas.py.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service import errors
from service.errors import ViolaError
from service.http import cancellation
from service.http.error_shape import error_content, error_schema
from service.http.parameters import StreamParameters, properties
from service.http.responses import NPY, json_bytes
from service.http.schemas import STREAM_EXAMPLE
from service.http.text_request import MAX_TEXT_BYTES, MAX_TEXTS
from service.http.upload import ACCEPTED, ACCEPTED_FORM, ACCEPTED_JSON
from service.sound.formats import KNOWN_FORMATS

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
    errors.ModelUnavailable: "the model `byola` cannot be served: byola: encoder.onnx is missing",
    errors.UnknownHead: "the model `byola` has no head `esc500`; it has `audioset`, `esc50`",
    errors.NoText: "the model `byola` has no text tower, so that words are nowhere among its sounds; no "
    "model here has one",
    errors.TextTooLong: "`input[1]` has 99 tokens, and the text tower takes 77; shorten it, or send it in "
    "parts",
    errors.AudioSilent: "nothing can be heard: it never gets louder than -70 dB of full scale; record it "
    "again, nearer or with another microphone",
    errors.UnknownExample: "the head `doors` has no example `9f86d081884c7d65-000`",
    errors.HeadConflict: "the head `esc50` is one of the folder of the model `byola`, which no request "
    "changes: choose another name",
    errors.HeadOutdated: "the head `doors` is not served: it was taught with another version of the model "
    "`byola`; fit it again",
    errors.TeachingLimit: "a head has 100 labels at most (VIOLA_MAX_TAUGHT_LABELS)",
    errors.TeachingOff: "nothing can be taught to this server: it has no folder to keep it in; start it with "
    "VIOLA_DATA_DIR=/a/folder",
    errors.StorageFailed: "what is taught cannot be kept: No space left on device; nothing that was kept "
    "before is lost",
    errors.Unauthorized: "show a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    errors.Forbidden: "the key is a client's, and this route needs an admin's: show another key",
    errors.Overloaded: "the queue is full, try again later",
    errors.DeadlineExceeded: "the request was not done within 60 s; send less sound, or try again later",
    errors.InternalError: "the server failed; its log tells why",
}
FAILED_EXAMPLE = {
    "file": "b.wav",
    "error": errors.AudioUnreadable.code,
    "detail": ERROR_EXAMPLES[errors.AudioUnreadable],
}
MODEL_ERRORS = (errors.UnknownModel, errors.ModelUnavailable, errors.Unauthorized, errors.InternalError)
TEACHING_ERRORS = {
    errors.AudioSilent,
    errors.UnknownExample,
    errors.HeadConflict,
    errors.TeachingLimit,
    errors.TeachingOff,
    errors.StorageFailed,
}
CLASSIFY_ERRORS = tuple(
    error for error in ERROR_EXAMPLES if error is not errors.Forbidden and error not in TEACHING_ERRORS
)
TEXT_ERRORS = (errors.NoText, errors.TextTooLong)
EMBED_ERRORS = tuple(
    error for error in CLASSIFY_ERRORS if error not in (errors.UnknownHead, errors.HeadOutdated, *TEXT_ERRORS)
)
EMBED_TEXT_ERRORS = (
    errors.BadRequest,
    errors.BodyTooLarge,
    errors.UploadTimeout,
    errors.UnsupportedMediaType,
    errors.UnknownModel,
    errors.ModelUnavailable,
    *TEXT_ERRORS,
    errors.Unauthorized,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.InternalError,
)
STREAM_ERRORS = (  # before the answer begins; later ones are a message
    errors.BadRequest,
    errors.UnsupportedMediaType,
    errors.UnknownModel,
    errors.UnknownHead,
    *TEXT_ERRORS,
    errors.ModelUnavailable,
    errors.Unauthorized,
    errors.Overloaded,
    errors.InternalError,
)
# The others of a batch are those of its files, and stand in their results.
BATCH_ERRORS = (
    errors.BadRequest,
    errors.AudioMissing,
    errors.AudioUnreadable,
    errors.BodyTooLarge,
    errors.UploadTimeout,
    errors.UnsupportedMediaType,
    errors.Unauthorized,
    errors.ModelUnavailable,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.InternalError,
)

DEADLINE: dict[str, Any] = {
    "name": cancellation.HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds from the end of the upload until the request is answered 504; at most the "
    "server's own deadline (`VIOLA_DEADLINE_S`), which holds without it.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

WITH_COMMAS = {"style": "form", "explode": False}  # how a list stands in a query

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

_TEXTS = {
    "description": "The texts; a string stands for a list of one.",
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_BYTES},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_BYTES},
            "minItems": 1,
            "maxItems": MAX_TEXTS,
        },
    ],
}
_TEXTS_OR_SOUNDS = {
    "description": "Sounds, each in base64 or as a data: URI; for a model with a text tower texts, and "
    "sounds as data: URIs. A string stands for a list of one.",
    "anyOf": _MANY_IN_BASE64["anyOf"],
}


def clip_route(
    summary: str,
    *,
    parameters: type[BaseModel],
    answer: type[BaseModel],
    example: dict[str, Any],
    errors: Sequence[type[ViolaError]],
    npy: bool = False,
) -> dict[str, Any]:
    """For the decorator of a route that takes one clip. parameters: of the query, or beside the sound in a
    JSON body; npy: whether the answer may also be an array."""
    body = _request_body(
        "One clip: the field `file` of a form, the encoded sound itself, or JSON.",
        {
            "multipart/form-data": _FORM,
            "audio/*": _SOUND,
            "video/*": _SOUND,
            "application/octet-stream": _SOUND,
            "application/json": _json_body("audio", _IN_BASE64, parameters),
        },
    )
    responses = ok_response(answer, example, binary=NPY if npy else None) | error_responses(*errors)
    return _documented(summary, parameters, body, responses)


def text_route(
    summary: str, *, parameters: type[BaseModel], answer: type[BaseModel], example: dict[str, Any]
) -> dict[str, Any]:
    """For the decorator of a route that takes texts."""
    body = _request_body("Texts in JSON.", {"application/json": _json_body("input", _TEXTS, parameters)})
    body["requestBody"]["content"]["application/json"]["example"] = {"input": ["a dog barks", "rain"]}
    responses = ok_response(answer, example, binary=NPY) | error_responses(*EMBED_TEXT_ERRORS)
    return _documented(summary, parameters, body, responses)


def batch_route(
    summary: str,
    *,
    parameters: type[BaseModel],
    answer: type[BaseModel],
    example: dict[str, Any],
    errors: Sequence[type[ViolaError]],
) -> dict[str, Any]:
    """For the decorator of a route that takes several clips. example: the answer for one of them."""
    body = _request_body(
        "Several clips: one field `file` for each, or JSON.",
        {
            "multipart/form-data": _FORM_OF_MANY,
            "application/json": _json_body("audio", _MANY_IN_BASE64, parameters),
        },
    )
    results = {"results": [{"file": "a.wav"} | example, FAILED_EXAMPLE]}
    return _documented(summary, parameters, body, ok_response(answer, results) | error_responses(*errors))


def stream_route() -> dict[str, Any]:
    """For the decorator of the route that takes a stream."""
    body = _request_body(
        "Sound without an end: raw samples, or WebM or Ogg as a browser records it.",
        {
            "application/octet-stream": _SOUND,
            "audio/l16": _SOUND,
            "audio/webm": _SOUND,
            "audio/ogg": _SOUND,
        },
    )
    extra = query_parameters(StreamParameters)
    extra["parameters"].remove(DEADLINE)
    lines = "".join(json_bytes(line).decode() + "\n" for line in STREAM_EXAMPLE)
    ok = {
        "description": "A line of JSON for each message, the first of them at once; "
        "[the protocol](asyncapi.json) is that of the WebSocket at the same path.",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}, "example": lines}},
    }
    return {
        "summary": "Sound that has no end to tags and events, as it comes",
        "responses": {200: ok} | error_responses(*STREAM_ERRORS),
        "openapi_extra": extra | body,
    }


def examples_route(
    summary: str,
    *,
    parameters: type[BaseModel],
    answer: type[BaseModel],
    example: dict[str, Any],
    errors: Sequence[type[ViolaError]],
) -> dict[str, Any]:
    """For the decorator of a route that takes one clip or several, in any way."""
    body = _request_body(
        "One field `file` for each clip, the one encoded sound itself, or JSON.",
        {
            "multipart/form-data": _FORM_OF_MANY,
            "audio/*": _SOUND,
            "application/octet-stream": _SOUND,
            "application/json": _json_body("audio", _MANY_IN_BASE64, parameters),
        },
    )
    return _documented(summary, parameters, body, ok_response(answer, example) | error_responses(*errors))


def head_file_body() -> dict[str, Any]:
    """For the decorator of the route that takes a head's file."""
    return _request_body("The file's bytes.", {"application/octet-stream": _SOUND})


def openai_body(parameters: type[BaseModel]) -> dict[str, Any]:
    """For the decorator of OpenAI's route: its body."""
    json_body = _json_body("input", _TEXTS_OR_SOUNDS, parameters)
    return _request_body("Sounds or texts in JSON.", {"application/json": json_body})


def infer_body(schema: dict[str, Any]) -> dict[str, Any]:
    """For the decorator of the Open Inference Protocol's route: its body."""
    octets = {"type": "string", "format": "binary"}
    return _request_body(
        "JSON with its tensors in it, or behind it by the binary extension.",
        {"application/json": schema, "application/octet-stream": octets},
    )


def pipeline_body(parameters: type[BaseModel]) -> dict[str, Any]:
    """For the decorator of Hugging Face's routes: the sound itself, or JSON. parameters: beside the sound."""
    json_body = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": _MANY_IN_BASE64, "parameters": {"type": "object"}} | properties(parameters),
        "additionalProperties": False,
    }
    return _request_body(
        "The encoded sound itself, or JSON.",
        {"audio/*": _SOUND, "application/octet-stream": _SOUND, "application/json": json_body},
    )


def ok_response(model: Any, example: Any, *, binary: str | None = None) -> dict[int | str, dict[str, Any]]:
    """Of a route's `responses`: its answer with status 200. binary: what else it may be, as a media type."""
    content: dict[str, Any] = {"application/json": {"example": example}}
    if binary is not None:
        content[binary] = {"schema": {"type": "string", "format": "binary"}}
    description = model.__doc__ if isinstance(model, type) else "The answer."  # list[...] is none
    return {200: {"model": model, "description": description, "content": content}}


def error_responses(*kinds: type[ViolaError], path: str = "/") -> dict[int | str, dict[str, Any]]:
    """Of the `responses` of the route at `path`: its errors by status, with codes and an example of each."""
    by_status = defaultdict(list)
    for kind in kinds:
        by_status[kind.status].append(kind)
    return {
        status: {
            "description": ", ".join(f"`{kind.code}`" for kind in of_status),
            "content": {
                "application/json": {
                    "schema": error_schema(path, [kind.code for kind in of_status]),
                    "examples": {
                        kind.code: {"value": error_content(path, kind.code, ERROR_EXAMPLES[kind])}
                        for kind in of_status
                    },
                }
            },
        }
        for status, of_status in by_status.items()
    }


def query_parameters(kind: type[BaseModel]) -> dict[str, Any]:
    """`kind` as the `parameters` of a route, with the header that all of them take."""
    return {
        "parameters": [
            *(
                {
                    "name": name,
                    "in": "query",
                    "required": False,
                    "description": schema.pop("description"),
                    "schema": _without_null(schema),
                }
                | (WITH_COMMAS if _without_null(schema).get("type") == "array" else {})
                for name, schema in properties(kind).items()
            ),
            DEADLINE,
        ]
    }


def document_keys(app: FastAPI) -> None:
    """Add the two ways to send an API key to the document."""
    generate = app.openapi

    def with_keys() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
        document["security"] = [{name: []} for name in SECURITY_SCHEMES]
        return document

    app.openapi = with_keys  # type: ignore[method-assign]


def _documented(
    summary: str,
    parameters: type[BaseModel],
    body: dict[str, Any],
    responses: dict[int | str, dict[str, Any]],
) -> dict[str, Any]:
    """The keyword arguments of a route's decorator."""
    extra = query_parameters(parameters) | body
    return {"summary": summary, "responses": responses, "openapi_extra": extra}


def _request_body(description: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """schemas: by media type."""
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _json_body(name: str, sound: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name],
        "properties": {name: sound} | properties(kind),
        "additionalProperties": False,
    }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is left out, never null."""
    if "anyOf" not in schema:
        return schema
    (kind,) = (option for option in schema["anyOf"] if option != {"type": "null"})
    return {"title": schema["title"]} | kind
