"""Every request passes here on its way in and every answer on its way out: key, errors, counts, seconds.

A plain ASGI application around the routes, because the framework's middleware class costs more time than the
decoding of a short clip. Errors of all kinds become answers in one place, `error_answer`.
"""

import hmac
import logging
import time
from collections.abc import Collection

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answers import json_answer
from service.errors import BadRequest, InternalError, Overloaded, Unauthorized, ViolaError
from service.metrics import Metrics
from service.parameters import complaints
from service.upload import ClientLeft

log = logging.getLogger(__name__)

NEEDS_NO_KEY = frozenset({"/", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"})
MODEL_OF_REQUEST = "viola.model"  # in the scope, for the metric's label: the model's name, once it is known

# What the framework itself refuses, before any route.
FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed"}
CLIENT_LEFT = 499  # never sent; nginx's number, for the metric


class Gate:
    """api_keys: one must be shown, unless there are none; routes: paths with a metric label of their own."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, api_keys: Collection[str], routes: Collection[str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = [key.encode() for key in api_keys]
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = CLIENT_LEFT

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, send_and_note)
        except ClientLeft:
            pass
        except Exception as error:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status == CLIENT_LEFT:  # nothing was sent yet
                await error_answer(error, self._metrics)(scope, receive, send_and_note)
        finally:
            self._count(scope, status, time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keys and scope["path"] not in NEEDS_NO_KEY and not self._shows_a_key(Headers(scope=scope)):
            refusal = Unauthorized("show a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
            await error_answer(refusal, self._metrics)(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # an answer to GET whose body the server leaves out
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    def _shows_a_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        shown = token.strip(" ") if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        sent = shown.encode("latin-1")  # the bytes themselves, as ASGI's header strings are made of them
        # Every key is compared, in constant time, so that the time tells nothing about any of them.
        return sum(hmac.compare_digest(sent, key) for key in self._keys) > 0

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._label(scope["path"])
        self._metrics.requests.labels(route, scope.get(MODEL_OF_REQUEST, ""), str(status)).inc()
        self._metrics.request_duration.labels(route).observe(seconds)

    def _label(self, path: str) -> str:
        """The route for the metrics: of a few, whatever paths are asked for."""
        if path in self._routes:
            return path
        return "/models/{name}" if path.startswith("/models/") else "other"


def error_answer(error: Exception, metrics: Metrics) -> Response:
    """Any exception as `{"error": code, "detail": sentence}`, counted."""
    status, code, detail = describe(error)
    metrics.errors.labels(code).inc()
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(round(error.retry_after_s))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
    return json_answer({"error": code, "detail": detail}, status=status, headers=headers)


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


INTERNAL_DETAIL = "the server failed; its log tells why"


def _framework_sentence(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is no such route; /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"the method is not allowed here; use {allowed}"
    return str(error.detail)
