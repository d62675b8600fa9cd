"""The application as its settings compose it."""

import contextlib
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from service.http.app import VERSION
from tests.service.http.live import (
    RAW,
    check_error,
    embed,
    held_worker,
    noise,
    serving,
    wav,
)
from tests.service.servers import until


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION


def test_keys_are_asked_for_where_the_settings_name_some(models_dir: Path) -> None:
    with serving(models_dir, api_keys=("first", "second")) as (client, _):
        content = wav(noise(0.1))
        refused = client.post("/embed", content=content, headers=RAW)
        check_error(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic first"},
            {"X-API-Key": ""},
        ):
            check_error(client.post("/embed", content=content, headers=RAW | headers), 401, "unauthorized")
        for headers in ({"Authorization": "Bearer first"}, {"X-API-Key": "second"}):
            assert client.post("/embed", content=content, headers=RAW | headers).status_code == 200
        check_error(client.get("/models"), 401, "unauthorized")
        check_error(client.get("/nowhere"), 401, "unauthorized")
        for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        assert client.get("/openapi.json").json()["security"]


def test_the_page_asks_for_no_key_and_comes_with_its_policy(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("page.js", "page.css", "api.js", "sounds/dog.mp3"):
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/page/../app.py").status_code == 404


def test_other_origins_are_let_in_where_the_settings_say_so(models_dir: Path) -> None:
    with serving(models_dir, cors_origins=("https://a.example",), api_keys=("k",)) as (client, _):
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        assert client.options("/embed", headers=preflight).status_code == 200
        refused = client.post("/embed", headers=RAW | {"Origin": "https://a.example"})
        assert refused.headers["access-control-allow-origin"] == "https://a.example"  # errors included


def test_an_answer_says_how_long_its_connection_is_kept(models_dir: Path) -> None:
    with serving(models_dir, keep_alive_s=99) as (client, _):
        assert client.get("/models").headers["keep-alive"] == "timeout=99"


def test_head_is_answered_like_get_without_its_body(client: httpx.Client) -> None:
    for path in ("/models", "/models/toy", "/health/live", "/health/ready", "/metrics", "/docs"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")
    assert client.head("/embed").status_code == 405
    assert client.get("/health/live").json() == {"status": "alive"}  # on the same connection


def test_a_body_or_a_clip_over_the_limit_is_refused(models_dir: Path) -> None:
    with serving(models_dir, max_body_bytes=40_000, max_audio_s=0.5) as (client, _):
        fits = wav(noise(0.5))
        assert embed(client, fits)["duration_s"] == 0.5
        long = check_error(client.post("/embed", content=wav(noise(0.6)), headers=RAW), 413, "audio_too_long")
        assert "0.5 s" in long
        too_many = wav(noise(1.0))
        check_error(client.post("/embed", content=too_many, headers=RAW), 413, "body_too_large")
        check_error(client.post("/embed", files={"file": too_many}), 413, "body_too_large")
        in_chunks = (too_many[i : i + 1000] for i in range(0, len(too_many), 1000))  # no Content-Length
        check_error(client.post("/embed", content=in_chunks, headers=RAW), 413, "body_too_large")
        assert embed(client, fits)["duration_s"] == 0.5


def test_what_was_accepted_is_answered_when_the_server_stops(models_dir: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving(models_dir) as (client, state):
            holding = contextlib.ExitStack()
            holding.enter_context(held_worker(state))
            url = client.base_url.join("/embed")
            accepted = pool.submit(httpx.post, url, content=wav(noise(0.2)), headers=RAW)
            until(lambda: state.embedder.batcher.admitted_cost > 0)
            threading.Timer(0.2, holding.close).start()
        assert state.is_draining  # the server has stopped
        assert accepted.result().status_code == 200
