"""Settings in, the ASGI application out: its routes, and what they share.

request ─► Gate ─► route ─► Registry (model) ─► read_clip ─► Embedder ─► answers
"""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response

from service import api_docs, errors, openai_api, page, schema
from service.answers import asked_array, classify_content, embed_content, json_answer, npy_answer, wants_npy
from service.attendance import Attended, deadline_s
from service.balance import Loop
from service.drain import draining
from service.embedder import Ask, Embedder, Job, Sound, Timings
from service.errors import BadRequest, UnknownHead, ViolaError
from service.exchange import EXCHANGE
from service.gate import MODEL_OF_REQUEST, NEEDS_NO_KEY, Gate, error_answer, error_codes
from service.json_body import READ_S, read_request
from service.keys import Keys
from service.metrics import CONTENT_TYPE, Metrics
from service.model import Head, Model
from service.parameters import ClassifyParameters, EmbedParameters, LogmelParameters, openapi
from service.processes import Slot, end_with_the_supervisor
from service.protocol import LIMITS, Cut, Limits
from service.registry import Registry, Reloaded, together
from service.settings import Settings, unknown_variables
from service.shortcut import Shortcut, endpoints_of
from service.siblings import Siblings
from service.threads import ThreadPlan, plan
from service.tracing import Tracer
from service.upload import Intake, Upload, read_clip, read_clips
from service.windows import Piece, Window

log = logging.getLogger(__name__)
routes = APIRouter()
T = TypeVar("T")

# A batch takes a tenth of a second, on a slow machine one; warming up happens before the server is ready.
STUCK_S = 20.0

VERSION = "0.1.0"
SUMMARY = "Sound in, embeddings and tags out."

# The framework's own spans, metrics and logs, off: those of tracing.py know the stages; one set is enough.
TRACED_HERE: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


@dataclass
class Server:
    """What the routes share; `request.app.state.server`."""

    settings: Settings
    plan: ThreadPlan
    metrics: Metrics
    models: Registry
    embedder: Embedder
    intake: Intake
    siblings: Siblings
    tracer: Tracer | None = None
    is_draining: bool = False
    mending: asyncio.Task[None] | None = None

    def loaded_model(self, request: Request, name: str | None) -> Model | None:
        """As `model`, at once: None where it is known and must be loaded first, which takes seconds."""
        name = name or self.models.default
        model = self.models.loaded.get(name)
        if model is None:
            self.models.check_known(name)
        request.scope[MODEL_OF_REQUEST] = name
        return model

    async def model(self, request: Request, name: str | None) -> Model:
        """The model that a request asks for; from here on its metrics carry its name. Raises UnknownModel."""
        model = await self.models.get(name)
        request.scope[MODEL_OF_REQUEST] = model.card.name
        return model

    def turn_away(self) -> None:
        """From now on the server is not ready; it goes on answering."""
        self.is_draining = True

    def not_ready(self) -> str | None:
        """Why no request should be sent here now; None when one should."""
        if self.is_draining:
            return "the server is shutting down"
        default = self.models.default
        if default in self.models.refused:
            return f"the default model cannot be served: {self.models.refused[default]}"
        if default not in self.models.loaded:
            return "the default model is being loaded"
        if failure := self.models.loaded[default].failure:
            return f"the default model {failure}"
        if not self.embedder.batcher.is_working:
            return "the worker has stopped"
        stuck_s = self.embedder.batcher.stuck_s
        return f"the worker has been in one batch for {stuck_s:.0f} s" if stuck_s > STUCK_S else None

    def mend(self) -> None:
        """Where the default model has failed, begin to mend it, one attempt at a time. Nobody waits for that:
        the queue may be long, or the worker stuck."""
        model = self.models.loaded.get(self.models.default)
        if model is None or model.failure is None:
            return
        if self.mending is None or self.mending.done():
            self.mending = asyncio.create_task(self._mend(model))

    async def _mend(self, model: Model) -> None:
        """Give it the test signal to embed: its session is opened again even if no request comes, since
        nobody sends any to a server that is not ready."""
        logmel = model.probe_logmel()
        job = Job(model, Piece(Window(0, logmel.shape[1]), logmel), frames=False)
        try:
            await self.embedder.batcher.submit([job])
        except Exception as error:  # of onnxruntime, or the refusal to try so soon
            log.warning("the default model is still not well: %s", error)


