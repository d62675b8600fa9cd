"""viola under a prefix behind a real nginx, as docs/operations.md sets it up, and in a real browser.

Skipped where there is no nginx (`apt-get install nginx-light`) or, for the pages, no Chromium.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.service.http.live import RAW, noise, wav
from tests.service.servers import ServerProcess, free_port, until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CHROMIUM = os.environ.get("VIOLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PREFIX = "/viola"
SOUND = wav(noise(60))  # 3.8 MB

pytestmark = pytest.mark.skipif(not NGINX, reason="there is no nginx")

CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream viola {{ server 127.0.0.1:{viola}; keepalive 32; keepalive_timeout 75s; }}
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    server {{
        listen 127.0.0.1:{cut};
        client_max_body_size 200m;
        location /viola/ {{ proxy_pass http://viola/; }}
    }}
    server {{
        listen 127.0.0.1:{left};
        client_max_body_size 200m;
        proxy_request_buffering off;
        location /viola {{ proxy_pass http://viola; }}
        location /viola/stream {{
            proxy_pass http://viola;
            proxy_buffering off;
            proxy_read_timeout 75s;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
    server {{
        listen 127.0.0.1:{small};
        location /viola/ {{ proxy_pass http://viola/; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def ports(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Of nginx: `cut` cuts the prefix off and takes in uploads before it passes them on, `left` leaves the
    prefix and passes uploads on as they come, `small` has nginx' own limit for bodies."""
    folder = tmp_path_factory.mktemp("nginx")
    ports = {name: free_port() for name in ("cut", "left", "small")}
    with ServerProcess(models_dir, folder, VIOLA_ROOT_PATH=PREFIX) as viola:
        user = "user root;" if os.geteuid() == 0 else ""  # the folder is this user's alone
        text = CONFIGURATION.format(user=user, folder=folder, viola=viola.port, **ports)
        (folder / "nginx.conf").write_text(text)
        assert NGINX
        command = [
            NGINX,
            "-p",
            str(folder),
            "-c",
            str(folder / "nginx.conf"),
            "-e",
            str(folder / "error.log"),
        ]
        nginx = subprocess.Popen(command)
        try:
            viola.wait_until_ready()
            until(lambda: is_up(ports["cut"]), 30)
            yield ports
        finally:
            nginx.terminate()
            nginx.wait(30)


def is_up(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}{PREFIX}/health/ready").status_code == 200
    return False


@pytest.fixture(params=["cut", "left"])
def url(request: pytest.FixtureRequest, ports: dict[str, int]) -> str:
    return f"http://127.0.0.1:{ports[request.param]}{PREFIX}"


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/page/page.js", "/page/page.css", "/page/swagger/swagger-ui.css"]
)
def test_the_pages_and_their_files_are_there(path: str, url: str) -> None:
    assert httpx.get(url + path).status_code == 200


def test_a_redirect_stays_behind_the_proxy(url: str) -> None:
    answer = httpx.get(f"{url}/models/", follow_redirects=True)
    assert (answer.status_code, str(answer.url)) == (200, f"{url}/models")


def test_an_upload_passes_whether_nginx_takes_it_in_first_or_not(url: str) -> None:
    for _ in range(3):  # the later ones over a connection that was kept
        answer = httpx.post(f"{url}/embed", content=SOUND, headers=RAW, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["duration_s"] == 60


def test_the_413_of_nginx_is_not_ours(ports: dict[str, int]) -> None:
    answer = httpx.post(f"http://127.0.0.1:{ports['small']}{PREFIX}/embed", content=SOUND, headers=RAW)
    assert answer.status_code == 413
    assert "nginx" in answer.text


def test_a_stream_is_heard_while_it_comes_by_either_door(ports: dict[str, int]) -> None:
    """Nothing is gathered on the way, as docs/live.md sets it up."""
    path = f"{PREFIX}/stream?rate=16000&window_s=1&hop_s=1"
    second = bytes(2 * 17_600)  # and what a window needs behind it
    with connect(f"ws://127.0.0.1:{ports['left']}{path}") as line:
        for number in range(3):
            line.send(second)
            while (message := json.loads(line.recv(timeout=20)))["type"] != "tags":
                pass
            assert message["start_s"] == number
        line.send('{"type": "end"}')
        while json.loads(line.recv(timeout=20))["type"] != "end":
            pass
    assert line.close_code == 1000

    with socket.create_connection(("127.0.0.1", ports["left"]), timeout=20) as sock:
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        lines = sock.makefile("rb")
        for number in range(3):
            sock.sendall(b"%x\r\n%b\r\n" % (len(second), second))
            while b'"tags"' not in (line_ := lines.readline()):
                assert line_
            assert json.loads(line_)["start_s"] == number
        sock.sendall(b"0\r\n\r\n")
        while b'"end"' not in (line_ := lines.readline()):
            assert line_


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_the_page_and_the_docs_live_in_a_browser(url: str) -> None:
    playwright_api = pytest.importorskip("playwright.sync_api")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((url, "blob:", "data:")) else wrong.append(asked.url),
        )
        page.goto(f"{url}/")
        playwright_api.expect(page.locator("#model")).to_have_value("toy", timeout=60_000)
        page.goto(f"{url}/docs")
        playwright_api.expect(page.locator(".opblock").first).to_be_visible(timeout=60_000)
        browser.close()
        assert wrong == []
