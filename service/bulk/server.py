"""Files in, the embeddings or tags of a running server out: for `--url`."""

import http.client
import ipaddress
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from service.bulk.errors import CommandError
from service.bulk.offline import FileResult, Location, Work, fetched, no_file
from service.errors import AudioMissing, AudioUnreadable, ViolaError
from service.inference.card import PROJECTION_FILE
from service.inference.heads import FORMS, hash_of_head

REQUESTS_AT_ONCE = 8
ANSWERS_AHEAD = 4 * REQUESTS_AT_ONCE  # of the one whose turn it is, so that a slow one holds up few
CHUNK_BYTES = 1 << 18  # of a file, read and sent at a time
TRIES = 8  # of a request that an overloaded server turns away
CARD_TIMEOUT_S = 30.0  # without a byte from the server
CLIP_TIMEOUT_S = 300.0  # the same: five times the server's own deadline, unless that was raised
CONNECTION_LOST = (  # after it was there
    BrokenPipeError,
    ConnectionAbortedError,
    ConnectionResetError,
    TimeoutError,
    http.client.HTTPException,
)

Answer = dict[str, Any]  # the server's JSON
Ask = Callable[[BinaryIO], Answer]  # an open file -> its answer
Read = Callable[[Location, Answer], FileResult]  # raises KeyError, TypeError or ValueError


class IncompleteAnswerError(CommandError):
    """The server was there, but its answer did not come, or not as a whole."""


@dataclass(frozen=True)
class Server:
    """One that is running, and one of its models. model_id: the model and the server; heads: the first digits
    of each head's SHA-256, by name; projection: that of the projection, where it has one; files: all that the
    card has; tower: what it says of a text tower; embeds_texts: whether that can be asked."""

    model: str
    model_id: str
    heads: dict[str, str]
    projection: str | None
    files: dict[str, str]
    tower: dict[str, Any] | None
    embeds_texts: bool
    url: str
    headers: dict[str, str]
    opener: urllib.request.OpenerDirector

    def work(self, route: str, read: Read, **query: str | float) -> Work:
        """What has the files answered by a route, and reads the answers."""
        asked = urllib.parse.urlencode({"model": self.model} | query)
        headers = self.headers | {"Content-Type": "application/octet-stream"}
        ask = partial(_answer_to, self.opener, f"{self.url}/{route}?{asked}", headers)
        return partial(_post_all, ask, read)


def server_at(url: str, *, model: str, api_key: str | None) -> Server:
    """Raises CommandError where none answers, or not for this model."""
    opener = _opener(url)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        asked = urllib.request.Request(f"{url}/models/{urllib.parse.quote(model, safe='')}", headers=headers)
        answer = _get_json(opener, asked, timeout_s=CARD_TIMEOUT_S)
        card, names = answer["card"], [head["name"] for head in answer.get("heads", ())]
        files = card.get("files", {})
        listed = {name for name in names if any(f"heads/{name}{form}" in files for form in FORMS)}
        heads = {name: hash_of_head(files, name)[:12] if name in listed else "taught" for name in names}
        made_by = f"{card['name']} {card['version']} ({url})"
        projection = files.get(PROJECTION_FILE)
        tower, embeds_texts = card.get("text"), bool(answer.get("text"))
        return Server(model, made_by, heads, projection, files, tower, embeds_texts, url, headers, opener)
    except urllib.error.HTTPError as error:
        raise CommandError(_detail(error)) from error
    except (KeyError, TypeError) as error:
        raise CommandError(f"what answers at {url} is not a viola server") from error


def _post_all(ask: Ask, read: Read, paths: Iterable[Location]) -> Iterator[FileResult]:
    """In order, while a few files at a time are under way."""
    left = iter(paths)
    ahead: deque[Future[FileResult]] = deque()
    executor = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        while True:
            for path in islice(left, ANSWERS_AHEAD - len(ahead)):
                ahead.append(executor.submit(_post, ask, read, path))
            if not ahead:
                return
            yield ahead.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _post(ask: Ask, read: Read, path: Location) -> FileResult:
    """What becomes of one file. Raises CommandError where there is no server any more."""
    try:
        with _opened(path) as file:
            return _answered(ask, read, path, file)
    except OSError as error:
        return FileResult(path, error=f"the file cannot be opened: {error.strerror or error}")
    except (ViolaError, IncompleteAnswerError) as error:
        # A server that is gone for good refuses the next file's connection.
        return FileResult(path, error=str(error))


