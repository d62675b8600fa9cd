"""A path, a code and a sentence in, the JSON of the error out: in the shape that the path's clients read.

    /v1/...                          {"error": {"message": sentence, "type": code, ...}, "detail": sentence}
    /v2, /v2/...                     {"error": sentence, "code": code}
    /models/<name>/pipeline/<task>   the same
    all others                       {"error": code, "detail": sentence}

The clients of OpenAI, of the Open Inference Protocol and of Hugging Face show people nothing else of an
answer than what their own shape names.
"""

from typing import Any

from pydantic import JsonValue

OPENAI = "/v1/"
OPEN_INFERENCE = "/v2"
PIPELINE = "pipeline"  # the third part of a path of Hugging Face's


def error_content(path: str, code: str, sentence: str) -> dict[str, JsonValue]:
    """The body of an error of the route at `path`, below the root path."""
    if path.startswith(OPENAI):
        error: dict[str, JsonValue] = {"message": sentence, "type": code, "param": None, "code": code}
        return {"error": error, "detail": sentence}
    if _is_sentence_alone(path):
        return {"error": sentence, "code": code}
    return {"error": code, "detail": sentence}


def error_schema(path: str, codes: list[str]) -> dict[str, Any]:
    """The JSON schema of what `error_content` gives for one of the codes."""
    text, code = {"type": "string"}, {"type": "string", "enum": codes}
    if path.startswith(OPENAI):
        error = {"message": text, "type": code, "param": {"type": "null"}, "code": code}
        return _object({"error": _object(error), "detail": text})
    if _is_sentence_alone(path):
        return _object({"error": text, "code": code})
    return _object({"error": code, "detail": text})


def _is_sentence_alone(path: str) -> bool:
    if path == OPEN_INFERENCE or path.startswith(f"{OPEN_INFERENCE}/"):
        return True
    return path.startswith("/models/") and path.split("/")[3:4] == [PIPELINE]


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}
