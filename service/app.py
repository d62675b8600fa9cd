"""Settings in, the ASGI application out: its routes, and what they share.

request ─► Gate ─► route ─► Registry (model) ─► read_clip ─► Embedder ─► answers
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse, Response

from service import errors, schema
from service.answers import asked_array, classify_content, embed_content, json_answer, npy_answer, wants_npy
from service.embedder import Ask, Embedder, Sound, Timings
from service.errors import BadRequest, DeadlineExceeded, UnknownHead, ViolaError
from service.gate import MODEL_OF_REQUEST, NEEDS_NO_KEY, Gate, error_answer
from service.metrics import CONTENT_TYPE, Metrics
from service.model import Head, Model
from service.parameters import ClassifyParameters, EmbedParameters, openapi, read
from service.registry import Registry
from service.settings import Settings, unknown_variables
from service.threads import ThreadPlan, plan
from service.upload import ClientLeft, Upload, read_clip, read_clips

log = logging.getLogger(__name__)
routes = APIRouter()
T = TypeVar("T")

VERSION = "0.1.0"
SUMMARY = "Sound in, embeddings and tags out."


@dataclass
class Server:
    """What the routes share; `request.app.state.server`."""

    settings: Settings
    plan: ThreadPlan
    metrics: Metrics
    models: Registry
    embedder: Embedder
    is_draining: bool = field(default=False)

    async def model(self, request: Request, name: str | None) -> Model:
        """The model that a request asks for; from here on its metrics carry its name. Raises UnknownModel."""
        model = await self.models.get(name)
        request.scope[MODEL_OF_REQUEST] = model.card.name
        return model

    def not_ready(self) -> str | None:
        """Why no request should be sent here now; None when one should."""
        if self.is_draining:
            return "the server is shutting down"
        default = self.models.default
        if default in self.models.refused:
            return f"the default model cannot be served: {self.models.refused[default]}"
        if default not in self.models.loaded:
            return "the default model is being loaded"
        return None if self.embedder.batcher.is_working else "the worker has stopped"


def create_app(settings: Settings) -> FastAPI:
    """The application; models are loaded when its lifespan starts."""
    threads, metrics = plan(settings), Metrics()
    load = partial(_load_model, settings=settings, threads=threads.inference, metrics=metrics)
    models = Registry(settings.models_dir, default=settings.model, load=load)
    server = Server(settings, threads, metrics, models, Embedder(settings, threads, metrics))

    app = FastAPI(title="viola", version=VERSION, summary=SUMMARY, lifespan=_lifespan, redoc_url=None)
    app.state.server = server
    app.include_router(routes)

    def answer_error(request: Request, error: Exception) -> Response:
        return error_answer(error, metrics)

    for kind in (ViolaError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    labels = {path for route in routes.routes if isinstance(path := getattr(route, "path", None), str)}
    app.add_middleware(Gate, metrics=metrics, api_keys=settings.api_keys, routes=labels | NEEDS_NO_KEY)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Server-Timing", "Retry-After"],
        )
    _document_keys(app, settings)
    return app


def app_from_environment() -> FastAPI:
    """For uvicorn's worker processes, each of which reads the settings itself."""
    for name in unknown_variables(os.environ):
        log.warning("%s is no setting and is passed over; docs/settings.md lists those there are", name)
    return create_app(Settings())


@routes.post(
    "/embed",
    summary="One clip to its embedding",
    responses=schema.answer(schema.EmbedAnswer, schema.EMBED_EXAMPLE, npy=True)
    | schema.error_responses(*schema.OF_EMBED),
    openapi_extra=openapi(EmbedParameters) | schema.ONE_CLIP,
)
async def embed(request: Request) -> Response:
    """The clip's vector; with `Accept: application/x-npy` the array itself: the vector
    (embedding_size,), with frames=true the frames (n, embedding_size), with window_s the windows (n,
    embedding_size)."""
    parameters = read(EmbedParameters, request.query_params)
    as_npy = wants_npy(",".join(request.headers.getlist("accept")))
    if as_npy and parameters.frames and parameters.window_s:
        raise BadRequest("an array holds frames or windows, not both; leave one out, or ask for JSON")
    sound, timings = await _sound_of_request(request, parameters, frames=parameters.frames)

    def build() -> Response:
        if as_npy:
            return npy_answer(asked_array(sound, parameters), dtype=parameters.dtype)
        return json_answer(embed_content(request.scope[MODEL_OF_REQUEST], sound, parameters))

    is_large = parameters.frames or parameters.window_s is not None
    return await _answer(request, build, timings, is_large=is_large)