def _answered(ask: Ask, read: Read, path: Location, file: BinaryIO) -> FileResult:
    """Tries again while the server is overloaded, after the time it asks for. Raises as `_answer_to`, but no
    HTTPError."""
    for tries_left in reversed(range(TRIES)):
        try:
            return read(path, ask(file))
        except urllib.error.HTTPError as error:
            if error.code != 503 or not tries_left:
                return FileResult(path, error=_detail(error))
            seconds = error.headers.get("Retry-After", "")
            time.sleep(int(seconds) if seconds.isdecimal() else 1)
        except (KeyError, TypeError, ValueError):
            return FileResult(path, error="what the server answered is not what was asked for")
    raise AssertionError("the last try returns")


@contextmanager
def _opened(path: Location) -> Iterator[BinaryIO]:
    """Raises OSError or AudioMissing."""
    if not isinstance(path, Path):
        with fetched(path) as copy:
            yield copy
        return
    if reason := no_file(path):
        raise AudioMissing(reason)
    with path.open("rb") as file:
        yield file


def _answer_to(
    server: urllib.request.OpenerDirector, route: str, headers: dict[str, str], file: BinaryIO
) -> dict[str, Any]:
    """What the server says to a file, which is sent as long as it is now. Raises as `_get_json` does, and
    AudioUnreadable."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    headers = headers | {"Content-Length": str(length)}
    posted = urllib.request.Request(route, _chunks(file, length), headers, method="POST")
    return _get_json(server, posted, timeout_s=CLIP_TIMEOUT_S)


def _chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """As many bytes as were announced: what is appended meanwhile is left out. Raises AudioUnreadable."""
    left = length
    while left:
        try:
            chunk = file.read(min(left, CHUNK_BYTES))
        except OSError as error:
            raise AudioUnreadable(f"the file cannot be read: {error.strerror or error}") from error
        if not chunk:
            raise AudioUnreadable(
                f"the file became shorter while it was sent: {length - left} of its {length} bytes were left"
            )
        left -= len(chunk)
        yield chunk


class _AnsweredEarly(http.client.HTTPConnection):
    """A server that refuses a body answers and closes before it has all of it: the rest cannot be sent, and
    the answer is there to be read."""

    def request(self, *arguments: Any, **options: Any) -> None:
        try:
            super().request(*arguments, **options)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            if self.sock is None:  # it was never there
                raise


class _AnsweredEarlySecurely(_AnsweredEarly, http.client.HTTPSConnection):
    pass


class _OverHttp(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_AnsweredEarly, req)


class _OverHttps(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_AnsweredEarlySecurely, req)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """What asks the server: through the proxy that the environment names, but on this machine directly, for a
    proxy elsewhere has a localhost of its own."""
    is_here = _is_here(urllib.parse.urlsplit(url).hostname or "")
    proxies = urllib.request.ProxyHandler({} if is_here else None)
    return urllib.request.build_opener(proxies, _OverHttp, _OverHttps)


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _get_json(
    server: urllib.request.OpenerDirector, request: urllib.request.Request, *, timeout_s: float
) -> dict[str, Any]:
    """The JSON answer. Raises HTTPError for an error that the server answers, IncompleteAnswerError where the
    answer is not whole, CommandError where there is no server."""
    try:
        with server.open(request, timeout=timeout_s) as answer:
            body: dict[str, Any] = json.load(answer)
            return body
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        url = request.full_url
        if isinstance(reason, CONNECTION_LOST):
            raise IncompleteAnswerError(f"no whole answer came from {url} ({reason})") from error
        raise CommandError(f"no viola server answers at {url} ({reason}); is it running?") from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return f"the server answered {error.code} {error.reason}"
