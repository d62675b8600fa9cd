"""A server's address in, its routes as methods out: `Client` waits, `AsyncClient` is awaited.

Both send a sound as the raw body, get numbers as base64, send again what may be sent again (retries.py), and
raise the server's errors as exceptions (errors.py). They differ in how they wait, and in nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx

from viola_client.errors import Unreachable, ViolaError, error_of
from viola_client.progress import progress_bar
from viola_client.results import Classification, Embedding, classification_of, embedding_of
from viola_client.retries import Retries
from viola_client.sounds import Body, Sound, name_of

Dtype = Literal["float32", "float16"]
Failed = ViolaError | OSError | ValueError  # a sound of many that could not be embedded, and why
T = TypeVar("T")
ItemErrors = (ViolaError, OSError, ValueError)

DEFAULT_URL = "http://localhost:8000"
OCTETS = "application/octet-stream"


class Client:
    """api_key: where the server asks for one. timeout_s: of each attempt, from the end of the upload to the
    answer. The client may be used by several threads."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
    ) -> None:
        self._http = httpx.Client(**_options(url, api_key, timeout_s))
        self._retries = retries

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def embed(
        self,
        sound: Sound,
        *,
        model: str | None = None,
        frames: bool = False,
        window_s: float | None = None,
        hop_s: float | None = None,
        dtype: Dtype = "float32",
    ) -> Embedding:
        """A path, a file's bytes, or (samples, sample_rate) -> its embedding.

        frames: also one vector per frame; window_s, hop_s: also one per window. Raises ViolaError; OSError
        for a file that cannot be read; ValueError for samples that are no sound.
        """
        parameters = _embed_parameters(model, frames, window_s, hop_s, dtype)
        return embedding_of(self._post("embed", sound, parameters), dtype)

    def classify(
        self,
        sound: Sound,
        *,
        model: str | None = None,
        head: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
    ) -> Classification:
        """A sound -> its tags; with window_s also a timeline. Raises as `embed` does."""
        parameters = _classify_parameters(model, head, top_k, threshold, window_s, hop_s)
        return classification_of(self._post("classify", sound, parameters))

    def embed_many(
        self, sounds: Sequence[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> Iterator[Embedding | Failed]:
        """An embedding or an error for each sound, in their order; `options` are those of `embed`.

        At most `concurrency` are on their way, and as many more wait to be taken.
        """
        return self._many(lambda sound: self.embed(sound, **options), sounds, concurrency, progress)

    def classify_many(
        self, sounds: Sequence[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> Iterator[Classification | Failed]:
        """As `embed_many`; `options` are those of `classify`."""
        return self._many(lambda sound: self.classify(sound, **options), sounds, concurrency, progress)

    def models(self) -> dict[str, Any]:
        """`default`, `models` (cards, heads and labels) and `refused`, as GET /models answers."""
        return self._send(lambda: self._http.get("models"))

    def is_ready(self) -> bool:
        """Whether the server takes requests now; False where there is none."""
        try:
            return self._http.get("health/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _post(self, route: str, sound: Sound, parameters: Mapping[str, str]) -> dict[str, Any]:
        body = Body(sound)
        headers = {"Content-Type": OCTETS, "Content-Length": str(body.length)}
        return self._send(
            lambda: self._http.post(route, params=parameters, content=body.chunks(), headers=headers)
        )

    def _send(self, request: Callable[[], httpx.Response]) -> dict[str, Any]:
        attempt = 0
        while True:
            attempt += 1
            try:
                outcome: httpx.Response | httpx.TransportError = request()
            except httpx.TransportError as error:
                outcome = error
            wait_s = _wait_s(self._retries, attempt, outcome)
            if wait_s is None:
                return _content(outcome)
            time.sleep(wait_s)

    def _many(
        self, work: Callable[[Sound], T], sounds: Sequence[Sound], concurrency: int, progress: bool
    ) -> Iterator[T | Failed]:
        waiting: deque[Future[T | Failed]] = deque()
        with ThreadPoolExecutor(concurrency) as threads, progress_bar(len(sounds), shown=progress) as done:
            try:
                for sound in sounds:
                    if len(waiting) == 2 * concurrency:
                        yield _taken(waiting, done)
                    waiting.append(threads.submit(_outcome, work, sound))
                while waiting:
                    yield _taken(waiting, done)
            finally:  # a caller that stops half-way leaves nothing behind
                for future in waiting:
                    future.cancel()


class AsyncClient:
    """As `Client`, to be awaited."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, api_key, timeout_s))
        self._retries = retries

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def embed(
        self,
        sound: Sound,
        *,
        model: str | None = None,
        frames: bool = False,
        window_s: float | None = None,
        hop_s: float | None = None,
        dtype: Dtype = "float32",
    ) -> Embedding:
        """As `Client.embed`."""
        parameters = _embed_parameters(model, frames, window_s, hop_s, dtype)
        return embedding_of(await self._post("embed", sound, parameters), dtype)

    async def classify(
        self,
        sound: Sound,
        *,
        model: str | None = None,
        head: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
    ) -> Classification:
        """As `Client.classify`."""
        parameters = _classify_parameters(model, head, top_k, threshold, window_s, hop_s)
        return classification_of(await self._post("classify", sound, parameters))

    def embed_many(
        self, sounds: Sequence[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> AsyncIterator[Embedding | Failed]:
        """As `Client.embed_many`: `async for outcome in client.embed_many(paths):`."""

        async def work(sound: Sound) -> Embedding:
            return await self.embed(sound, **options)

        return self._many(work, sounds, concurrency, progress)

    def classify_many(
        self, sounds: Sequence[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> AsyncIterator[Classification | Failed]:
        """As `Client.classify_many`."""

        async def work(sound: Sound) -> Classification:
            return await self.classify(sound, **options)

        return self._many(work, sounds, concurrency, progress)

    async def models(self) -> dict[str, Any]:
        """As `Client.models`."""
        return await self._send(lambda: self._http.get("models"))

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return (await self._http.get("health/ready")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def _post(self, route: str, sound: Sound, parameters: Mapping[str, str]) -> dict[str, Any]:
        body = Body(sound)
        headers = {"Content-Type": OCTETS, "Content-Length": str(body.length)}
        return await self._send(
            lambda: self._http.post(route, params=parameters, content=body.async_chunks(), headers=headers)
        )

    async def _send(self, request: Callable[[], Any]) -> dict[str, Any]:
        attempt = 0
        while True:
            attempt += 1
            try:
                outcome: httpx.Response | httpx.TransportError = await request()
            except httpx.TransportError as error:
                outcome = error
            wait_s = _wait_s(self._retries, attempt, outcome)
            if wait_s is None:
                return _content(outcome)
            await asyncio.sleep(wait_s)

    async def _many(
        self, work: Callable[[Sound], Any], sounds: Sequence[Sound], concurrency: int, progress: bool
    ) -> AsyncIterator[Any]:
        waiting: deque[asyncio.Task[Any]] = deque()
        running = asyncio.Semaphore(concurrency)

        async def one(sound: Sound) -> Any:
            async with running:
                try:
                    return await work(sound)
                except ItemErrors as error:
                    return _named(error, sound)

        with progress_bar(len(sounds), shown=progress) as done:
            try:
                for sound in sounds:
                    if len(waiting) == 2 * concurrency:
                        yield await waiting.popleft()
                        done()
                    waiting.append(asyncio.create_task(one(sound)))
                while waiting:
                    yield await waiting.popleft()
                    done()
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)


def _options(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(timeout_s, connect=10.0)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    return {"base_url": url, "headers": headers, "timeout": timeout, "limits": limits}


def _embed_parameters(
    model: str | None, frames: bool, window_s: float | None, hop_s: float | None, dtype: Dtype
) -> dict[str, str]:
    given = {"model": model, "window_s": window_s, "hop_s": hop_s}
    return {"encoding": "base64", "dtype": dtype, "frames": str(frames).lower(), **_given(given)}


def _classify_parameters(
    model: str | None,
    head: str | None,
    top_k: int | None,
    threshold: float | None,
    window_s: float | None,
    hop_s: float | None,
) -> dict[str, str]:
    given = {"model": model, "head": head, "top_k": top_k, "threshold": threshold}
    return _given({**given, "window_s": window_s, "hop_s": hop_s})


def _given(parameters: Mapping[str, object]) -> dict[str, str]:
    """Without those that were left out: the server's defaults count."""
    return {name: str(value) for name, value in parameters.items() if value is not None}


def _wait_s(retries: Retries, attempt: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
    if isinstance(outcome, httpx.TransportError):
        return retries.wait_s(attempt, 0, None)
    if outcome.is_success:
        return None
    return retries.wait_s(attempt, outcome.status_code, outcome.headers.get("Retry-After"))


def _content(outcome: httpx.Response | httpx.TransportError) -> dict[str, Any]:
    if isinstance(outcome, httpx.TransportError):
        raise Unreachable(f"no answer from the server: {outcome or type(outcome).__name__}") from outcome
    try:
        answer = outcome.json()
    except ValueError:
        answer = None
    if not outcome.is_success or not isinstance(answer, dict):
        raise error_of(outcome.status_code, answer)
    return answer


def _outcome(work: Callable[[Sound], T], sound: Sound) -> T | Failed:
    try:
        return work(sound)
    except ItemErrors as error:
        return _named(error, sound)


def _named(error: Failed, sound: Sound) -> Failed:
    """The error, with the sound that it belongs to as a note for whoever prints it."""
    if hasattr(error, "add_note"):
        error.add_note(f"sound: {name_of(sound)}")
    return error


def _taken(waiting: deque[Future[T | Failed]], done: Callable[[], None]) -> T | Failed:
    outcome = waiting.popleft().result()
    done()
    return outcome