@routes.post(
    "/classify",
    summary="One clip to its tags",
    responses=schema.answer(schema.ClassifyAnswer, schema.CLASSIFY_EXAMPLE)
    | schema.error_responses(*schema.OF_CLASSIFY),
    openapi_extra=openapi(ClassifyParameters) | schema.ONE_CLIP,
)
async def classify(request: Request) -> Response:
    """The tags of a head with their scores, best first; with window_s also a timeline."""
    parameters = read(ClassifyParameters, request.query_params)
    model = await _server(request).model(request, parameters.model)
    head = _head(_server(request), model, parameters.head)
    sound, timings = await _sound_of_request(request, parameters)

    def build() -> Response:
        return json_answer(classify_content(model, head, sound, parameters))

    return await _answer(request, build, timings, is_large=parameters.window_s is not None)


@routes.post(
    "/embed/batch",
    summary="Several clips to their embeddings",
    responses=schema.answer(
        schema.EmbedBatchAnswer,
        {"results": [{"file": "a.wav"} | schema.EMBED_EXAMPLE, schema.FAILED_EXAMPLE]},
    )
    | schema.error_responses(*schema.OF_BATCH, errors.UnknownModel),
    openapi_extra=openapi(EmbedParameters) | schema.SEVERAL_CLIPS,
)
async def embed_batch(request: Request) -> Response:
    """Results in the order of the files; a file that fails carries its error, the others succeed."""
    parameters = read(EmbedParameters, request.query_params)
    model = await _server(request).model(request, parameters.model)
    answer_one = partial(embed_content, model.card.name, parameters=parameters)
    ask = Ask(parameters.frames, parameters.window_s, parameters.hop_s)
    return await _batch_answer(request, model, ask, answer_one)


@routes.post(
    "/classify/batch",
    summary="Several clips to their tags",
    responses=schema.answer(
        schema.ClassifyBatchAnswer,
        {"results": [{"file": "a.wav"} | schema.CLASSIFY_EXAMPLE, schema.FAILED_EXAMPLE]},
    )
    | schema.error_responses(*schema.OF_BATCH, errors.UnknownModel, errors.UnknownHead),
    openapi_extra=openapi(ClassifyParameters) | schema.SEVERAL_CLIPS,
)
async def classify_batch(request: Request) -> Response:
    """Results in the order of the files; a file that fails carries its error, the others succeed."""
    parameters = read(ClassifyParameters, request.query_params)
    model = await _server(request).model(request, parameters.model)
    head = _head(_server(request), model, parameters.head)
    answer_one = partial(classify_content, model, head, parameters=parameters)
    return await _batch_answer(request, model, Ask(False, parameters.window_s, parameters.hop_s), answer_one)


@routes.get(
    "/models",
    summary="The models and their cards",
    responses=schema.answer(schema.ModelsAnswer, schema.MODELS_EXAMPLE)
    | schema.error_responses(errors.Unauthorized, errors.InternalError),
)
async def list_models(request: Request) -> Response:
    """Every model that is served, with its card, heads and labels; and every folder that is refused, with the
    reason."""
    models = _server(request).models
    described = await asyncio.to_thread(models.describe_all)
    return json_answer({"default": models.default, "models": described, "refused": models.refused})


@routes.get(
    "/models/{name}",
    summary="One model's card",
    responses=schema.answer(schema.ModelAnswer, schema.MODEL_EXAMPLE)
    | schema.error_responses(*schema.OF_MODELS, errors.BadRequest),
)
async def show_model(request: Request, name: str) -> Response:
    """Its card, heads and labels."""
    return json_answer(await asyncio.to_thread(_server(request).models.describe, name))


@routes.get("/health/live", summary="Is the process alive?")
async def live() -> Response:
    """200 as long as the event loop turns."""
    return json_answer({"status": "alive"})


@routes.get("/health/ready", summary="Should requests be sent here?", responses=schema.NOT_READY)
async def ready(request: Request) -> Response:
    """200 once the default model is loaded and while the worker works; 503 before, and from SIGTERM on."""
    reason = _server(request).not_ready()
    if reason:
        return json_answer({"error": "not_ready", "detail": reason}, status=503)
    return json_answer({"status": "ready"})


@routes.get("/metrics", summary="Metrics for Prometheus")
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    return Response(_server(request).metrics.page(), media_type=CONTENT_TYPE)


@routes.get("/", include_in_schema=False)
async def home() -> Response:
    return RedirectResponse("/docs")


def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


async def _sound_of_request(
    request: Request, parameters: EmbedParameters | ClassifyParameters, *, frames: bool = False
) -> tuple[Sound, Timings]:
    """Read the one clip of a request and embed it."""
    server, timings = _server(request), Timings()
    model = await server.model(request, parameters.model)
    upload = await _timed_read(read_clip(request, max_body_bytes=server.settings.max_body_bytes), timings)
    ask = Ask(frames, parameters.window_s, parameters.hop_s)
    with contextlib.closing(upload):
        async with _attended(request, server.settings.deadline_s):
            return await server.embedder.embed(model, upload, ask, timings), timings


