"""Any exception in, its answer out: `{"error": code, "detail": sentence}` with a status and headers; other
shapes are told in error_shape.py."""

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service.errors import (
    MAX_SENTENCE,
    BadRequest,
    InternalError,
    Unauthorized,
    ViolaError,
    shortened,
)
from service.http.error_shape import error_content
from service.http.parameters import complaints
from service.http.request_record import RECORD
from service.http.responses import json_response
from service.process.metrics import Metrics

FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed"}  # what starlette refuses before any route
INTERNAL_DETAIL = "the server failed; its log tells why"


def error_response(error: Exception, metrics: Metrics, scope: Scope) -> Response:
    """The answer to any exception, which is counted, and kept in the request's record for its log line."""
    status, code, detail = describe(error)
    metrics.errors.labels(code).inc()
    scope[RECORD].error, scope[RECORD].detail = code, detail
    headers = {}
    if isinstance(error, ViolaError):
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(round(error.retry_after_s))
        if error.closes:
            headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
    content = error_content(scope[RECORD].path, code, detail)
    return json_response(content, status=status, headers=headers)


def describe(error: Exception) -> tuple[int, str, str]:
    """(HTTP status, code, sentence) of any exception; the sentence tells nothing about an error of ours."""
    if isinstance(error, ViolaError):
        return error.status, error.code, str(error)
    if isinstance(error, RequestValidationError):
        return BadRequest.status, BadRequest.code, complaints(error.errors())
    if isinstance(error, HTTPException):
        code = FRAMEWORK_CODES.get(error.status_code, BadRequest.code)
        return error.status_code, code, _framework_sentence(error)
    return InternalError.status, InternalError.code, INTERNAL_DETAIL


def error_codes() -> set[str]:
    """Every code that an answer or the metric may carry."""
    kinds, codes = [ViolaError], set(FRAMEWORK_CODES.values())
    while kinds:
        kind = kinds.pop()
        codes.add(kind.code)
        kinds += kind.__subclasses__()
    return codes


def _framework_sentence(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is no such route; /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"the method is not allowed here; use {allowed}"
    return shortened(str(error.detail), MAX_SENTENCE)
