"""/asyncapi.json, and the page at `/docs`: Swagger UI over this server's own /openapi.json, with a form to
try each route.

Swagger UI's script and style come from the package fastapi-offline, which ships them as files, so that
nothing is asked of another host; service/http/page/docs.js starts it. The Content-Security-Policy is that of
the page at `/`, and allows the images inside Swagger UI's style sheet.
"""

from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from service.http.asyncapi_document import asyncapi_document
from service.http.responses import json_response
from service.http.routes import page
from service.http.server import server_of

PATH = "/docs"
ASYNCAPI_PATH = "/asyncapi.json"
SWAGGER_PATH = f"{page.PATH}/swagger"  # of Swagger UI's files
SWAGGER = str(files("fastapi_offline") / "static")

IMAGES = "img-src 'self'"
HEADERS = page.HEADERS | {
    "Content-Security-Policy": page.HEADERS["Content-Security-Policy"].replace(IMAGES, f"{IMAGES} data:")
}


def mount(app: Starlette) -> None:
    """Serve the page and Swagger UI's files; to be called before `page.mount`, below whose path they lie."""
    app.add_route(PATH, docs, include_in_schema=False)
    app.add_route(ASYNCAPI_PATH, asyncapi, include_in_schema=False)
    page.mount(app, SWAGGER_PATH, SWAGGER)


def docs(request: Request) -> Response:
    """The page itself."""
    return page.document("docs.html", HEADERS)


def asyncapi(request: Request) -> Response:
    """The document of the WebSocket; that of the other routes is the framework's."""
    asks_for_keys = server_of(request).access.is_restricted
    return json_response(asyncapi_document(request.app.version, asks_for_keys=asks_for_keys))
