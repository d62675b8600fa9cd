"""A request for one of a few routes in, straight to its endpoint; all others go through the framework.

The framework spends more time on a request than the server on decoding a short clip: it looks for the route,
solves its dependencies, of which there are none, and wraps each call in six layers that catch errors. The
routes stay registered with it, so that they are in the OpenAPI document, and another method is answered 405.
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


class FastPath:
    """endpoints: by path, for POST; respond_with_error: makes the answer to an exception that they raise."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        endpoints: Mapping[str, Endpoint],
        respond_with_error: Callable[[Request, Exception], Response],
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._respond_with_error = respond_with_error

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
            response = self._respond_with_error(request, error)
        await response(scope, receive, send)


def endpoints_of(routes: Sequence[BaseRoute], *paths: str, root_path: str = "") -> dict[str, Endpoint]:
    """The functions of the routes with these paths, below root_path."""
    found = {route.path: route.endpoint for route in routes if isinstance(route, APIRoute)}
    return {root_path + path: found[path] for path in paths}
