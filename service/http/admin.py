"""A route that changes what is served in; the same route for admins alone out."""

import functools
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec

from starlette.requests import Request
from starlette.responses import Response

from service.http.server import server_of

Parameters = ParamSpec("Parameters")


def admin_only(
    endpoint: Callable[Concatenate[Request, Parameters], Awaitable[Response]],
) -> Callable[Concatenate[Request, Parameters], Awaitable[Response]]:
    """A mark for endpoints, below the route's decorator. What it refuses is told in api_keys.py; add
    Forbidden to the errors of the route."""

    @functools.wraps(endpoint)
    async def checked(request: Request, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Response:
        server_of(request).access.check_admin(request.headers.raw)
        return await endpoint(request, *args, **kwargs)

    return checked
