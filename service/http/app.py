"""Settings in, the ASGI application out: middleware, routes, answers to errors, start and end.

uvicorn ─► CORS ─► RequestMiddleware ─► FastPath ─┬─► /embed, /classify
                                                  └─► framework ─► all routes
"""

import asyncio
import contextlib
import gc
import logging
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from service.errors import MalformedHttp, ViolaError
from service.http.drain import draining
from service.http.error_response import error_codes, error_response
from service.http.fast_path import FastPath, endpoints_of
from service.http.middleware import PUBLIC_PATHS, RequestMiddleware
from service.http.openapi_document import document_keys
from service.http.protocol import END_STREAMS, LIMITS, CutReason, Limits
from service.http.routes import (
    classify,
    docs,
    embed,
    heads,
    health,
    huggingface,
    logmel,
    models,
    open_inference,
    openai,
    page,
    stream,
)
from service.http.server import Server
from service.http.tracing import Tracer
from service.http.trailing_slash import WithoutSlash
from service.process.balancing import Loop
from service.process.metrics import Metrics
from service.process.serving import READINESS, RELOAD
from service.process.workers import Slot
from service.settings import Settings, unknown_variables

log = logging.getLogger(__name__)

VERSION = "0.1.0"
SUMMARY = "Sound in, embeddings and tags out."

# In the order of /docs.
RESOURCES = (embed, classify, stream, models, heads)
ROUTERS = [each.router for each in (*RESOURCES, openai, open_inference, huggingface, health, logmel, page)]

# The framework's own spans, metrics and logs, off: those of tracing.py know the stages; one set is enough.
TRACED_HERE: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(settings: Settings, slot: Slot | None = None) -> FastAPI:
    """The application; models are loaded when its lifespan starts. slot: of this worker, where there are
    several."""
    server = Server.from_settings(settings, slot)
    metrics = server.metrics
    metrics.tell_build(VERSION)
    metrics.expect_errors(error_codes())
    if settings.otel:
        server.tracer = Tracer(VERSION)
    app = FastAPI(
        title="viola",
        version=VERSION,
        summary=SUMMARY,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=TRACED_HERE,
    )
    app.router.redirect_slashes = False  # it redirects to whole URLs, which a proxy makes wrong
    app.router.default = WithoutSlash(app.router)
    app.state.server = server
    for router in ROUTERS:
        app.include_router(router)
    docs.mount(app)
    page.mount(app)
    _add_middleware(app, server)
    if server.access.is_restricted:
        document_keys(app)
    return app


def app_from_environment() -> FastAPI:
    """For uvicorn's worker processes, each of which reads the settings itself."""
    for name in unknown_variables(os.environ):
        log.warning("%s is no setting and is passed over; docs/settings.md lists those there are", name)
    return create_app(Settings(), Slot.of_this_worker())


def _add_middleware(app: FastAPI, server: Server) -> None:
    """From the inside out, as drawn above; and what an error of a route becomes, on either path."""
    settings, metrics = server.settings, server.metrics
    routes = [route for router in ROUTERS for route in router.routes]

    def respond_with_error(request: Request, error: Exception) -> Response:
        return error_response(error, metrics, request.scope)

    for kind in (ViolaError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, respond_with_error)
    app.add_middleware(
        FastPath,
        endpoints=endpoints_of(routes, "/embed", "/classify", root_path=settings.root_path),
        respond_with_error=respond_with_error,
    )
    paths = {path for route in routes if isinstance(path := getattr(route, "path", None), str)}
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        access=server.access,
        routes=paths | PUBLIC_PATHS,
        root_path=settings.root_path,
        access_log=settings.access_log,
        keep_alive_s=settings.keep_alive_s,
        is_draining=lambda: server.is_draining,
        tracer=server.tracer,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Server-Timing", "Retry-After", "X-Request-ID"],
        )


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Load the models, then serve, with the limits for connections as state; at the end finish what was
    accepted."""
    server: Server = app.state.server
    log.info("threads: %s", server.plan.reason)
    server.embedder.start()
    server.texts.start()
    server.teacher.start()
    await server.broadcast.open()
    await server.models.preload(server.settings.preload)
    _freeze_what_stays()
    sampling = asyncio.create_task(server.metrics.keep_sampled())
    stop_admitting = partial(_stop_admitting, server, asyncio.get_running_loop())
    with draining(stop_admitting, delay_s=server.settings.drain_s):
        yield {
            LIMITS: _limits(server.settings, server.metrics),
            READINESS: partial(_readiness, server),
            RELOAD: server.models.reload,
            END_STREAMS: server.streams.end_all,
        }
    server.stop_admitting()
    await server.broadcast.close()
    await server.embedder.drain()
    await asyncio.to_thread(server.texts.close)
    await asyncio.to_thread(server.teacher.close)
    sampling.cancel()
    if server.tracer is not None:
        await asyncio.to_thread(server.tracer.close)


def _readiness(server: Server) -> str | None:
    """Why it is not ready. Asked once a second among several workers, where nobody else may ask one that is
    not."""
    server.recover()
    return server.not_ready()


def _stop_admitting(server: Server, loop: asyncio.AbstractEventLoop) -> None:
    """From now on this process is not ready, and new connections are for the other workers."""
    server.stop_admitting()
    if isinstance(loop, Loop):
        loop.stand_back(True)


def _limits(settings: Settings, metrics: Metrics) -> Limits:
    """For each connection. Connections that are cut are counted by the reason, each of which is there from
    the start, with 0."""
    counters = {reason: metrics.connections_cut.labels(reason) for reason in get_args(CutReason)}
    return Limits(
        head_s=settings.head_timeout_s,
        answer_s=settings.answer_timeout_s,
        on_cut=lambda reason: counters[reason].inc(),
        on_malformed=metrics.errors.labels(MalformedHttp.code).inc,
    )


def _freeze_what_stays() -> None:
    """What is loaded by now lives as long as the process: the garbage collector need not search it again and
    again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