async def _batch_answer(
    request: Request, model: Model, ask: Ask, answer_one: Callable[..., dict[str, Any]]
) -> Response:
    """Read, embed and answer all clips of a batch; a file's error takes the place of its answer."""
    server, timings = _server(request), Timings()
    uploads = await _timed_read(read_clips(request, max_body_bytes=server.settings.max_body_bytes), timings)
    with contextlib.ExitStack() as closing:
        for upload in uploads:
            closing.callback(upload.close)
        async with _attended(request, server.settings.deadline_s):
            sounds = await server.embedder.embed_all(model, uploads, ask, timings)

    def result(upload: Upload, sound: Sound | ViolaError) -> dict[str, Any]:
        if isinstance(sound, ViolaError):
            server.metrics.errors.labels(sound.code).inc()
            return {"file": upload.name, "error": sound.code, "detail": str(sound)}
        return {"file": upload.name} | answer_one(sound=sound)

    def build() -> Response:
        return json_answer({"results": list(map(result, uploads, sounds))})

    return await _answer(request, build, timings, is_large=True)


async def _answer(
    request: Request, build: Callable[[], Response], timings: Timings, *, is_large: bool
) -> Response:
    """Build the answer, with the header Server-Timing: here, or where it may take long in a thread."""
    started = time.perf_counter()
    answer = await _server(request).embedder.in_thread(build) if is_large else build()
    timings.encode = time.perf_counter() - started
    answer.headers["Server-Timing"] = timings.server_timing()
    return answer


async def _timed_read(reading: Awaitable[T], timings: Timings) -> T:
    started = time.perf_counter()
    read = await reading
    timings.read = time.perf_counter() - started
    return read


@contextlib.asynccontextmanager
async def _attended(request: Request, deadline_s: float) -> AsyncIterator[None]:
    """Stop the work inside at the deadline (DeadlineExceeded), or when the client leaves (ClientLeft)."""
    has_left = False
    timeout = asyncio.timeout(deadline_s)
    watcher = None

    async def watch() -> None:
        nonlocal has_left
        # The body is read: the next thing to come is the end of the connection.
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        with contextlib.suppress(RuntimeError):  # the deadline was first
            timeout.reschedule(0)  # a moment long past

    try:
        async with timeout:
            watcher = asyncio.create_task(watch())
            yield
    except TimeoutError as error:
        if has_left:
            raise ClientLeft from error
        if not timeout.expired():  # somebody else's
            raise
        raise DeadlineExceeded(
            f"the request was not done within {deadline_s:g} s; send less sound, or try again later"
        ) from error
    finally:
        if watcher:
            watcher.cancel()


def _head(server: Server, model: Model, name: str | None) -> Head:
    """The head by its name, the first of the card without one. Raises UnknownHead with what there is."""
    heads = server.models.heads(model.card.name)
    if not heads:
        raise UnknownHead(
            f"the model `{model.card.name}` has no heads; `python -m training fit-head` makes one"
        )
    name = name or next(iter(heads))
    if name not in heads:
        there = ", ".join(f"`{other}`" for other in heads)
        raise UnknownHead(f"the model `{model.card.name}` has no head `{name}`; it has {there}")
    return heads[name]


def _load_model(folder: Path, *, settings: Settings, threads: int, metrics: Metrics) -> Model:
    started = time.perf_counter()
    model = Model.load(folder, device=settings.device, precision=settings.precision, threads=threads)
    card = model.card
    log.info(
        "loaded %s %s in %.2f s: %s on %s, %d numbers per clip, heads: %s",
        card.name,
        card.version,
        time.perf_counter() - started,
        model.precision,
        model.device,
        card.embedding_size,
        ", ".join(model.heads) or "none",
    )
    metrics.model_info.labels(card.name).info(
        {
            "version": card.version,
            "encoder": card.encoder.name,
            "precision": model.precision,
            "device": model.device,
            "embedding_size": str(card.embedding_size),
        }
    )
    return model


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the models, then serve; at the end finish what was accepted."""
    server: Server = app.state.server
    log.info("threads: %s", server.plan.reason)
    server.embedder.start()
    await server.models.preload(server.settings.preload)
    _spare_the_collector_what_stays()
    with _draining_from_the_first_signal(server):
        yield
    server.is_draining = True
    await server.embedder.drain()


def _spare_the_collector_what_stays() -> None:
    """What is loaded by now lives as long as the process: going through it again and again for garbage
    is work in vain."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@contextlib.contextmanager
def _draining_from_the_first_signal(server: Server) -> Iterator[None]:
    """Readiness turns false with SIGTERM or SIGINT, before uvicorn's own handler, which is called next."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a test's server; signals belong to the main thread
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    def drain(number: int, frame: Any) -> None:
        server.is_draining = True
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in signals:
        signal.signal(number, drain)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _document_keys(app: FastAPI, settings: Settings) -> None:
    """Add the two ways to show a key to /openapi.json, where keys are asked for."""
    if not settings.api_keys:
        return
    generate = app.openapi

    def with_keys() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {})["securitySchemes"] = schema.KEY_SCHEMES
        document["security"] = [{name: []} for name in schema.KEY_SCHEMES]
        return document

    app.openapi = with_keys  # type: ignore[method-assign]
