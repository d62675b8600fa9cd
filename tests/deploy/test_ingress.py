"""The Ingress' annotations as ingress-nginx writes them into its configuration, in an nginx before a viola.

Skipped where there is no nginx (`apt-get install nginx`).
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from benchmarks.harness.servers import free_port, running, viola
from service.settings import Settings

ROOT = Path(__file__).parents[2]
INGRESS = ROOT / "deploy" / "kubernetes" / "components" / "ingress" / "ingress.yaml"
SOUND = (ROOT / "tests" / "fixtures" / "robin_44k1_stereo.mp3").read_bytes()
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
ANNOTATION = "nginx.ingress.kubernetes.io/"

# The annotation, and what the controller writes into the location.
DIRECTIVES = {
    "proxy-body-size": "client_max_body_size {}",
    "proxy-read-timeout": "proxy_read_timeout {}s",
    "proxy-send-timeout": "proxy_send_timeout {}s",
    "proxy-request-buffering": "proxy_request_buffering {}",
}
CONFIGURATION = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1; proxy_buffering off;
            {directives}
        }}
    }}
}}
"""


def annotations() -> dict[str, str]:
    found = yaml.safe_load(INGRESS.read_text())["metadata"]["annotations"]
    return {name.removeprefix(ANNOTATION): value for name, value in found.items()}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of an nginx with these directives, and a viola behind it."""
    if NGINX is None:
        pytest.skip("there is no nginx (`apt-get install nginx`)")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    directives = "".join(f"{DIRECTIVES[name].format(value)}; " for name, value in annotations().items())
    with running(viola(ROOT / "models" / "byola", "int8")) as server:
        text = CONFIGURATION.format(folder=folder, port=port, upstream=server.port, directives=directives)
        (folder / "nginx.conf").write_text(text)
        with subprocess.Popen(
            [NGINX, "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL
        ) as process:
            try:
                wait_until_open(port, process)
                yield port
            finally:
                process.terminate()


def wait_until_open(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        assert process.poll() is None, "nginx has ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nginx does not listen")


def test_a_sound_passes(port: int) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}/classify?top_k=1", files={"file": SOUND}, timeout=60)
    birds = {"Bird", "Bird vocalization, bird call, bird song", "Chirp, tweet"}
    assert answer.json()["tags"][0]["label"] in birds


def test_more_bytes_than_nginx_takes_by_itself_pass(port: int) -> None:
    two_megabytes = SOUND + bytes(2_000_000)  # its own default is one
    answer = httpx.post(f"http://127.0.0.1:{port}/embed", content=two_megabytes, timeout=60)
    assert answer.headers["content-type"] == "application/json"


def test_what_is_too_large_is_refused_by_viola_before_it_is_sent(port: int) -> None:
    n_bytes = Settings().max_body_bytes + 1
    head = f"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: {n_bytes}\r\nContent-Type: audio/mpeg\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        while b"body_too_large" not in answer:
            more = connection.recv(65536)
            assert more, answer
            answer += more


def test_nginx_waits_longer_than_viola_may_take() -> None:
    told, settings = annotations(), Settings()
    assert int(told["proxy-read-timeout"]) > settings.deadline_s + 5
    assert int(told["proxy-send-timeout"]) > settings.upload_timeout_s
    assert int(told["proxy-body-size"].removesuffix("m")) * 1024**2 > settings.max_body_bytes
