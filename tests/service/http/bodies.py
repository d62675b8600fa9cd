"""Requests whose bodies come in chunks, for the tests of what reads them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from service.http.request_body import UploadBudget
from service.http.upload import Upload, read_clip


class Sender:
    """A request whose body comes in the given chunks; `sent` counts those that were taken."""

    def __init__(self, chunks: Sequence[bytes], *, leaves: bool = False, **headers: str) -> None:
        self.sent = 0
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": leaves or index + 1 < len(chunks)}
            for index, chunk in enumerate(chunks)
        ] + [{"type": "http.disconnect"}]
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": raw, "query_string": b""}
        self.request = Request(scope | {"server": ("test", 80)}, self._receive)

    async def _receive(self) -> dict[str, Any]:
        self.sent += 1
        return self._messages[self.sent - 1]


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """A multipart body with the boundary `cut`; each part is (field, file name, content)."""
    body = b""
    for field, name, content in parts:
        file_name = f'; filename="{name}"' if name is not None else ""
        head = (
            f'--cut\r\nContent-Disposition: form-data; name="{field}"{file_name}\r\nContent-Type: audio/wav'
        )
        body += head.encode() + b"\r\n\r\n" + content + b"\r\n"
    return body + b"--cut--\r\n"


def sender_of_form(body: bytes, step: int = 10_000) -> Sender:
    chunks = [body[start : start + step] for start in range(0, len(body), step)]
    return Sender(chunks, content_type="multipart/form-data; boundary=cut")


def budget(
    max_body_bytes: int = 1_000_000, *, timeout_s: float = 5, max_held_bytes: int = 10**9
) -> UploadBudget:
    return UploadBudget(max_body_bytes, timeout_s, max_held_bytes)


def read(sender: Sender, max_body_bytes: int = 1_000_000) -> Upload:
    return asyncio.run(read_clip(sender.request, budget(max_body_bytes)))
