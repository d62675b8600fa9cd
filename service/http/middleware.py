"""Every request passes here on its way in and every answer on its way out: key, errors, counts, one log line.

A plain ASGI application around the routes, because the framework's middleware class costs more time than the
decoding of a short clip. Errors of all kinds become answers in one place, `error_answer`.
"""

import logging
import time
from collections.abc import Callable, Collection

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.answers import json_answer
from service.errors import BadRequest, InternalError, Overloaded, Unauthorized, ViolaError
from service.exchange import EXCHANGE, Exchange, id_source
from service.keys import Keys
from service.logs import log_request
from service.metrics import Metrics
from service.openai_api import error_content
from service.parameters import complaints
from service.tracing import Tracer
from service.upload import CLIPS_OF_BODY, ClientLeft

log = logging.getLogger(__name__)

NEEDS_NO_KEY = frozenset({"/", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"})
PAGE = "/page/"  # what the page at / is made of; no key is asked for these either
PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})  # logged only where they fail
READ_HERE = frozenset(
    {b"authorization", b"x-api-key", b"x-request-id", b"traceparent", b"tracestate", b"baggage"}
)
MODEL_OF_REQUEST = "viola.model"  # in the scope, for the metric's label: the model's name, once it is known

# What the framework itself refuses, before any route.
FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed"}
CLIENT_LEFT = 499  # never sent; nginx's number, for the metric


class Gate:
    """keys: one must be shown, where they are asked for; routes: paths with a metric label of their own;
    root_path: the prefix under which a proxy serves the application; is_draining: whether clients are to come
    back on another connection; tracer: what makes a span of each request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        keys: Keys,
        routes: Collection[str],
        root_path: str = "",
        access_log: bool = False,
        is_draining: Callable[[], bool] = lambda: False,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys
        self._routes = frozenset(routes)
        self._root_path = root_path
        self._access_log = access_log
        self._is_draining = is_draining
        self._tracer = tracer
        self._request_id = id_source()
        self._in_flight = 0
        metrics.watch(metrics.in_flight, lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _headers_sent(scope)
        exchange = Exchange(
            scope,
            path=self._path(scope),
            request_id=self._request_id(sent.get(b"x-request-id", b"")),
            status=CLIENT_LEFT,
        )
        scope[EXCHANGE] = exchange
        self._in_flight += 1

        async def receive_and_note() -> Message:
            message = await receive()
            exchange.bytes_in += len(message.get("body", b""))
            return message

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", exchange.request_id)]
                if self._is_draining():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._pass(scope, sent, receive_and_note, send_and_note)
        except ClientLeft:
            exchange.error, exchange.detail = "client_left", "the client closed the connection first"
        except Exception as error:
            if not isinstance(error, ViolaError):
                log.exception(
                    "%s %s failed, request %s", scope["method"], scope["path"], exchange.request_id.decode()
                )
            if exchange.status == CLIENT_LEFT:  # nothing was sent yet
                await error_answer(error, self._metrics, scope)(scope, receive, send_and_note)
        finally:
            for clip in scope.pop(CLIPS_OF_BODY, ()):  # of a request that was refused after its body was read
                clip.close()
            self._in_flight -= 1
            exchange.model = scope.get(MODEL_OF_REQUEST, "")
            self._note(exchange, sent)

    async def _pass(self, scope: Scope, sent: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        path = scope[EXCHANGE].path
        asks = self._keys.are_asked_for and path not in NEEDS_NO_KEY and not path.startswith(PAGE)
        if asks and not self._keys.admit(_key_shown(sent)):
            refusal = Unauthorized("show a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
            await error_answer(refusal, self._metrics, scope)(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # an answer to GET whose body the server leaves out
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    def _path(self, scope: Scope) -> str:
        """The path below root_path, which a proxy may have cut off or not; the framework does the same."""
        path: str = scope["path"]
        if not self._root_path:
            return path
        scope["root_path"] = self._root_path
        return path.removeprefix(self._root_path) if path.startswith(f"{self._root_path}/") else path

    def _note(self, exchange: Exchange, sent: dict[bytes, bytes]) -> None:
        """Counts, the span and the log line of what is over."""
        seconds = time.perf_counter() - exchange.started
        exchange.route = self._label(exchange.path)
        self._metrics.count_request(exchange.route, exchange.model, exchange.status, seconds)
        self._metrics.received_bytes.inc(exchange.bytes_in)
        if self._tracer is not None:
            self._tracer.trace(exchange, seconds, sent)
        if self._access_log and (exchange.path not in PROBES or exchange.status >= 400):
            log_request(exchange.fields(seconds))

    def _label(self, path: str) -> str:
        """The route for the metrics: of a few, whatever paths are asked for."""
        if path in self._routes:
            return path
        if path.startswith(PAGE):
            return PAGE
        for models in ("/models/", "/v1/models/"):
            if path.startswith(models):
                return f"{models}{{name}}"
        return "other"


def _headers_sent(scope: Scope) -> dict[bytes, bytes]:
    """The headers that the gate reads."""
    return {name: value for name, value in scope["headers"] if name in READ_HERE}


def _key_shown(sent: dict[bytes, bytes]) -> bytes:
    """The bytes of the key, b"" without one."""
    scheme, _, token = sent.get(b"authorization", b"").partition(b" ")
    return token.strip(b" ") if scheme.lower() == b"bearer" else sent.get(b"x-api-key", b"")


def error_answer(error: Exception, metrics: Metrics, scope: Scope) -> Response:
    """Any exception as `{"error": code, "detail": sentence}`, counted and noted."""
    status, code, detail = describe(error)
    metrics.errors.labels(code).inc()
    scope[EXCHANGE].error, scope[EXCHANGE].detail = code, detail
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(round(error.retry_after_s))
    if isinstance(error, ViolaError) and error.closes:
        headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
    content = error_content(scope[EXCHANGE].path, code, detail)
    return json_answer(content, status=status, headers=headers)


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


INTERNAL_DETAIL = "the server failed; its log tells why"


def _framework_sentence(error: HTTPException) -> str:
    if error.status_code == 404:
        return "there is no such route; /docs lists them"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return f"the method is not allowed here; use {allowed}"
    return str(error.detail)
