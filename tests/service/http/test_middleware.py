"""Keys, errors and counts around any ASGI application."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.api_keys import Access, ApiKeys
from service.http.app import create_app
from service.http.error_response import describe
from service.http.middleware import RequestMiddleware
from service.http.request_body import BUDGET, UploadBudget
from service.http.request_record import RECORD
from service.http.responses import json_response
from service.inference.embedder import Timings
from service.process.metrics import Metrics
from service.settings import Settings


def get(app: ASGIApp, path: str = "/embed", *, headers: Any = None) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def post(app: ASGIApp, body: bytes, *, headers: Any = None) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/embed", content=body, headers=headers)

    return asyncio.run(ask())


def middleware_around(
    act: Callable[[], Any] = lambda: None, *, api_keys: tuple[str, ...] = (), **options: Any
) -> tuple[RequestMiddleware, Metrics]:
    """A middleware before an app that calls `act` and answers `ok`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        act()
        await Response("ok")(scope, receive, send)

    metrics = Metrics()
    return RequestMiddleware(
        app, metrics=metrics, access=Access(ApiKeys(api_keys), ApiKeys()), routes={"/embed"}, **options
    ), metrics


def fields_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the log lines of requests tell."""
    return [record.fields for record in caplog.records if record.name == "viola.request"]  # type: ignore[attr-defined]


def test_an_error_of_ours_tells_nothing_about_itself(caplog: pytest.LogCaptureFixture) -> None:
    assert describe(ZeroDivisionError("secret"))[:2] == (500, "internal_error")
    middleware, metrics = middleware_around(lambda: 1 / 0)
    answer = get(middleware)
    assert answer.json()["error"] == "internal_error"
    assert "division" not in answer.text
    assert "ZeroDivisionError" in caplog.text
    assert 'code="500"' in metrics.page().decode()


def test_a_client_that_left_is_counted_and_not_answered() -> None:
    def leave() -> None:
        raise ClientDisconnect

    middleware, metrics = middleware_around(leave)
    with pytest.raises(AssertionError):  # httpx: the app sent nothing
        get(middleware)
    assert 'viola_requests_total{code="499",model="",route="/embed"} 1.0' in metrics.page().decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": "wrong"}, 401),
        ({"X-API-Key": "key1"}, 200),
        ({"Authorization": "Bearer key2"}, 200),
        ({"Authorization": "bearer  key2"}, 200),
        ({"Authorization": "Bearer key"}, 401),
        ({"Authorization": "Basic key1"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"X-API-Key": "key1 \t"}, 200),
        ({"X-API-Key": "key1", "Authorization": "Bearer wrong"}, 200),
        ({"X-API-Key": "wrong", "Authorization": "Bearer key2"}, 200),
        ({"X-API-Key": "wrong", "Authorization": "Bearer wrong"}, 401),
        ([("X-API-Key", "wrong"), ("X-API-Key", "key2")], 200),
    ],
)
def test_one_of_the_keys_must_be_shown_and_wrong_ones_beside_it_do_no_harm(headers: Any, status: int) -> None:
    middleware, _ = middleware_around(api_keys=("key1", "key2"))
    assert get(middleware, headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/docs"])
def test_health_metrics_and_documents_need_no_key(path: str) -> None:
    middleware, _ = middleware_around(api_keys=("key",))
    assert get(middleware, path).status_code == 200
    assert get(middleware, path + "/../embed").status_code == 401
    assert get(middleware, path.upper()).status_code == 401


def test_labels_are_few_whatever_is_asked_for() -> None:
    middleware, metrics = middleware_around()
    deeper = [f"/v2/models/{name}/{what}" for name in "ab" for what in ("infer", "ready", "else")]
    deeper += [f"/models/{name}/pipeline/{task}" for name in "ab" for task in ("audio-classification", "z")]
    for path in ("/embed", "/models/a", "/models/b", "/v1/models/a", "/x", "/y/z", *deeper):
        get(middleware, path)
    page = metrics.page().decode()
    counts = {"/embed": 1, "/models/{name}": 4, "/v1/models/{name}": 1, "/v2/models/{name}": 2, "other": 2}
    counts |= {"/v2/models/{name}/infer": 2, "/v2/models/{name}/ready": 2}
    counts |= {"/models/{name}/pipeline/audio-classification": 2}
    for route, count in counts.items():
        assert f'viola_requests_total{{code="200",model="",route="{route}"}} {count}.0' in page


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [({"model": "none"}, {}, 404), ({}, {"X-Deadline-S": "soon"}, 422), ({"head": "none"}, {}, 404)],
)
def test_a_json_body_that_is_refused_gives_its_room_back_at_once(
    models_dir: Path, content: dict[str, str], headers: dict[str, str], status: int
) -> None:
    app = create_app(Settings(models_dir=models_dir, model="toy", device="cpu", threads=1))
    kept = []  # as uvicorn keeps them: in cycles of references

    async def keeping(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(scope)
        await app(scope, receive, send)

    path = "/classify" if "head" in content else "/embed"

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(keeping), base_url="http://test"
        ) as client:
            return await client.post(path, json={"audio": "AAAA" * 1000} | content, headers=headers)

    assert asyncio.run(ask()).status_code == status
    assert app.state.server.budget.held_bytes == app.state.server.budget.bytes_in_memory == 0


def test_an_answer_that_finds_no_room_is_refused_and_not_called_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[BUDGET] = UploadBudget(10, timeout_s=1, max_held_bytes=10)
        await json_response("x" * 2_000_000)(scope, receive, send)

    answer = get(RequestMiddleware(app, metrics=Metrics(), access=Access(ApiKeys(), ApiKeys()), routes=()))
    assert (answer.status_code, answer.json()["error"]) == (503, "overloaded")
    assert caplog.text == ""


def test_a_key_may_hold_any_character() -> None:
    key = "clé à"  # ends with the byte A0, which is a space in Latin-1
    middleware, _ = middleware_around(api_keys=(key,))
    for name, value in ((b"X-API-Key", key), (b"Authorization", f"Bearer {key}")):
        assert get(middleware, headers={name: value.encode()}).status_code == 200
        assert get(middleware, headers={name: value.encode()[:-1]}).status_code == 401


def test_a_sane_request_id_is_kept_and_any_other_replaced() -> None:
    middleware, _ = middleware_around()
    assert get(middleware, headers={"X-Request-ID": "a1-B2.c:3/4"}).headers["x-request-id"] == "a1-B2.c:3/4"
    insane = ["", " ", "a b", "x" * 129, "a\tb", "é", '"', "<script>", "a;b"]
    given = {
        get(middleware, headers={b"X-Request-ID": sent.encode()}).headers["x-request-id"] for sent in insane
    }
    assert len(given) == len(insane)  # each its own
    assert all(each.replace("-", "").isalnum() for each in given)


def test_an_error_carries_the_request_id_too() -> None:
    for options in ({"api_keys": ("key",)}, {"act": lambda: 1 / 0}):
        middleware, _ = middleware_around(**options)
        assert get(middleware, headers={"X-Request-ID": "mine"}).headers["x-request-id"] == "mine"


def test_each_request_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[RECORD].model = "toy"
        scope[RECORD].timings = Timings(read=0.001, decode=0.002)
        scope[RECORD].audio_s = 1.5
        while (await receive()).get("more_body"):
            pass
        await Response("ok")(scope, receive, send)

    middleware = RequestMiddleware(
        app,
        metrics=(metrics := Metrics()),
        access=Access(ApiKeys(), ApiKeys()),
        routes={"/embed"},
        access_log=True,
    )
    post(middleware, b"x" * 1000, headers={"X-Request-ID": "mine", "Authorization": "Bearer secret"})
    (fields,) = fields_of(caplog)
    assert fields.pop("duration_ms") > 0
    assert fields == {
        "method": "POST",
        "route": "/embed",
        "status": 200,
        "request_id": "mine",
        "client": "127.0.0.1",
        "bytes_in": 1000,
        "model": "toy",
        "audio_s": 1.5,
        "read_ms": 1.0,
        "decode_ms": 2.0,
        "logmel_ms": 0.0,
        "queue_ms": 0.0,
        "inference_ms": 0.0,
        "encode_ms": 0.0,
    }
    assert "viola_received_bytes_total 1000.0" in metrics.page().decode()


def test_a_refused_request_tells_why_and_never_its_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    middleware, _ = middleware_around(api_keys=("secret",), access_log=True)
    get(middleware, "/embed?key=wrong", headers={"X-API-Key": "wrong"})
    (fields,) = fields_of(caplog)
    assert (fields["status"], fields["error"]) == (401, "unauthorized")
    assert "show a key" in fields["detail"]
    assert "wrong" not in str(fields)
    assert "secret" not in caplog.text


def test_a_client_that_left_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def leave() -> None:
        raise ClientDisconnect

    middleware, _ = middleware_around(leave, access_log=True)
    with pytest.raises(AssertionError):  # httpx: the app sent nothing
        get(middleware)
    (fields,) = fields_of(caplog)
    assert (fields["status"], fields["error"]) == (499, "client_left")


def test_probes_are_not_logged_and_unknown_paths_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    middleware, _ = middleware_around(access_log=True)
    for path in ("/health/live", "/metrics", "/wp-admin%0a2026-01-01 INFO forged"):
        get(middleware, path)
    (fields,) = fields_of(caplog)
    assert (fields["route"], fields["path"]) == ("other", "/wp-admin\n2026-01-01 INFO forged")


def test_without_access_log_there_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    middleware, _ = middleware_around()
    get(middleware)
    assert fields_of(caplog) == []


def test_while_the_server_drains_each_answer_ends_its_connection() -> None:
    is_draining = False
    middleware, _ = middleware_around(is_draining=lambda: is_draining)
    assert "connection" not in get(middleware).headers
    is_draining = True
    assert get(middleware).headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/viola/embed", "/embed"])
def test_behind_a_prefix_routes_and_keys_are_the_same(path: str) -> None:
    """A proxy may cut the prefix off or leave it."""
    middleware, metrics = middleware_around(api_keys=("key",), root_path="/viola")
    assert get(middleware, path).status_code == 401
    assert get(middleware, path, headers={"X-API-Key": "key"}).status_code == 200
    assert get(middleware, path.replace("embed", "health/live")).status_code == 200
    assert get(middleware, "/violas/health/live").status_code == 401
    assert 'viola_requests_total{code="200",model="",route="/embed"} 1.0' in metrics.page().decode()


def test_requests_in_flight_are_counted_while_they_are() -> None:
    pages = []
    middleware, metrics = middleware_around(lambda: pages.append(metrics.page().decode()))
    get(middleware)
    assert "viola_requests_in_flight 1.0" in pages[0]
    assert "viola_requests_in_flight 0.0" in metrics.page().decode()
