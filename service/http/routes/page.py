"""The page at `/`: drop or record a sound, see what the model sees and says. Its files are in service/page/.

It asks no other host for anything and runs no script but its own, which its Content-Security-Policy holds it
to; it calls the routes that any client calls.
"""

import html
import os
from collections.abc import Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

FOLDER = Path(__file__).parent / "page"
PATH = "/page"  # of its files

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked for again, and answered 304 while nothing has changed
}


def mount(app: Starlette, path: str = PATH, folder: str | os.PathLike[str] = FOLDER) -> None:
    """Serve the page's files. Its own route is among the others, so that it is counted as one of them."""
    app.mount(path, _Files(directory=folder))


def home(request: Request) -> Response:
    """The page itself."""
    return document(request, "index.html", HEADERS)


def document(request: Request, name: str, headers: Mapping[str, str]) -> Response:
    """A file of FOLDER, told the path prefix that it is served behind."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    prefix = html.escape(request.scope.get("root_path", "").rstrip("/"))
    return HTMLResponse(text.replace("{{root_path}}", prefix), headers=dict(headers))


class _Files(StaticFiles):
    """With the page's headers on every answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        await super().__call__(scope, receive, send_with_headers)
