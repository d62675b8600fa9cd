"""Files in, embeddings from a running server out: for `python -m service embed --url`."""

import base64
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from service.bulk_table import CannotRun
from service.errors import AudioMissing
from service.offline import Embed, FileResult, Place, fetched

REQUESTS_AT_ONCE = 8
ANSWERS_AHEAD = 4 * REQUESTS_AT_ONCE  # of the one whose turn it is, so that a slow one holds up few
TRIES = 8  # of a request that an overloaded server turns away
CARD_TIMEOUT_S = 30.0  # without a byte from the server
CLIP_TIMEOUT_S = 300.0  # the same: five times the server's own deadline, unless that was raised
BROKEN_OFF = (  # the connection is lost after it was there
    BrokenPipeError,
    ConnectionAbortedError,
    ConnectionResetError,
    TimeoutError,
    http.client.HTTPException,
)


class BrokenOff(CannotRun):
    """The server was there, but its answer did not come, or not as a whole."""


def server_at(url: str, *, model: str, api_key: str | None) -> tuple[str, Embed]:
    """The id of a running server's model, and what embeds with it. Raises CannotRun."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    name = urllib.parse.quote(model, safe="")
    try:
        asked = urllib.request.Request(f"{url}/models/{name}", headers=headers)
        card = _asked(asked, timeout_s=CARD_TIMEOUT_S)["card"]
        model_id = f"{card['name']} {card['version']} ({url})"
    except urllib.error.HTTPError as error:
        raise CannotRun(_detail(error)) from error
    except (KeyError, TypeError) as error:
        raise CannotRun(f"what answers at {url} is not a viola server") from error
    request = urllib.request.Request(
        f"{url}/embed?model={name}&encoding=base64",
        headers=headers | {"Content-Type": "application/octet-stream"},
        method="POST",
    )
    return model_id, partial(_embed_remotely, request)


def _embed_remotely(request: urllib.request.Request, paths: Iterable[Place]) -> Iterator[FileResult]:
    """In order, while a few files at a time are under way."""
    left = iter(paths)
    ahead: deque[Future[FileResult]] = deque()
    executor = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        while True:
            for path in islice(left, ANSWERS_AHEAD - len(ahead)):
                ahead.append(executor.submit(_post, request, path))
            if not ahead:
                return
            yield ahead.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _post(request: urllib.request.Request, path: Place) -> FileResult:
    """One file's bytes to /embed; tries again while the server is overloaded, after the time it asks for."""
    try:
        body = _bytes_of(path)
    except OSError as error:
        return FileResult(path, error=f"the file cannot be opened: {error.strerror}")
    except AudioMissing as error:
        return FileResult(path, error=str(error))
    for tries_left in reversed(range(TRIES)):
        try:
            posted = urllib.request.Request(request.full_url, body, dict(request.header_items()))
            answer = _asked(posted, timeout_s=CLIP_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == 503 and tries_left:
                seconds = error.headers.get("Retry-After", "")
                time.sleep(int(seconds) if seconds.isdecimal() else 1)
                continue
            return FileResult(path, error=_detail(error))
        except BrokenOff as error:  # a server that is gone for good refuses the next file's connection
            return FileResult(path, error=str(error))
        vector = np.frombuffer(base64.b64decode(answer["embedding"]), dtype="<f4")
        return FileResult(path, vector.astype(np.float32), answer["duration_s"])
    raise AssertionError("the last try returns")


def _bytes_of(path: Place) -> bytes:
    if isinstance(path, Path):
        return path.read_bytes()
    with fetched(path) as copy:
        return copy.read()


def _asked(request: urllib.request.Request, *, timeout_s: float) -> dict[str, Any]:
    """The JSON answer. Raises HTTPError for an error the server tells, BrokenOff if it tells half of
    something or nothing, CannotRun if there is no server."""
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            body: dict[str, Any] = json.load(answer)
            return body
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        url = request.full_url
        if isinstance(reason, BROKEN_OFF):
            raise BrokenOff(f"no whole answer came from {url} ({reason})") from error
        raise CannotRun(f"no viola server answers at {url} ({reason}); is it running?") from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"
