"""A server's address in, its routes as methods out: `Client` waits, `AsyncClient` is awaited.

Both send a sound as the raw body, get numbers as base64 (requests.py), send again what may be sent again
(retries.py), and raise the server's errors as exceptions (errors.py). They differ in how they wait, and in
nothing else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx
import numpy as np

from viola_client.errors import ViolaError
from viola_client.live import Format, Heard, Piece, line_of, stream, stream_async
from viola_client.progress import progress_bar
from viola_client.requests import (
    MODELS,
    Dtype,
    Outcome,
    Pooling,
    Request,
    Texts,
    classify_request,
    embed_request,
    labels_of,
    text_requests,
    wait_s,
)
from viola_client.results import Array, Classification, Embedding
from viola_client.retries import Retries
from viola_client.sounds import Sound, name_of
from viola_client.teaching import Done, Lesson, Steps, advance, forget_steps, heads_steps, teach_steps

T = TypeVar("T")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

DEFAULT_URL = "http://localhost:8000"


class _Connected(Generic[Http]):
    """What both clients are made with."""

    _http_class: type[Http]

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        retries: Retries = Retries(),  # noqa: B008 - it is frozen
    ) -> None:
        self._http: Http = self._http_class(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            mounts=_past_the_proxy(url),
        )
        self._retries = retries
        self._api_key = api_key


class Client(_Connected[httpx.Client]):
    """api_key: where the server asks for one. timeout_s: of each attempt, from the end of the upload to the
    answer. The client may be used by several threads.

    A proxy that the environment names (http_proxy, no_proxy) is used as httpx uses it, but never for this
    machine: see `_past_the_proxy`."""

    _http_class = httpx.Client

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
        normalize: bool | None = None,
        dimensions: int | None = None,
        logmel_columns: int | None = None,
        dtype: Dtype = "float32",
    ) -> Embedding:
        """A path, a file's bytes, an open file, or (samples, sample_rate) -> its embedding.

        frames: also one vector per frame; window_s, hop_s: also one per window. normalize: vectors of unit
        length around the centre of real sounds, so that unrelated ones have a cosine near 0; dimensions: the
        same in so many numbers. logmel_columns: also a picture of the log-mel, of at most so many columns.
        Raises ViolaError: SoundError for what is no sound or cannot be read, the server's errors for the
        rest."""
        request = embed_request(
            sound,
            dtype,
            model=model,
            frames=frames,
            window_s=window_s,
            hop_s=hop_s,
            normalize=normalize,
            dimensions=dimensions,
            logmel_columns=logmel_columns,
        )
        return self._send(request)

    def embed_text(
        self,
        texts: Texts,
        *,
        model: str | None = None,
        normalize: bool | None = None,
        dtype: Dtype = "float32",
    ) -> Array:
        """A text -> its vector (D,), or texts -> theirs (n, D): in the space of the model's sounds, where it
        has a text tower. normalize: of unit length, as `embed` has them then, too. Raises ViolaError, and
        TypeError for what are no texts.
        """
        requests = text_requests(texts, dtype, model=model, normalize=normalize)
        return _joined(texts, [self._send(request) for request in requests])

    def classify(
        self,
        sound: Sound,
        *,
        model: str | None = None,
        head: str | None = None,
        labels: Texts | None = None,
        template: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        pooling: Pooling | None = None,
        min_known: float | None = None,
        segments: bool = False,
        begin: float | None = None,
        end: float | None = None,
        shortest_s: float | None = None,
        gap_s: float | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        embedding: bool = False,
        normalize: bool | None = None,
        dimensions: int | None = None,
        logmel_columns: int | None = None,
    ) -> Classification:
        """A sound -> its tags; with window_s also a timeline. Raises as `embed` does.

        labels: in words, in place of a head, where the model has a text tower; template: what each becomes
        before it is compared, with {} in its place.
        pooling: how the passages of a long sound make its tags, `max` or `mean`. segments: also from when to
        when each label is heard; begin, end, shortest_s and gap_s say what counts as one. min_known: what is
        less known to the head than this has no tags. embedding: also the sound's vector, as `embed` gives it
        with the same normalize and dimensions. logmel_columns: as of `embed`.
        """
        request = classify_request(
            sound,
            model=model,
            head=head,
            labels=labels,
            template=template,
            top_k=top_k,
            threshold=threshold,
            pooling=pooling,
            min_known=min_known,
            segments=segments or None,
            begin=begin,
            end=end,
            shortest_s=shortest_s,
            gap_s=gap_s,
            window_s=window_s,
            hop_s=hop_s,
            embedding="base64" if embedding else None,
            normalize=normalize,
            dimensions=dimensions,
            logmel_columns=logmel_columns,
        )
        return self._send(request)

    def embed_many(
        self, sounds: Iterable[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> Iterator[Embedding | ViolaError]:
        """An embedding or an error for each sound, in their order, whatever the sound; `options` are those of
        `embed`.

        At most `concurrency` are on their way, and as many more wait to be taken. `sounds` may be endless.
        """
        return self._many(lambda sound: self.embed(sound, **options), sounds, concurrency, progress)

    def classify_many(
        self, sounds: Iterable[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> Iterator[Classification | ViolaError]:
        """As `embed_many`; `options` are those of `classify`."""
        return self._many(lambda sound: self.classify(sound, **options), sounds, concurrency, progress)

    def stream(
        self,
        sounds: Iterable[Piece],
        *,
        rate: int | None = None,
        channels: int = 1,
        format: Format = "s16le",
        model: str | None = None,
        head: str | None = None,
        labels: Texts | None = None,
        template: str | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        embeddings: bool = False,
        min_known: float | None = None,
        begin: float | None = None,
        end: float | None = None,
        shortest_s: float | None = None,
        gap_s: float | None = None,
        on_lag: Callable[[float], None] | None = None,
    ) -> Iterator[Heard]:
        """Pieces of a sound that need have no end -> a LiveWindow for each window, and an Event once it is
        over, while the sound still comes.

        A piece is bytes in the format, or samples (n,) or (n, channels): floats in [-1, 1] or int16. labels,
        template: as of `classify`. Without window_s the windows are of a second, every half second. A
        connection that breaks is made again, where the samples are raw, and the times go on by what was sent;
        what was on its way is lost. on_lag: called with the seconds by which the server has fallen behind.
        Needs `viola-client[live]`.

        Raises ViolaError, and what iterating over the sounds raises.
        """
        line = line_of(
            str(self._http.base_url),
            api_key=self._api_key,
            rate=rate,
            channels=channels,
            format=format,
            on_lag=on_lag,
            options={
                "model": model,
                "head": head,
                "labels": None if labels is None else labels_of(labels),
                "template": template,
                "window_s": window_s,
                "hop_s": hop_s,
                "top_k": top_k,
                "threshold": threshold,
                "embeddings": embeddings or None,
                "min_known": min_known,
                "begin": begin,
                "end": end,
                "shortest_s": shortest_s,
                "gap_s": gap_s,
            },
        )
        return stream(line, sounds, self._retries)

    def models(self) -> dict[str, Any]:
        """`default`, `models` (cards, heads and labels) and `refused`, as GET /models answers."""
        return self._send(MODELS)

    def teach(
        self,
        head: str,
        label: str | None,
        sounds: Sound | Iterable[Sound],
        *,
        model: str | None = None,
        fit: bool = True,
    ) -> Lesson:
        """Sounds of a label -> a head that is served at once, made where there is none; the lesson says how
        good it is, and which sounds were refused. label: None for sounds that are none of the labels.

        fit: whether the head is fitted at the end; leave it out while more labels come. Raises ViolaError.
        """
        return self._run(teach_steps(head, label, sounds, model=model, fit=fit))

    def heads(self, *, model: str | None = None) -> dict[str, Any]:
        """What the model was taught, as GET /models/{name}/heads answers: `heads`, and `damaged`, those whose
        file the server's disk has damaged, each with a sentence."""
        return self._run(heads_steps(model))

    def forget(
        self, head: str, *, label: str | None = None, example: str | None = None, model: str | None = None
    ) -> list[str]:
        """Remove an example, all examples of a label, or the head; the ids of the examples that are gone. The
        head is served as it is until it is fitted again."""
        return self._run(forget_steps(head, label=label, example=example, model=model))

    def is_ready(self) -> bool:
        """Whether the server takes requests now; False where there is none."""
        try:
            return self._http.get("health/ready").status_code == httpx.codes.OK
        except httpx.RequestError:
            return False

    def _run(self, steps: Steps[T]) -> T:
        step = advance(steps, None)
        while not isinstance(step, Done):
            try:
                outcome: dict[str, Any] | ViolaError = self._send(step)
            except ViolaError as error:
                outcome = error
            step = advance(steps, outcome)
        return step.result

    def _send(self, request: Request[T]) -> T:
        outcome, attempt = self._outcome(request), 1
        while (seconds := wait_s(self._retries, attempt, outcome)) is not None:
            time.sleep(seconds)
            outcome, attempt = self._outcome(request), attempt + 1
        return request.result(outcome)

    def _outcome(self, request: Request[T]) -> Outcome:
        if request.body is None:
            return self._answer(request)
        with request.body.open() as content:
            return self._answer(request, content.chunks(), content.headers)

    def _answer(
        self,
        request: Request[T],
        content: Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Outcome:
        try:
            return self._http.request(
                request.method, request.route, params=request.query, content=content, headers=headers
            )
        except httpx.RequestError as error:
            return error

    def _many(
        self, work: Callable[[Sound], T], sounds: Iterable[Sound], concurrency: int, progress: bool
    ) -> Iterator[T | ViolaError]:
        _check_many(sounds, concurrency)
        waiting: deque[Future[T | ViolaError]] = deque()

        def one(sound: Sound) -> T | ViolaError:
            try:
                return work(sound)
            except ViolaError as error:
                return _named(error, sound)

        with (
            ThreadPoolExecutor(concurrency) as threads,
            progress_bar(_length_of(sounds), shown=progress) as done,
        ):
            try:
                for sound in sounds:
                    if len(waiting) == 2 * concurrency:
                        yield _taken(waiting, done)
                    waiting.append(threads.submit(one, sound))
                while waiting:
                    yield _taken(waiting, done)
            finally:  # a caller that stops half-way leaves nothing behind
                for future in waiting:
                    future.cancel()


class AsyncClient(_Connected[httpx.AsyncClient]):
    """As `Client`, to be awaited."""

    _http_class = httpx.AsyncClient

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
        normalize: bool | None = None,
        dimensions: int | None = None,
        logmel_columns: int | None = None,
        dtype: Dtype = "float32",
    ) -> Embedding:
        """As `Client.embed`."""
        request = await asyncio.to_thread(
            embed_request,
            sound,
            dtype,
            model=model,
            frames=frames,
            window_s=window_s,
            hop_s=hop_s,
            normalize=normalize,
            dimensions=dimensions,
            logmel_columns=logmel_columns,
        )
        return await self._send(request)

    async def embed_text(
        self,
        texts: Texts,
        *,
        model: str | None = None,
        normalize: bool | None = None,
        dtype: Dtype = "float32",
    ) -> Array:
        """As `Client.embed_text`."""
        requests = text_requests(texts, dtype, model=model, normalize=normalize)
        return _joined(texts, [await self._send(request) for request in requests])

    async def classify(
        self,
        sound: Sound,
        *,
        model: str | None = None,
        head: str | None = None,
        labels: Texts | None = None,
        template: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        pooling: Pooling | None = None,
        min_known: float | None = None,
        segments: bool = False,
        begin: float | None = None,
        end: float | None = None,
        shortest_s: float | None = None,
        gap_s: float | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        embedding: bool = False,
        normalize: bool | None = None,
        dimensions: int | None = None,
        logmel_columns: int | None = None,
    ) -> Classification:
        """As `Client.classify`."""
        request = await asyncio.to_thread(
            classify_request,
            sound,
            model=model,
            head=head,
            labels=labels,
            template=template,
            top_k=top_k,
            threshold=threshold,
            pooling=pooling,
            min_known=min_known,
            segments=segments or None,
            begin=begin,
            end=end,
            shortest_s=shortest_s,
            gap_s=gap_s,
            window_s=window_s,
            hop_s=hop_s,
            embedding="base64" if embedding else None,
            normalize=normalize,
            dimensions=dimensions,
            logmel_columns=logmel_columns,
        )
        return await self._send(request)

    def embed_many(
        self, sounds: Iterable[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> AsyncIterator[Embedding | ViolaError]:
        """As `Client.embed_many`: `async for outcome in client.embed_many(paths):`."""
        return self._many(lambda sound: self.embed(sound, **options), sounds, concurrency, progress)

    def classify_many(
        self, sounds: Iterable[Sound], *, concurrency: int = 8, progress: bool = False, **options: Any
    ) -> AsyncIterator[Classification | ViolaError]:
        """As `Client.classify_many`."""
        return self._many(lambda sound: self.classify(sound, **options), sounds, concurrency, progress)

    def stream(
        self,
        sounds: AsyncIterable[Piece] | Iterable[Piece],
        *,
        rate: int | None = None,
        channels: int = 1,
        format: Format = "s16le",
        model: str | None = None,
        head: str | None = None,
        labels: Texts | None = None,
        template: str | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        embeddings: bool = False,
        min_known: float | None = None,
        begin: float | None = None,
        end: float | None = None,
        shortest_s: float | None = None,
        gap_s: float | None = None,
        on_lag: Callable[[float], None] | None = None,
    ) -> AsyncIterator[Heard]:
        """As `Client.stream`: `async for heard in client.stream(sounds, rate=16_000):`."""
        line = line_of(
            str(self._http.base_url),
            api_key=self._api_key,
            rate=rate,
            channels=channels,
            format=format,
            on_lag=on_lag,
            options={
                "model": model,
                "head": head,
                "labels": None if labels is None else labels_of(labels),
                "template": template,
                "window_s": window_s,
                "hop_s": hop_s,
                "top_k": top_k,
                "threshold": threshold,
                "embeddings": embeddings or None,
                "min_known": min_known,
                "begin": begin,
                "end": end,
                "shortest_s": shortest_s,
                "gap_s": gap_s,
            },
        )
        return stream_async(line, sounds, self._retries)

    async def models(self) -> dict[str, Any]:
        """As `Client.models`."""
        return await self._send(MODELS)

    async def teach(
        self,
        head: str,
        label: str | None,
        sounds: Sound | Iterable[Sound],
        *,
        model: str | None = None,
        fit: bool = True,
    ) -> Lesson:
        """As `Client.teach`."""
        return await self._run(teach_steps(head, label, sounds, model=model, fit=fit))

    async def heads(self, *, model: str | None = None) -> dict[str, Any]:
        """As `Client.heads`."""
        return await self._run(heads_steps(model))

    async def forget(
        self, head: str, *, label: str | None = None, example: str | None = None, model: str | None = None
    ) -> list[str]:
        """As `Client.forget`."""
        return await self._run(forget_steps(head, label=label, example=example, model=model))

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return (await self._http.get("health/ready")).status_code == httpx.codes.OK
        except httpx.RequestError:
            return False

    async def _run(self, steps: Steps[T]) -> T:
        step = await asyncio.to_thread(advance, steps, None)
        while not isinstance(step, Done):
            try:
                outcome: dict[str, Any] | ViolaError = await self._send(step)
            except ViolaError as error:
                outcome = error
            step = await asyncio.to_thread(advance, steps, outcome)
        return step.result

    async def _send(self, request: Request[T]) -> T:
        outcome, attempt = await self._outcome(request), 1
        while (seconds := wait_s(self._retries, attempt, outcome)) is not None:
            await asyncio.sleep(seconds)
            outcome, attempt = await self._outcome(request), attempt + 1
        return request.result(outcome)

    async def _outcome(self, request: Request[T]) -> Outcome:
        if request.body is None:
            return await self._answer(request)
        with await asyncio.to_thread(request.body.open) as content:
            return await self._answer(request, content.async_chunks(), content.headers)

    async def _answer(
        self,
        request: Request[T],
        content: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Outcome:
        try:
            return await self._http.request(
                request.method, request.route, params=request.query, content=content, headers=headers
            )
        except httpx.RequestError as error:
            return error

    async def _many(
        self,
        work: Callable[[Sound], Awaitable[T]],
        sounds: Iterable[Sound],
        concurrency: int,
        progress: bool,
    ) -> AsyncIterator[T | ViolaError]:
        _check_many(sounds, concurrency)
        waiting: deque[asyncio.Task[T | ViolaError]] = deque()
        running = asyncio.Semaphore(concurrency)

        async def one(sound: Sound) -> T | ViolaError:
            async with running:
                try:
                    return await work(sound)
                except ViolaError as error:
                    return _named(error, sound)

        with progress_bar(_length_of(sounds), shown=progress) as done:
            try:
                for sound in sounds:
                    if len(waiting) == 2 * concurrency:
                        yield await waiting.popleft()
                        done()
                    waiting.append(asyncio.create_task(one(sound)))
                while waiting:
                    yield await waiting.popleft()
                    done()
            finally:  # a caller that stops half-way leaves nothing behind
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)


def _joined(texts: Texts, vectors: list[Array]) -> Array:
    """(n, D) of all requests; (D,) where one text stands for itself."""
    return vectors[0][0] if isinstance(texts, str) else np.concatenate(vectors)


def _past_the_proxy(url: str) -> dict[str, None]:
    """Connects directly where the server is on this machine: a proxy elsewhere has a localhost of its own."""
    host = httpx.URL(url).host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        is_here = host == "localhost" or host.endswith(".localhost")
    else:
        is_here = address.is_loopback or address.is_unspecified
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None} if is_here else {}


def _check_many(sounds: object, concurrency: int) -> None:
    """Raises TypeError or ValueError for a call that is wrong, whatever its sounds are."""
    if isinstance(sounds, (str, bytes, bytearray)) or not isinstance(sounds, Iterable):
        raise TypeError(f"sounds is a {type(sounds).__name__}: give a list of sounds, even for one")
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; at least 1 must be on its way")


def _length_of(sounds: Iterable[Sound]) -> int | None:
    return len(sounds) if isinstance(sounds, Sized) else None


def _named(error: ViolaError, sound: Sound) -> ViolaError:
    """The error, with the sound that it belongs to as a note for whoever prints it."""
    if hasattr(error, "add_note"):
        error.add_note(f"sound: {name_of(sound)}")
    return error


def _taken(waiting: deque[Future[T]], done: Callable[[], None]) -> T:
    outcome = waiting.popleft().result()
    done()
    return outcome
