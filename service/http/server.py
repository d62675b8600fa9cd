"""Settings in, what all routes share out: models, embedder, budget of uploads, and whether it is ready."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, get_args

import orjson
from starlette.requests import HTTPConnection

from service.errors import Overloaded
from service.http.api_keys import Access
from service.http.request_body import UploadBudget
from service.http.request_record import RECORD
from service.http.streams import EndReason, Streams
from service.http.tracing import Tracer
from service.inference.embedder import Embedder, Job
from service.inference.model import Model
from service.inference.registry import Registry, load_warm
from service.inference.text import TextEncoder
from service.inference.text_worker import TextWorker
from service.inference.threads import ThreadPlan, plan
from service.inference.windows import Piece, Window
from service.inference.zero_shot import ZeroShot
from service.process.broadcast import Broadcast
from service.process.metrics import Metrics
from service.process.workers import Slot
from service.settings import Settings
from service.teaching.teacher import Teacher

log = logging.getLogger(__name__)

# A batch takes a tenth of a second, on a slow machine one; warming up happens before the server is ready.
STUCK_S = 20.0


@dataclass
class Server:
    """One process's; a route gets it from `server_of(request)`."""

    settings: Settings
    plan: ThreadPlan
    metrics: Metrics
    models: Registry
    embedder: Embedder
    texts: TextWorker
    budget: UploadBudget
    broadcast: Broadcast
    access: Access
    streams: Streams
    teacher: Teacher
    tracer: Tracer | None = None
    is_draining: bool = False
    recovering: asyncio.Task[None] | None = None

    @classmethod
    def from_settings(cls, settings: Settings, slot: Slot | None = None) -> Self:
        """Nothing is loaded and no thread runs yet. slot: of this worker, where there are several. Raises
        ApiKeysFileError."""
        threads, metrics = plan(settings), Metrics(slot)
        load = partial(load_warm, settings=settings, threads=threads)
        on_change = partial(_publish_model, metrics)
        embedder = Embedder(settings, threads, metrics)
        teacher = Teacher(settings, embedder, metrics)
        models = Registry(
            settings.models_dir,
            default=settings.model,
            load=load,
            on_change=on_change,
            taught=teacher.taught,
        )
        budget = UploadBudget(settings.max_body_bytes, settings.upload_timeout_s, settings.max_held_bytes)
        broadcast = Broadcast(slot, partial(_reload_for_another_worker, models))
        access = Access.from_settings(settings)
        streams = Streams(embedder, most=settings.max_streams)
        texts = TextWorker(settings.max_queue_s, metrics)
        server = cls(
            settings, threads, metrics, models, embedder, texts, budget, broadcast, access, streams, teacher
        )
        metrics.watch(metrics.streams, lambda: len(streams))
        for reason in get_args(EndReason):
            metrics.stream_ends.labels(reason)
        metrics.watch(metrics.queue_limit, lambda: embedder.batcher.limit_cost)
        metrics.watch(metrics.ready, lambda: server.not_ready() is None)
        return server

    def loaded_model(self, request: HTTPConnection, name: str | None) -> Model | None:
        """As `model`, at once: None where it is known and must be loaded first, which takes seconds, or where
        its heads were taught anew."""
        name = name or self.models.default
        model = self.models.loaded.get(name)
        if model is None:
            self.models.check_known(name)
        request.scope[RECORD].model = name
        return model if model is None or self.teacher.is_current(model) else None

    async def model(self, request: HTTPConnection, name: str | None) -> Model:
        """The model that a request asks for, whose record it is written into, with all that it was taught.
        Raises UnknownModel and ModelUnavailable."""
        model = await self.models.get(name)
        await self.teacher.update(model)
        request.scope[RECORD].model = model.card.name
        return model

    def text_of(self, model: Model) -> TextEncoder:
        """What embeds texts in the model's space. Raises NoText, with the models that have such."""
        return model.text_encoder(self.models.with_text())

    def zero_shot(self, labels: Sequence[str] | None, template: str | None) -> ZeroShot | None:
        """What scores a request's labels; None where it has none."""
        return None if labels is None else ZeroShot(self.texts, self.text_of, labels, template)

    def stop_admitting(self) -> None:
        """From now on the server is not ready; it goes on answering requests."""
        self.is_draining = True
        self.streams.refuse()

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

    def recover(self) -> None:
        """If the default model has failed, begin to recover it, one attempt at a time. Returns at once: the
        queue may be long, or the worker stuck."""
        model = self.models.loaded.get(self.models.default)
        if model is None or model.failure is None:
            return
        if self.recovering is None or self.recovering.done():
            self.recovering = asyncio.create_task(self._recover(model))

    async def _recover(self, model: Model) -> None:
        """Embed the test signal with it, which opens its session again: nobody sends requests, which would do
        the same, to a server that is not ready."""
        logmel = model.probe_logmel()
        job = Job(model, Piece(Window(0, logmel.shape[1]), logmel), frames=False)
        try:
            await self.embedder.batcher.submit([job])
        except Overloaded:  # it was tried a moment ago; the log has what came of it
            pass
        except Exception as error:  # of onnxruntime
            log.warning("the default model is still not well: %s", error)


def server_of(request: HTTPConnection) -> Server:
    """The server whose application answers the request."""
    server: Server = request.app.state.server
    return server


def _publish_model(metrics: Metrics, name: str, model: Model | None) -> None:
    """In the metrics: the model that is served under this name from now on, if any."""
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


async def _reload_for_another_worker(models: Registry) -> bytes:
    return orjson.dumps(await models.reload())
