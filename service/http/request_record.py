"""A request in; what the middleware and the routes write down for its log line and its trace out."""

import itertools
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Scope

from service.errors import shortened

MAX_PEER = 64  # characters of an address; behind a proxy it is a header's text
MAX_PATH = 200  # characters, in a log line
RECORD = "viola.record"  # in the scope of every request

# In the order in which a request goes through them; the attributes of `RequestRecord.timings`, in seconds.
STAGES = ("read", "decode", "logmel", "queue", "inference", "encode")

_STAGE_FIELDS = tuple((stage, f"{stage}_ms") for stage in STAGES)

# An id of a client that is used as it is: nothing in it can break out of a log line or a header.
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}").fullmatch


class StageTimes(Protocol):
    """Seconds per stage."""

    read: float
    decode: float
    logmel: float
    queue: float
    inference: float
    encode: float


class RequestRecord:
    """Filled in by the middleware, the routes and `error_response`, each with what it knows."""

    __slots__ = (
        "audio_s",
        "bytes_in",
        "detail",
        "error",
        "method",
        "model",
        "path",
        "peer",
        "request_id",
        "route",
        "started",
        "status",
        "timings",
        "trace_id",
    )

    def __init__(self, scope: Scope, *, path: str, request_id: bytes, status: int) -> None:
        self.started = time.perf_counter()
        self.method: str = scope["method"]
        self.path = path
        self.request_id = request_id
        self.status = status
        self.peer: str = client[0][:MAX_PEER] if (client := scope.get("client")) else ""
        self.route = self.model = self.error = self.detail = self.trace_id = ""
        self.audio_s = 0.0
        self.bytes_in = 0
        self.timings: StageTimes | None = None

    def fields(self, seconds: float) -> dict[str, Any]:
        """What a log line tells. No header is in it, so that no key is; no query, and no name of a file."""
        fields: dict[str, Any] = {
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "duration_ms": round(1000 * seconds, 3),
            "request_id": self.request_id.decode(),
            "client": self.peer,
            "bytes_in": self.bytes_in,
        }
        if self.route == "other":
            fields["path"] = shortened(self.path, MAX_PATH)
        if self.model:
            fields["model"] = self.model
        if self.timings is not None or self.audio_s:
            fields["audio_s"] = round(self.audio_s, 3)
        if self.timings is not None:
            for stage, name in _STAGE_FIELDS:
                fields[name] = round(1000 * getattr(self.timings, stage), 3)
        if self.error:
            fields["error"] = self.error
            fields["detail"] = self.detail
        if self.trace_id:
            fields["trace_id"] = self.trace_id
        return fields


def id_source() -> Callable[[bytes], bytes]:
    """A function: a client's X-Request-ID in (b"" where it sent none), the id to use out. That is the
    client's where it is sane, else a new one, which no other process gives."""
    prefix, numbers = secrets.token_hex(6), itertools.count(1)

    def request_id(sent: bytes) -> bytes:
        if sent and _SANE_ID(sent):
            return sent
        return f"{prefix}-{next(numbers):x}".encode()

    return request_id