def create_app(settings: Settings, slot: Slot | None = None) -> FastAPI:
    """The application; models are loaded when its lifespan starts. slot: of this worker, where there are
    several."""
    threads, metrics = plan(settings), Metrics(slot)
    load = partial(_load_model, settings=settings, threads=threads)
    on_change = partial(_tell_model, metrics)
    models = Registry(settings.models_dir, default=settings.model, load=load, on_change=on_change)
    intake = Intake(settings.max_body_bytes, settings.upload_timeout_s, settings.max_held_bytes)
    siblings = Siblings(slot, partial(_reload_for_sibling, models))
    embedder = Embedder(settings, threads, metrics)
    server = Server(settings, threads, metrics, models, embedder, intake, siblings)

    app = FastAPI(
        title="viola",
        version=VERSION,
        summary=SUMMARY,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=TRACED_HERE,
    )
    app.state.server = server
    if settings.otel:
        server.tracer = Tracer(VERSION)
    metrics.tell_build(VERSION)
    metrics.expect_errors(error_codes())
    metrics.watch(metrics.queue_limit, lambda: embedder.batcher.limit_cost)
    metrics.watch(metrics.ready, lambda: server.not_ready() is None)
    app.include_router(routes)
    api_docs.mount(app)
    page.mount(app)

    def answer_error(request: Request, error: Exception) -> Response:
        return error_answer(error, metrics, request.scope)

    for kind in (ViolaError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(
        Shortcut, endpoints=endpoints_of(routes.routes, "/embed", "/classify"), answer_error=answer_error
    )
    labels = {path for route in routes.routes if isinstance(path := getattr(route, "path", None), str)}
    app.add_middleware(
        Gate,
        metrics=metrics,
        keys=Keys(settings.api_keys, settings.api_keys_file),
        routes=labels | NEEDS_NO_KEY,
        root_path=settings.root_path,
        access_log=settings.access_log,
        is_draining=lambda: server.is_draining,
        tracer=server.tracer,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Server-Timing", "Retry-After", "X-Request-ID"],
        )
    _document_keys(app, settings)
    return app


def app_from_environment() -> FastAPI:
    """For uvicorn's worker processes, each of which reads the settings itself."""
    for name in unknown_variables(os.environ):
        log.warning("%s is no setting and is passed over; docs/settings.md lists those there are", name)
    end_with_the_supervisor()
    return create_app(Settings(), Slot.of_this_worker())


@routes.post(
    "/embed",
    summary="One clip to its embedding",
    responses=schema.answer(schema.EmbedAnswer, schema.EMBED_EXAMPLE, npy=True)
    | schema.error_responses(*schema.OF_EMBED),
    openapi_extra=openapi(EmbedParameters) | schema.one_clip(EmbedParameters),
)
async def embed(request: Request) -> Response:
    """The clip's vector; with `Accept: application/x-npy` the array itself: the vector
    (embedding_size,), with frames=true the frames (n, embedding_size), with window_s the windows (n,
    embedding_size)."""
    parameters = await read_request(EmbedParameters, request, _server(request).intake)
    as_npy = wants_npy(",".join(request.headers.getlist("accept")))
    if as_npy and parameters.frames and parameters.window_s:
        raise BadRequest("an array holds frames or windows, not both; leave one out, or ask for JSON")

    def build(model: Model, sound: Sound) -> Response:
        if as_npy:
            return npy_answer(asked_array(sound, parameters), dtype=parameters.dtype)
        return json_answer(embed_content(model.card.name, sound, parameters))

    ask = Ask(parameters.frames, parameters.window_s, parameters.hop_s)
    return await _answer_one(request, parameters.model, ask, build)


@routes.post(
    "/classify",
    summary="One clip to its tags",
    responses=schema.answer(schema.ClassifyAnswer, schema.CLASSIFY_EXAMPLE)
    | schema.error_responses(*schema.OF_CLASSIFY),
    openapi_extra=openapi(ClassifyParameters) | schema.one_clip(ClassifyParameters),
)
async def classify(request: Request) -> Response:
    """The tags of a head with their scores, best first; with window_s also a timeline."""
    parameters = await read_request(ClassifyParameters, request, _server(request).intake)

    def build(model: Model, sound: Sound) -> Response:
        return json_answer(classify_content(model, _head(model, parameters.head), sound, parameters))

    ask = Ask(False, parameters.window_s, parameters.hop_s)
    return await _answer_one(
        request, parameters.model, ask, build, check=partial(_head, name=parameters.head)
    )


@routes.post(
    "/embed/batch",
    summary="Several clips to their embeddings",
    responses=schema.answer(
        schema.EmbedBatchAnswer,
        {"results": [{"file": "a.wav"} | schema.EMBED_EXAMPLE, schema.FAILED_EXAMPLE]},
    )
    | schema.error_responses(*schema.OF_BATCH, errors.UnknownModel),
    openapi_extra=openapi(EmbedParameters) | schema.several_clips(EmbedParameters),
)
async def embed_batch(request: Request) -> Response:
    """Results in the order of the files; a file that fails carries its error, the others succeed."""
    parameters = await read_request(EmbedParameters, request, _server(request).intake, many=True)

    def content(model: Model, sound: Sound) -> dict[str, Any]:
        return embed_content(model.card.name, sound, parameters)

    ask = Ask(parameters.frames, parameters.window_s, parameters.hop_s)
    return await _answer_batch(request, parameters.model, ask, content)


@routes.post(
    "/classify/batch",
    summary="Several clips to their tags",
    responses=schema.answer(
        schema.ClassifyBatchAnswer,
        {"results": [{"file": "a.wav"} | schema.CLASSIFY_EXAMPLE, schema.FAILED_EXAMPLE]},
    )
    | schema.error_responses(*schema.OF_BATCH, errors.UnknownModel, errors.UnknownHead),
    openapi_extra=openapi(ClassifyParameters) | schema.several_clips(ClassifyParameters),
)
async def classify_batch(request: Request) -> Response:
    """Results in the order of the files; a file that fails carries its error, the others succeed."""
    parameters = await read_request(ClassifyParameters, request, _server(request).intake, many=True)

    def content(model: Model, sound: Sound) -> dict[str, Any]:
        return classify_content(model, _head(model, parameters.head), sound, parameters)

    ask = Ask(False, parameters.window_s, parameters.hop_s)
    check = partial(_head, name=parameters.head)
    return await _answer_batch(request, parameters.model, ask, content, check=check)


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


@routes.post(
    "/models/reload",
    summary="Serve what the model folders hold now",
    responses=schema.answer(schema.ReloadAnswer, schema.RELOAD_EXAMPLE)
    | schema.error_responses(errors.Unauthorized, errors.InternalError),
)
async def reload_models(request: Request) -> Response:
    """Notice folders that appeared, changed or went. A model is replaced once the new one is loaded, warm and
    has passed its self-test; requests that have begun finish with the old one. All worker processes do so
    before the answer comes."""
    server = _server(request)
    own = await asyncio.shield(asyncio.create_task(server.models.reload()))
    others = [Reloaded(**orjson.loads(report)) for report in await server.siblings.ask()]
    report = together([own, *others])
    return json_answer({**dataclasses.asdict(report), "processes": 1 + len(others)})


@routes.get(
    "/models/{name}",
    summary="One model's card",
    responses=schema.answer(schema.ModelAnswer, schema.MODEL_EXAMPLE)
    | schema.error_responses(*schema.OF_MODELS, errors.BadRequest),
)
async def show_model(request: Request, name: str) -> Response:
    """Its card, heads and labels."""
    return json_answer(await asyncio.to_thread(_server(request).models.describe, name))


@routes.post(
    "/v1/embeddings",
    summary="Several clips to their embeddings, in the words of OpenAI's API",
    responses=schema.answer(openai_api.EmbeddingsAnswer, openai_api.EMBEDDINGS_EXAMPLE)
    | schema.error_responses(*schema.OF_EMBED, path=openai_api.PREFIX),
    openapi_extra=schema.clips_of_openai(openai_api.EmbeddingsParameters),
)
async def openai_embeddings(request: Request) -> Response:
    """Sounds in base64 or as data: URIs where OpenAI has text. One that fails fails the request."""
    server = _server(request)
    started, allowed_s = time.perf_counter(), deadline_s(request, server.settings.deadline_s)
    parameters, uploads = await openai_api.read_embeddings(request, server.intake)
    timings = _timings(request)
    timings.read = time.perf_counter() - started
    with contextlib.ExitStack() as closing:
        for upload in uploads:
            closing.callback(upload.close)
        async with Attended(request.receive, allowed_s):
            model = await server.model(request, parameters.model)
            openai_api.check_dimensions(parameters, model.card)
            found = await server.embedder.embed_all(model, uploads, Ask(), timings)
            sounds = openai_api.all_or_error(found)
            request.scope[EXCHANGE].audio_s = sum(sound.duration_s for sound in sounds)

            def build() -> Response:
                content = openai_api.embeddings_content(model.card, sounds, parameters.encoding_format)
                return json_answer(content)

            return await _answer(request, build, timings, is_large=len(sounds) > 1)


@routes.get(
    "/v1/models",
    summary="The models, in the words of OpenAI's API",
    responses=schema.answer(openai_api.ModelList, openai_api.MODELS_EXAMPLE)
    | schema.error_responses(errors.Unauthorized, errors.InternalError, path=openai_api.PREFIX),
)
async def openai_models(request: Request) -> Response:
    """Every model that is served."""
    described = await asyncio.to_thread(_server(request).models.describe_all)
    return json_answer({"object": "list", "data": list(map(openai_api.model_content, described))})


@routes.get(
    "/v1/models/{name}",
    summary="One model, in the words of OpenAI's API",
    responses=schema.answer(openai_api.OneModel, openai_api.MODEL_EXAMPLE)
    | schema.error_responses(*schema.OF_MODELS, errors.BadRequest, path=openai_api.PREFIX),
)
async def openai_model(request: Request, name: str) -> Response:
    """That it is served."""
    described = await asyncio.to_thread(_server(request).models.describe, name)
    return json_answer(openai_api.model_content(described))


@routes.get("/health/live", summary="Is the process alive?")
async def live() -> Response:
    """200 as long as the event loop turns."""
    return json_answer({"status": "alive"})


@routes.get("/health/ready", summary="Should requests be sent here?", responses=schema.NOT_READY)
async def ready(request: Request) -> Response:
    """200 once the default model is loaded and while the worker works; 503 before, and from SIGTERM on."""
    _server(request).mend()
    reason = _server(request).not_ready()
    if reason:
        return json_answer({"error": "not_ready", "detail": reason}, status=503)
    return json_answer({"status": "ready"})


@routes.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    return Response(_server(request).metrics.page(), media_type=CONTENT_TYPE)


@routes.post(
    "/logmel",
    summary="One clip to the picture of its log-mel",
    responses=schema.answer(schema.LogmelAnswer, schema.LOGMEL_EXAMPLE)
    | schema.error_responses(*schema.OF_EMBED),
    openapi_extra=openapi(LogmelParameters) | schema.one_clip(LogmelParameters),
)
async def logmel(request: Request) -> Response:
    """What the model sees of a sound, for eyes: the frames of a long clip are averaged into columns."""
    server = _server(request)
    parameters = await read_request(LogmelParameters, request, server.intake)
    model = server.loaded_model(request, parameters.model)
    allowed_s = deadline_s(request, server.settings.deadline_s)
    upload = await read_clip(request, server.intake)
    with contextlib.closing(upload):
        async with Attended(request.receive, allowed_s):
            model = model or await server.model(request, parameters.model)
            picture, duration_s = await server.embedder.draw(model, upload, columns=parameters.columns)
    request.scope[EXCHANGE].audio_s = duration_s
    return json_answer({"model": model.card.name, "duration_s": duration_s, **picture.content()})


@routes.get("/", include_in_schema=False)
async def home(request: Request) -> Response:
    return page.home(request)


def _server(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


async def _answer_one(
    request: Request,
    name: str | None,
    ask: Ask,
    build: Callable[[Model, Sound], Response],
    *,
    check: Callable[[Model], object] = lambda model: None,
) -> Response:
    """Read, embed and answer the one clip of a request. name: of the model; check: what the model must have,
    asked as soon as it is there."""
    server = _server(request)
    model = server.loaded_model(request, name)
    if model:
        check(model)
    timings = _timings(request)
    allowed_s = deadline_s(request, server.settings.deadline_s)
    upload = await _timed_read(read_clip(request, server.intake), timings)
    async with Attended(request.receive, allowed_s):
        with contextlib.closing(upload):
            if model is None:
                model = await server.model(request, name)
                check(model)
            sound = await server.embedder.embed(model, upload, ask, timings)
        request.scope[EXCHANGE].audio_s = sound.duration_s
        is_large = ask.frames or ask.window_s is not None
        return await _answer(request, partial(build, model, sound), timings, is_large=is_large)


async def _answer_batch(
    request: Request,
    name: str | None,
    ask: Ask,
    content: Callable[[Model, Sound], dict[str, Any]],
    *,
    check: Callable[[Model], object] = lambda model: None,
) -> Response:
    """As `_answer_one`, with all clips of a batch; a file's error takes the place of its content."""
    server = _server(request)
    model = server.loaded_model(request, name)
    if model:
        check(model)
    timings = _timings(request)
    allowed_s = deadline_s(request, server.settings.deadline_s)
    uploads = await _timed_read(read_clips(request, server.intake), timings)
    async with Attended(request.receive, allowed_s):
        with contextlib.ExitStack() as closing:
            for upload in uploads:
                closing.callback(upload.close)
            if model is None:
                model = await server.model(request, name)
                check(model)
            sounds = await server.embedder.embed_all(model, uploads, ask, timings)
        request.scope[EXCHANGE].audio_s = sum(each.duration_s for each in sounds if isinstance(each, Sound))
        content_of = partial(content, model)

        def result(upload: Upload, sound: Sound | ViolaError) -> dict[str, Any]:
            if isinstance(sound, ViolaError):
                server.metrics.errors.labels(sound.code).inc()
                return {"file": upload.name, "error": sound.code, "detail": str(sound)}
            return {"file": upload.name} | content_of(sound)

        def build() -> Response:
            return json_answer({"results": list(map(result, uploads, sounds))})

        return await _answer(request, build, timings, is_large=True)


async def _answer(
    request: Request, build: Callable[[], Response], timings: Timings, *, is_large: bool
) -> Response:
    """Build the answer, with the header Server-Timing: here, or where it may take long in a thread."""
    started = time.perf_counter()
    answer = await _server(request).embedder.in_thread(build, takes_long=True) if is_large else build()
    timings.encode = time.perf_counter() - started
    answer.headers["Server-Timing"] = timings.server_timing()
    return answer


def _timings(request: Request) -> Timings:
    """The stage times of a request, which its log line and its trace tell too."""
    timings = Timings(read=request.scope.get(READ_S, 0.0))
    request.scope[EXCHANGE].timings = timings
    return timings


async def _timed_read(reading: Awaitable[T], timings: Timings) -> T:
    started = time.perf_counter()
    read = await reading
    timings.read += time.perf_counter() - started
    return read


def _head(model: Model, name: str | None) -> Head:
    """The head by its name, the first of the card without one. Raises UnknownHead with what there is."""
    heads = model.heads
    if not heads:
        raise UnknownHead(
            f"the model `{model.card.name}` has no heads; `python -m training fit-head` makes one"
        )
    name = name or next(iter(heads))
    if name not in heads:
        there = ", ".join(f"`{other}`" for other in heads)
        raise UnknownHead(f"the model `{model.card.name}` has no head `{name}`; it has {there}")
    return heads[name]


def _load_model(folder: Path, *, settings: Settings, threads: ThreadPlan) -> Model:
    started = time.perf_counter()
    model = Model.load(
        folder,
        device=settings.device,
        precision=settings.precision,
        threads=threads.inference,
        lanes=threads.lanes,
        max_batch=settings.max_batch_items,
        tensorrt_cache=settings.tensorrt_cache,
    )
    model.warm_up(max_batch_frames=settings.max_batch_frames, max_batch_items=settings.max_batch_items)
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
    return model


def _tell_model(metrics: Metrics, name: str, model: Model | None) -> None:
    """Under this name that model is served from now on."""
    if model is None:
        metrics.forget_model(name)
        return
    metrics.tell_model(
        name,
        version=model.card.version,
        encoder=model.card.encoder.name,
        precision=model.precision,
        device=model.device,
        embedding_size=model.card.embedding_size,
    )


async def _reload_for_sibling(models: Registry) -> bytes:
    return orjson.dumps(await models.reload())


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Load the models, then serve, with the limits for connections as state; at the end finish what was
    accepted."""
    server: Server = app.state.server
    log.info("threads: %s", server.plan.reason)
    server.embedder.start()
    await server.siblings.open()
    await server.models.preload(server.settings.preload)
    _spare_the_collector_what_stays()
    sampling = asyncio.create_task(server.metrics.keep_sampled())
    turn_away = partial(_turn_away, server, asyncio.get_running_loop())
    with draining(turn_away, delay_s=server.settings.drain_s):
        yield {LIMITS: _limits(server.settings, server.metrics)}
    server.turn_away()
    await server.siblings.close()
    await server.embedder.drain()
    sampling.cancel()
    if server.tracer is not None:
        await asyncio.to_thread(server.tracer.close)


def _turn_away(server: Server, loop: asyncio.AbstractEventLoop) -> None:
    """From now on this process is not ready, and new connections are for its siblings."""
    server.turn_away()
    if isinstance(loop, Loop):
        loop.give_way()


def _limits(settings: Settings, metrics: Metrics) -> Limits:
    """For each connection; whatever it is cut for is counted, from 0 on."""
    counters = {reason: metrics.connections_cut.labels(reason) for reason in get_args(Cut)}
    return Limits(
        head_s=settings.head_timeout_s,
        answer_s=settings.answer_timeout_s,
        on_cut=lambda reason: counters[reason].inc(),
    )


def _spare_the_collector_what_stays() -> None:
    """What is loaded by now lives as long as the process: going through it again and again for garbage
    is work in vain."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _document_keys(app: FastAPI, settings: Settings) -> None:
    """Add the two ways to show a key to /openapi.json, where keys are asked for."""
    if not (settings.api_keys or settings.api_keys_file):
        return
    generate = app.openapi

    def with_keys() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {})["securitySchemes"] = schema.KEY_SCHEMES
        document["security"] = [{name: []} for name in schema.KEY_SCHEMES]
        return document

    app.openapi = with_keys  # type: ignore[method-assign]
