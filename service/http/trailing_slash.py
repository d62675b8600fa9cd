"""A path that is no route in; a redirect out where it is one but for the slash at its end, else 404.

The framework's own redirect names scheme and host as the server sees them. Behind a proxy those are not the
client's; the path alone, with the prefix, is right everywhere (RFC 9110, 10.2.2).
"""

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.routing import Match, Router
from starlette.types import Receive, Scope, Send

MAX_LOCATION = 1000  # characters; a longer one is answered 404


class WithoutSlash:
    """For `router.default`."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/")
        query = scope["query_string"].decode("latin-1")
        location = f"{path}?{query}" if query else path
        if scope["path"] == path or len(location) > MAX_LOCATION or not self._is_route(scope, path):
            raise HTTPException(404)
        await RedirectResponse(location)(scope, receive, send)

    def _is_route(self, scope: Scope, path: str) -> bool:
        below = path.removeprefix(scope.get("root_path", ""))
        if not below:
            return False
        scope = {**scope, "path": path}
        return any(route.matches(scope)[0] is not Match.NONE for route in self._router.routes)
