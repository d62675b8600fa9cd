"""The page at `/docs`: Swagger UI over this server's own /openapi.json, with a form to try each route.

Swagger UI's script and style come from the package fastapi-offline, which ships them as files, so that
nothing is asked of another host; service/page/docs.js starts it. The Content-Security-Policy is that of the
page at `/`, and allows the images inside Swagger UI's style sheet.
"""

from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from service import page

PATH = "/docs"
SWAGGER_PATH = f"{page.PATH}/swagger"  # of Swagger UI's files
SWAGGER = str(files("fastapi_offline") / "static")

IMAGES = "img-src 'self'"
HEADERS = page.HEADERS | {
    "Content-Security-Policy": page.HEADERS["Content-Security-Policy"].replace(IMAGES, f"{IMAGES} data:")
}


def mount(app: Starlette) -> None:
    """Serve the page and Swagger UI's files; to be called before `page.mount`, below whose path they lie."""
    app.add_route(PATH, docs, include_in_schema=False)
    page.mount(app, SWAGGER_PATH, SWAGGER)


def docs(request: Request) -> Response:
    """The page itself, told the path prefix that it is served behind."""
    return page.document(request, "docs.html", HEADERS)
