"""Bytes in, a server's answer out: one connection whose every byte is in the caller's hand.

For clients that behave badly on purpose, which no client library lets one be, and for those beside them whose
answers are looked at.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.harness.clients import END_OF_HEAD, HOST

CONNECT_S = 20.0
ANSWER_S = 120.0
MAX_HEAD = 1 << 20  # bytes
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a reset


class Gone(Exception):  # noqa: N818 - an outcome, as often as not the one that was asked for
    """The server closed the connection before the answer was complete."""


@dataclass(frozen=True)
class Answer:
    """headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """None where the body is no JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @property
    def error(self) -> str:
        """The code of a refusal, empty where it is not one of ours."""
        content = self.json if self.status != 200 else None
        return str(content.get("error", "")) if isinstance(content, dict) else ""


class Connection:
    """One HTTP/1.1 connection to a server on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, *, receive_buffer: int | None = None) -> "Connection":
        """receive_buffer: bytes that the kernel takes in for a client that does not read.

        Raises OSError when nobody listens.
        """
        sock = socket.socket()
        sock.setblocking(False)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(sock, (HOST, port)), CONNECT_S)
            limit = receive_buffer or MAX_HEAD
            return cls(*await asyncio.open_connection(sock=sock, limit=limit))
        except BaseException:
            sock.close()
            raise

    async def send(self, data: bytes) -> None:
        """Raises Gone where the server has closed the connection; its answer may lie there nevertheless."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Gone from error

    async def answer(self, *, timeout_s: float = ANSWER_S, interim: bool = False) -> Answer:
        """The next answer; those of 100 and a bit only if asked for. Raises Gone, or TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                answer = await self._answer()
                if interim or answer.status >= 200:
                    return answer

    async def status(self, *, timeout_s: float = ANSWER_S) -> int:
        """Of an answer whose body is not awaited. Raises Gone, or TimeoutError."""
        async with asyncio.timeout(timeout_s):
            try:
                head = await self._reader.readuntil(END_OF_HEAD)
            except (asyncio.IncompleteReadError, OSError) as error:
                raise Gone from error
        return int(head.split(b" ", 2)[1])

    async def ended(self, *, timeout_s: float) -> bool:
        """Whether the server closes the connection in time; what it sends until then is thrown away."""
        try:
            async with asyncio.timeout(timeout_s):
                while await self._reader.read(1 << 16):
                    pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def end_of_sending(self) -> None:
        """No more will come; the answer can still be read."""
        self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def abort(self) -> None:
        """Close with a reset, as a process that is killed does with unread bytes."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        await self.close()

    async def _answer(self) -> Answer:
        try:
            head = await self._reader.readuntil(END_OF_HEAD)
            first, *lines = head.decode("latin-1").rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self._body(headers)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Gone from error
        return Answer(int(first.split(" ")[1]), headers, body)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", "0")))
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readuntil(b"\r\n")
        return body


async def ask(port: int, request: bytes, *, timeout_s: float = ANSWER_S) -> Answer:
    """One request on a connection of its own. Raises Gone, OSError or TimeoutError."""
    connection = await Connection.open(port)
    try:
        with suppress(Gone):  # it may be refused before all of it is sent
            await connection.send(request)
        return await connection.answer(timeout_s=timeout_s)
    finally:
        await connection.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A whole request; `content_type="audio/wav"` becomes a header. Content-Length is that of the body unless
    it is given."""
    return head(path, **{"content_length": str(len(body))} | headers) + body


def head(path: str, *, method: str = "POST", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-').title()}: {value}\r\n" for name, value in headers.items()]
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{''.join(lines)}\r\n".encode()
