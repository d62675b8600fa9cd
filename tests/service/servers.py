"""An application in, a server that answers requests out: in a thread, or as a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from service.http.protocol import Protocol
from service.http.websocket import OPTIONS

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def in_thread(app: Any, **options: Any) -> Iterator[uvicorn.Server]:
    """uvicorn with the application, on a free port; it has shut down at the end. options: of its Config."""
    usual = OPTIONS | {"port": 0, "log_config": None, "http": Protocol, "timeout_graceful_shutdown": 5}
    server = uvicorn.Server(uvicorn.Config(app, **(usual | options)))
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def url_of(server: uvicorn.Server) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def run(*arguments: str, stderr: Any = subprocess.PIPE, **settings: str) -> "subprocess.Popen[str]":
    """`python -m service` with these settings alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIOLA_")}
    return subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


class ServerProcess:
    """A server with the model `toy` in a process of its own. Its log is a file, because a pipe that nobody
    reads fills up."""

    def __init__(
        self, models_dir: Path, folder: Path, *arguments: str, port: int | None = None, **settings: str
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log_path = folder / f"{self.port}.log"
        with self._log_path.open("w") as log:
            self.process = run(
                *arguments,
                stderr=log,
                VIOLA_HOST="127.0.0.1",
                VIOLA_PORT=str(self.port),
                VIOLA_MODELS_DIR=str(models_dir),
                VIOLA_MODEL="toy",
                VIOLA_DEVICE="cpu",
                TMPDIR=str(folder),
                **settings,
            )

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_until_ready(self) -> None:
        for _ in range(1200):
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("not ready within a minute")

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        page = httpx.get(f"{self.url}/metrics", timeout=30).text
        lines = [line for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def ends_with(self, code: int) -> bool:
        assert self.process.wait(60) == code, self.log()
        return True

    def log(self) -> str:
        """What it has written to stderr so far."""
        return self._log_path.read_text()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """The address of what says `answer` to whoever connects; None for nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                if answer is None:
                    connection.recv(65536)  # until the other side gives up
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def until(claim: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.01)
