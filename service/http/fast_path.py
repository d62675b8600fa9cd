"""A request for one of a few routes in, straight to its endpoint; all others go through the framework.

The framework spends more time on a request than the server on the decoding of a short clip: it looks for the
route, solves dependencies that there are none of, and wraps each call in six layers that catch errors. The
routes stay registered with it, so that they are in its documents and it answers a wrong method.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ViolaError

Endpoint = Callable[[Request], Awaitable[Response]]


class Shortcut:
    """endpoints: by path, for POST; answer_error: what an error of theirs becomes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        endpoints: Mapping[str, Endpoint],
        answer_error: Callable[[Request, Exception], Response],
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._answer_error = answer_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._endpoints.get(scope["path"]) if is_post else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except (ViolaError, HTTPException) as error:
            response = self._answer_error(request, error)
        await response(scope, receive, send)


def endpoints_of(routes: Sequence[BaseRoute], *paths: str) -> dict[str, Endpoint]:
    """The functions of the routes with these paths."""
    found = {route.path: route.endpoint for route in routes if isinstance(route, APIRoute)}
    return {path: found[path] for path in paths}
