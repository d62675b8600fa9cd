"""What /asyncapi.json says of the WebSocket at /stream (AsyncAPI 3.0), which OpenAPI has no words for.

Nothing here runs in a stream: the messages are those of stream_session.py, and a test holds the two together.
"""

from typing import Any

from service.http.openapi_document import SECURITY_SCHEMES
from service.http.parameters import StreamParameters, properties
from service.http.schemas import STREAM_EXAMPLE

ADDRESS = "/stream"

_TEXT = {"type": "string"}
_SECONDS = {"type": "number", "minimum": 0}
_SCORE = {"type": "number", "minimum": 0, "maximum": 1}
_TAG = {
    "type": "object",
    "required": ["label", "score"],
    "properties": {"label": _TEXT, "score": _SCORE},
    "additionalProperties": False,
}
_SPAN = {"start_s": _SECONDS, "end_s": _SECONDS}

# By type: what it tells, its fields, and those of them that it may lack.
MESSAGES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "ready": (
        "The first message: what listens, and in which windows.",
        {
            "model": _TEXT,
            "head": {"type": ["string", "null"]},
            "window_s": {"type": "number", "exclusiveMinimum": 0},
            "hop_s": {"type": "number", "exclusiveMinimum": 0},
        },
        set(),
    ),
    "tags": (
        "The tags of one window, best first, with `embeddings=true` also its embedding.",
        _SPAN
        | {
            "tags": {"type": "array", "items": _TAG},
            "known": _SCORE,
            "embedding": {"type": "array", "items": {"type": "number"}},
        },
        {"known", "embedding"},
    ),
    "event": ("A label was heard, and is not any more.", _SPAN | {"label": _TEXT, "score": _SCORE}, set()),
    "lag": ("By how much the server has fallen behind.", {"seconds": _SECONDS}, set()),
    "error": (
        "The last message where something is wrong; `error` is one of the codes of the other routes.",
        {"error": _TEXT, "detail": _TEXT, "retry_after_s": _SECONDS},
        {"retry_after_s"},
    ),
    "end": ("The last message where all is well: how much sound there was.", {"seconds": _SECONDS}, set()),
}


def message_schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a message of the server."""
    _, fields, optional = MESSAGES[kind]
    return {
        "type": "object",
        "required": ["type", *(name for name in fields if name not in optional)],
        "properties": {"type": {"const": kind}} | fields,
        "additionalProperties": False,
    }


def asyncapi_document(version: str, *, asks_for_keys: bool) -> dict[str, Any]:
    examples = {str(each["type"]): each for each in STREAM_EXAMPLE}
    said = {
        kind: {
            "name": kind,
            "summary": summary,
            "contentType": "application/json",
            "payload": message_schema(kind),
            "examples": [{"payload": examples[kind]}] if kind in examples else [],
        }
        for kind, (summary, _, _) in MESSAGES.items()
    }
    heard = {
        "sound": {
            "name": "sound",
            "summary": "Binary, up to 8 million bytes; how sound is cut into messages changes nothing.",
            "contentType": "application/octet-stream",
            "payload": {"type": "string", "format": "binary"},
        },
        "finish": {
            "name": "finish",
            "summary": "A text message that asks for what is left, and for the end.",
            "contentType": "application/json",
            "payload": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"const": "end"}},
            },
        },
    }
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "viola, live",
            "version": version,
            "description": "Sound that has no end in, tags and events out while it comes.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "stream": {
                "address": ADDRESS,
                "messages": {name: _ref("messages", name) for name in (*heard, *said)},
                "bindings": {
                    "ws": {
                        "method": "GET",
                        "query": {"type": "object", "properties": properties(StreamParameters)},
                        "bindingVersion": "0.1.0",
                    }
                },
            }
        },
        "operations": {
            "listen": _operation("receive", "What a client sends.", heard),
            "tell": _operation("send", "What the server says.", said),
        },
        "components": {"messages": heard | said},
    }
    if asks_for_keys:
        subprotocol = {
            "type": "httpApiKey",
            "in": "header",
            "name": "Sec-WebSocket-Protocol",
            "description": "`viola.key.` and the key, for browsers, which can set no other header.",
        }
        own = {"bearer": SECURITY_SCHEMES["bearer"], "subprotocol": subprotocol}
        key = SECURITY_SCHEMES["key"] | {"type": "httpApiKey"}
        document["components"]["securitySchemes"] = own | {"key": key}
        document["operations"]["listen"]["security"] = [
            _ref("securitySchemes", name) for name in (*own, "key")
        ]
    return document


def _operation(action: str, summary: str, messages: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/stream"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/stream/messages/{name}"} for name in messages],
    }


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
