"""The page at `/`: ask what is in a sound, listen to a microphone, teach it. Its files: service/http/page/.

It asks no other host for anything and runs no script but its own, which its Content-Security-Policy holds it
to; it calls the routes that any client calls.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

FOLDER = Path(__file__).parents[1] / "page"
PATH = "/page"  # of its files

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked for again, and answered 304 while nothing has changed
}


router = APIRouter()


def mount(app: Starlette, path: str = PATH, folder: str | os.PathLike[str] = FOLDER) -> None:
    """Serve the page's files."""
    app.mount(path, _Files(directory=folder))


@router.get("/", include_in_schema=False)
async def home() -> Response:
    """The page itself."""
    return document("index.html", HEADERS)


def document(name: str, headers: Mapping[str, str]) -> Response:
    """A file of FOLDER. All its addresses are relative: it works behind any path prefix."""
    return HTMLResponse((FOLDER / name).read_bytes(), headers=dict(headers))


class _Files(StaticFiles):
    """With the page's headers on every answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        await super().__call__(scope, receive, send_with_headers)
