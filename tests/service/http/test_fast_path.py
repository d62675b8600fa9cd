"""Requests through the fast path in front of a small real application."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse, Response

from service.errors import BadRequest, ViolaError
from service.http.fast_path import FastPath, endpoints_of
from service.http.routes import models


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = FastAPI()

    @app.post("/short")
    async def short(request: Request) -> Response:
        if request.query_params.get("wrong"):
            raise BadRequest("that is wrong")
        seen = "effective_route_context" in request.scope or "route" in request.scope
        return PlainTextResponse(f"{len(await request.body())} bytes, by the framework: {seen}")

    @app.post("/long/{name}")
    async def long(request: Request, name: str) -> Response:
        return PlainTextResponse(name)

    def respond_with_error(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{request.url.path}: {error}", 422)

    app.add_exception_handler(ViolaError, respond_with_error)
    app.add_middleware(
        FastPath, endpoints=endpoints_of(app.routes, "/short"), respond_with_error=respond_with_error
    )
    with TestClient(app) as client:
        yield client


def test_a_route_of_the_shortcut_is_answered_without_the_framework(client: httpx.Client) -> None:
    assert client.post("/short", content=b"12345").text == "5 bytes, by the framework: False"


def test_an_error_of_its_endpoint_becomes_an_answer(client: httpx.Client) -> None:
    response = client.post("/short?wrong=1")
    assert (response.status_code, response.text) == (422, "/short: that is wrong")


def test_everything_else_goes_through_the_framework(client: httpx.Client) -> None:
    assert client.post("/long/a").text == "a"
    assert client.get("/short").status_code == 405
    assert client.post("/short/").url.path == "/short"  # redirected there
    assert client.get("/nowhere").status_code == 404
    assert set(client.get("/openapi.json").json()["paths"]) == {"/short", "/long/{name}"}


def test_below_a_prefix_the_paths_have_it() -> None:
    endpoints = endpoints_of(models.router.routes, "/models", root_path="/viola")
    assert list(endpoints) == ["/viola/models"]


def test_a_path_without_a_route_is_a_mistake_seen_at_start() -> None:
    with pytest.raises(KeyError):
        endpoints_of(FastAPI().routes, "/short")
