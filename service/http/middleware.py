"""A request in, passed on to the routes with its id and its key checked; its answer out, counted and logged.

A plain ASGI application around the routes, because the framework's middleware class takes longer than
decoding a short clip.
"""

import logging
import time
from collections.abc import Callable, Collection

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Unauthorized, ViolaError, shortened
from service.http.api_keys import Access
from service.http.error_response import error_response
from service.http.request_record import MAX_PATH, RECORD, RequestRecord, id_source
from service.http.tracing import Tracer
from service.http.upload import CLIPS_OF_BODY
from service.process.logs import log_request
from service.process.metrics import Metrics

log = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset(
    {
        "/",
        "/health/live",
        "/health/ready",
        "/v2/health/live",
        "/v2/health/ready",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/asyncapi.json",
    }
)
PAGE_FILES = "/page/"  # what the page at / is made of; these need no key either
PROBES = frozenset(  # logged only where they fail
    {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"}
)
HEADERS = frozenset({b"x-request-id", b"traceparent", b"tracestate", b"baggage"})  # that are read here
STREAM = "/stream"  # whose requests last as long as their clients like
SWITCHING_PROTOCOLS = 101
CLIENT_CLOSED_REQUEST = 499  # never sent; nginx's number, for the metric


class RequestMiddleware:
    """access: which keys a request must carry, if any; routes: paths with a metric label of their
    own; root_path: the prefix under which a proxy serves the application; keep_alive_s:
    what each answer says of the time until its connection is closed, 0: nothing; is_draining: whether
    clients are to come back on another connection; tracer: makes a span of each request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        access: Access,
        routes: Collection[str],
        root_path: str = "",
        access_log: bool = False,
        keep_alive_s: int = 0,
        is_draining: Callable[[], bool] = lambda: False,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._access = access
        self._routes = frozenset(routes)
        self._root_path = root_path
        self._access_log = access_log
        self._connection = (b"keep-alive", b"timeout=%d" % keep_alive_s) if keep_alive_s else None
        self._is_draining = is_draining
        self._tracer = tracer
        self._request_id = id_source()
        self._in_flight = 0
        metrics.watch(metrics.in_flight, lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._listen(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record, headers = self._begin(scope, status=CLIENT_CLOSED_REQUEST)
        self._in_flight += 1
        connection = self._connection

        async def counting_receive() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.request_id)]
                if self._is_draining():
                    message["headers"].append((b"connection", b"close"))
                elif connection is not None:
                    message["headers"].append(connection)
            await send(message)

        try:
            await self._call_app(scope, counting_receive, send_with_headers)
        except ClientDisconnect:
            record.error, record.detail = "client_left", "the client closed the connection first"
        except Exception as error:
            if not isinstance(error, ViolaError):
                path = shortened(record.path, MAX_PATH)
                log.exception("%s %s failed, request %s", record.method, path, record.request_id.decode())
            if record.status == CLIENT_CLOSED_REQUEST:  # nothing was sent yet
                await error_response(error, self._metrics, scope)(scope, receive, send_with_headers)
        finally:
            for clip in scope.pop(CLIPS_OF_BODY, ()):  # of a request that was refused after its body was read
                clip.close()
            self._in_flight -= 1
            self._report(record, headers)

    async def _listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same for a WebSocket, which its route accepts, and whose key it checks: it can say more."""
        scope["method"] = "GET"
        record, headers = self._begin(scope, status=SWITCHING_PROTOCOLS)

        async def counting_receive() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("bytes") or b"")
            return message

        self._in_flight += 1
        try:
            if record.path == STREAM:
                await self._app(scope, counting_receive, send)
            else:
                record.status = 403
                await send({"type": "websocket.close"})  # before it was accepted: 403
        except Exception:
            log.exception("a WebSocket failed, request %s", record.request_id.decode())
            record.status = 500
        finally:
            self._in_flight -= 1
            self._report(record, headers)

    def _begin(self, scope: Scope, *, status: int) -> tuple[RequestRecord, dict[bytes, bytes]]:
        """The record of a request, which its route finds in the scope, and its headers that are told of.
        status: until there is another."""
        headers = {name: value for name, value in scope["headers"] if name in HEADERS}
        record = RequestRecord(
            scope,
            path=self._path_below_root(scope),
            request_id=self._request_id(headers.get(b"x-request-id", b"")),
            status=status,
        )
        scope[RECORD] = record
        return record, headers

    async def _call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The routes' answer, or 401 without a valid key."""
        path = scope[RECORD].path
        if self._access.is_restricted and path not in PUBLIC_PATHS and not path.startswith(PAGE_FILES):
            try:
                self._access.check_client(scope["headers"])
            except Unauthorized as refusal:
                await error_response(refusal, self._metrics, scope)(scope, receive, send)
                return
        if scope["method"] == "HEAD":  # an answer to GET whose body the server leaves out
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)

    def _path_below_root(self, scope: Scope) -> str:
        """The path below root_path. A proxy may have cut that off or not; in the scope it is there, as ASGI
        has it: what is mounted (the page's files) is not found otherwise."""
        path: str = scope["path"]
        root = self._root_path
        if not root:
            return path
        below = path[len(root) :] or "/" if f"{path}/".startswith(f"{root}/") else path
        scope["root_path"], scope["path"] = root, root + below
        return below

    def _report(self, record: RequestRecord, headers: dict[bytes, bytes]) -> None:
        """The counts, the span and the log line of a request that is over."""
        seconds = time.perf_counter() - record.started
        record.route = self._route_label(record.path)
        is_stream = record.path == STREAM and record.status < 400
        self._metrics.count_request(record.route, record.model, record.status, None if is_stream else seconds)
        self._metrics.received_bytes.inc(record.bytes_in)
        if self._tracer is not None:
            self._tracer.trace(record, seconds, headers)
        if self._access_log and (record.path not in PROBES or record.status >= 400):
            log_request(record.fields(seconds))

    def _route_label(self, path: str) -> str:
        """The route for the metrics: one of a few, whatever path a client asks for."""
        if path in self._routes:
            return path
        if path.startswith(PAGE_FILES):
            return PAGE_FILES
        if path.startswith("/models/") and (below := _route_below_a_model(path.split("/")[3:])):
            return below
        for ending in ("ready", "infer"):
            if path.startswith("/v2/models/") and path.endswith(f"/{ending}"):
                return f"/v2/models/{{name}}/{ending}"
        for models in ("/models/", "/v1/models/", "/v2/models/"):
            if path.startswith(models):
                return f"{models}{{name}}"
        return "other"


HEAD_ROUTES = frozenset({"examples", "fit", "file"})
TASKS = frozenset({"audio-classification", "feature-extraction"})


def _route_below_a_model(parts: list[str]) -> str | None:
    """`/models/{name}/...` by what follows the model's name, without the names in it."""
    match parts:
        case ["pipeline", task] if task in TASKS:
            return f"/models/{{name}}/pipeline/{task}"
        case ["heads"]:
            return "/models/{name}/heads"
        case ["heads", _]:
            return "/models/{name}/heads/{head}"
        case ["heads", _, part] if part in HEAD_ROUTES:
            return f"/models/{{name}}/heads/{{head}}/{part}"
        case ["heads", _, "examples", _]:
            return "/models/{name}/heads/{head}/examples/{example}"
        case ["heads", _, "examples", _, "clip"]:
            return "/models/{name}/heads/{head}/examples/{example}/clip"
    return None
