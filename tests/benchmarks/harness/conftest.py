"""A server that answers every upload, in this process."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest

CLIP = b"not really sound"


class Echo(BaseHTTPRequestHandler):
    """Answers with the length of the body, in an answer that does not fit into one packet."""

    protocol_version = "HTTP/1.1"
    status: ClassVar[int] = 200
    seen: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(body)
        self.send_response(self.status)
        self.send_header("Content-Length", "300000")
        self.end_headers()
        self.wfile.write(b"x" * 300_000)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def listening(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def echo() -> type[Echo]:
    Echo.status = 200
    Echo.seen.clear()
    return Echo
