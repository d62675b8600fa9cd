"""A request with clips in, its answer out: the one way that all routes with embeddings go.

model known? ─► body read ─┬─ CancelScope: until the deadline, and while the client is there ──┐
                           │  model loaded ─► clips embedded ─► uploads closed ─► answer built │
                           └───────────────────────────────────────────────────────────────────┘

Labels in words are embedded before the clips, and texts in place of them.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from service.errors import ViolaError
from service.http.cancellation import CancelScope, deadline_s
from service.http.json_body import READ_S
from service.http.request_record import RECORD
from service.http.responses import json_response
from service.http.server import server_of
from service.http.upload import Upload, read_clip, read_clips
from service.inference.embedder import EmbeddedClip, EmbedOptions, Timings
from service.inference.model import Model
from service.inference.zero_shot import ZeroShot

Chosen = TypeVar("Chosen")
Build = Callable[[], Response]  # an answer, of clips that are embedded
Embed = Callable[[Model, Sequence[Upload], Timings], Awaitable[Build]]


@dataclass(frozen=True)
class ClipRequest:
    """What a request asks for. model: its name, None for the default one; options: checked as soon as the
    model is there; zero_shot: where their head is one of labels, which are embedded first."""

    model: str | None
    options: EmbedOptions
    zero_shot: ZeroShot | None = None

    def check(self, model: Model) -> None:
        """Raises BadRequest, UnknownHead or NoText where the model lacks what is asked for."""
        if self.zero_shot is None:
            self.options.check(model)
        else:
            self.options.check_vectors(model)
            self.zero_shot.check(model)


async def answer_clip(
    request: Request, wanted: ClipRequest, respond: Callable[[Model, EmbeddedClip], Response]
) -> Response:
    """Read and embed the one clip of a request; the answer is what `respond` makes of it."""
    server = server_of(request)

    async def read() -> list[Upload]:
        return [await read_clip(request, server.budget)]

    async def embed(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
        clip = await server.embedder.embed(model, uploads[0].source, wanted.options, timings)
        request.scope[RECORD].audio_s = clip.duration_s
        return partial(respond, model, clip)

    options = wanted.options
    is_large = options.frames or options.events or options.window_s is not None
    return await _answer(request, wanted, read, embed, is_large=is_large)


async def answer_batch(
    request: Request, wanted: ClipRequest, content: Callable[[Model, EmbeddedClip], dict[str, Any]]
) -> Response:
    """Read and embed all clips of a batch; the answer holds the content of each, or its error, in order."""
    server = server_of(request)

    async def embed(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
        sources = [upload.source for upload in uploads]
        clips = await server.embedder.embed_all(model, sources, wanted.options, timings)
        request.scope[RECORD].audio_s = sum(
            clip.duration_s for clip in clips if isinstance(clip, EmbeddedClip)
        )

        def result(upload: Upload, clip: EmbeddedClip | ViolaError) -> dict[str, Any]:
            if isinstance(clip, ViolaError):
                server.metrics.errors.labels(clip.code).inc()
                return {"file": upload.name, "error": clip.code, "detail": str(clip)}
            return {"file": upload.name} | content(model, clip)

        return lambda: json_response({"results": list(map(result, uploads, clips))})

    return await _answer(request, wanted, partial(read_clips, request, server.budget), embed, is_large=True)


def chosen_once(choose: Callable[[Model], Chosen]) -> Callable[[Model], Chosen]:
    """A function that chooses a model's head or heads, and from then on gives the same: what a model is
    taught while a request is under way does not change it under the request's feet."""
    found: dict[int, Chosen] = {}

    def chosen(model: Model) -> Chosen:
        if id(model) not in found:
            found[id(model)] = choose(model)
        return found[id(model)]

    return chosen


def all_or_error(
    sounds: Sequence[EmbeddedClip | ViolaError], name: str, places: Sequence[int] | None = None
) -> list[EmbeddedClip]:
    """Where one failure fails the request: raises it, with the place in its sentence. name: of the list;
    places: of the sounds in it, where it holds more than them."""
    for index, sound in zip(places or range(len(sounds)), sounds, strict=True):
        if isinstance(sound, ViolaError):
            if len(sounds) > 1 or index:
                sound.args = (f"`{name}[{index}]`: {sound}",)
            raise sound
    return [sound for sound in sounds if isinstance(sound, EmbeddedClip)]


async def _answer(
    request: Request,
    wanted: ClipRequest,
    read: Callable[[], Awaitable[list[Upload]]],
    embed: Embed,
    *,
    is_large: bool,
) -> Response:
    """Read the uploads, and answer them. What can be refused before the body is read is refused now."""
    server = server_of(request)
    model = server.loaded_model(request, wanted.model)
    if model:
        wanted.check(model)
    request.scope[RECORD].timings = timings = Timings(read=request.scope.get(READ_S, 0.0))
    allowed_s = deadline_s(request, server.settings.deadline_s)
    started = time.perf_counter()
    uploads = await read()
    timings.read += time.perf_counter() - started
    return await answer_uploads(
        request, wanted, uploads, embed, model=model, timings=timings, allowed_s=allowed_s, is_large=is_large
    )


async def answer_uploads(
    request: Request,
    wanted: ClipRequest,
    uploads: Sequence[Upload],
    embed: Embed,
    *,
    timings: Timings,
    allowed_s: float,
    is_large: bool,
    model: Model | None = None,
) -> Response:
    """Embed what was read and build the answer, all within allowed_s seconds. is_large: building it may take
    long, and is done in a thread; model: where it is loaded already, and checked."""
    server = server_of(request)
    async with CancelScope(request.receive, allowed_s):
        try:
            if model is None:
                model = await server.model(request, wanted.model)
                wanted.check(model)
            if wanted.zero_shot is not None:
                labels = await wanted.zero_shot.prepare(model)
                timings.queue += labels.waited_s
                timings.inference += labels.ran_s
            build = await embed(model, uploads, timings)
        finally:
            for upload in uploads:
                upload.close()
        started = time.perf_counter()
        answer = await server.embedder.in_thread(build, takes_long=True) if is_large else build()
        timings.encode = time.perf_counter() - started
        answer.headers["Server-Timing"] = timings.server_timing()
        return answer
