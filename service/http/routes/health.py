"""Probes in; whether the process lives, whether requests should be sent here, and its metrics out."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.http.openapi_document import NOT_READY
from service.http.responses import json_response
from service.http.server import server_of
from service.process.balancing import Loop
from service.process.metrics import CONTENT_TYPE

router = APIRouter()


@router.get("/health/live", summary="Is the process alive?")
async def live() -> Response:
    """200 as long as the event loop turns."""
    return json_response({"status": "alive"})


@router.get("/health/ready", summary="Should requests be sent here?", responses=NOT_READY)
async def ready(request: Request) -> Response:
    """200 once the default model is loaded and while the worker works; 503 before, and from SIGTERM on. Of
    several processes one that is not ready, as while it is replaced, leaves requests to those that are."""
    if reason := why_not_ready(request):
        return json_response({"error": "not_ready", "detail": reason}, status=503)
    return json_response({"status": "ready"})


def why_not_ready(request: Request) -> str | None:
    """Why no request should be sent to this port, which several processes may share; None when one should."""
    server = server_of(request)
    server.recover()
    reason = server.not_ready()
    loop = asyncio.get_running_loop()
    return None if isinstance(loop, Loop) and loop.others_take() else reason


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    return Response(server_of(request).metrics.page(), media_type=CONTENT_TYPE)
