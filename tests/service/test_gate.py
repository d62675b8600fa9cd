"""Keys, errors and counts around any ASGI application."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Overloaded, ViolaError
from service.gate import Gate, describe, error_answer
from service.metrics import Metrics
from service.upload import ClientLeft


def get(app: ASGIApp, path: str = "/embed", *, headers: Any = None) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def gate_around(
    act: Callable[[], Any] = lambda: None, *, api_keys: tuple[str, ...] = ()
) -> tuple[Gate, Metrics]:
    """A gate before an app that calls `act` and answers `ok`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        act()
        await Response("ok")(scope, receive, send)

    metrics = Metrics()
    return Gate(app, metrics=metrics, api_keys=api_keys, routes={"/embed"}), metrics


def all_errors(root: type[ViolaError] = ViolaError) -> list[type[ViolaError]]:
    return [each for kind in root.__subclasses__() for each in (kind, *all_errors(kind))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_its_code_its_status_and_its_sentence(kind: type[ViolaError]) -> None:
    metrics = Metrics()
    answer = error_answer(kind("what was wrong"), metrics)
    assert answer.status_code == kind.status
    assert orjson.loads(answer.body) == {"error": kind.code, "detail": "what was wrong"}
    assert f'viola_errors_total{{error="{kind.code}"}} 1.0' in metrics.page().decode()


def test_overloaded_says_when_to_come_back() -> None:
    answer = error_answer(Overloaded("full", retry_after_s=7), Metrics())
    assert answer.headers["retry-after"] == "7"


def test_an_error_of_ours_tells_nothing_about_itself(caplog: pytest.LogCaptureFixture) -> None:
    assert describe(ZeroDivisionError("secret"))[:2] == (500, "internal_error")
    gate, metrics = gate_around(lambda: 1 / 0)
    answer = get(gate)
    assert answer.json()["error"] == "internal_error"
    assert "division" not in answer.text
    assert "ZeroDivisionError" in caplog.text
    assert 'code="500"' in metrics.page().decode()


def test_a_client_that_left_is_counted_and_not_answered() -> None:
    def leave() -> None:
        raise ClientLeft

    gate, metrics = gate_around(leave)
    with pytest.raises(AssertionError):  # httpx: the app sent nothing
        get(gate)
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
    ],
)
def test_one_of_the_keys_must_be_shown(headers: dict[str, str], status: int) -> None:
    gate, _ = gate_around(api_keys=("key1", "key2"))
    assert get(gate, headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/health/live", "/metrics", "/docs"])
def test_health_metrics_and_documents_need_no_key(path: str) -> None:
    gate, _ = gate_around(api_keys=("key",))
    assert get(gate, path).status_code == 200
    assert get(gate, path + "/../embed").status_code == 401
    assert get(gate, path.upper()).status_code == 401


def test_labels_are_few_whatever_is_asked_for() -> None:
    gate, metrics = gate_around()
    for path in ("/embed", "/models/a", "/models/b", "/x", "/y/z"):
        get(gate, path)
    page = metrics.page().decode()
    for route, count in (("/embed", 1), ("/models/{name}", 2), ("other", 2)):
        assert f'viola_requests_total{{code="200",model="",route="{route}"}} {count}.0' in page


def test_a_key_may_hold_any_character() -> None:
    key = "clé à"  # ends with the byte A0, which is a space in Latin-1
    gate, _ = gate_around(api_keys=(key,))
    for name, value in ((b"X-API-Key", key), (b"Authorization", f"Bearer {key}")):
        assert get(gate, headers={name: value.encode()}).status_code == 200
        assert get(gate, headers={name: value.encode()[:-1]}).status_code == 401
