"""The Open Inference Protocol's routes, for clients of KServe and Triton: /v2 and what lies below it."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import BadRequest, InternalError, ModelUnavailable, Unauthorized
from service.http import open_inference
from service.http.cancellation import deadline_s
from service.http.clip_request import Build, ClipRequest, all_or_error, answer_uploads
from service.http.error_shape import OPEN_INFERENCE
from service.http.openapi_document import (
    CLASSIFY_ERRORS,
    DEADLINE,
    MODEL_ERRORS,
    error_responses,
    infer_body,
    ok_response,
)
from service.http.request_record import RECORD
from service.http.responses import json_response
from service.http.routes.health import why_not_ready
from service.http.server import server_of
from service.http.tensors import OCTETS, tensor_response
from service.http.upload import Upload
from service.inference.embedder import EmbeddedClip, EmbedOptions, Timings
from service.inference.model import Model

router = APIRouter()
errors = partial(error_responses, path=OPEN_INFERENCE)


@router.get(
    "/v2",
    summary="The server, in the words of the Open Inference Protocol",
    responses=ok_response(
        open_inference.ServerMetadata,
        {"name": "viola", "version": "0.1.0", "extensions": list(open_inference.EXTENSIONS)},
    )
    | errors(Unauthorized, InternalError),
)
async def server_metadata(request: Request) -> Response:
    """Its version, and the extensions of the protocol that it has."""
    version = request.app.version
    return json_response({"name": "viola", "version": version, "extensions": list(open_inference.EXTENSIONS)})


@router.get(
    "/v2/health/live",
    summary="Is the process alive? In the words of the Open Inference Protocol",
    responses=ok_response(open_inference.ServerLive, {"live": True}),
)
async def live() -> Response:
    """As /health/live."""
    return json_response({"live": True})


NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "`not_ready`",
        "content": {
            "application/json": {
                "example": {"error": "the server is shutting down", "code": "not_ready"},
            }
        },
    }
}


@router.get(
    "/v2/health/ready",
    summary="Should requests be sent here? In the words of the Open Inference Protocol",
    responses=ok_response(open_inference.ServerReady, {"ready": True}) | NOT_READY,
)
async def ready(request: Request) -> Response:
    """As /health/ready."""
    if reason := why_not_ready(request):
        return json_response({"error": reason, "code": "not_ready"}, status=503)
    return json_response({"ready": True})


@router.get(
    "/v2/models/{name}",
    summary="What a model takes and gives, in the words of the Open Inference Protocol",
    responses=ok_response(open_inference.ModelMetadata, open_inference.METADATA_EXAMPLE)
    | errors(*MODEL_ERRORS, BadRequest),
)
async def model_metadata(request: Request, name: str) -> Response:
    """Its inputs, of which a request has one, and its outputs."""
    described = await asyncio.to_thread(server_of(request).models.describe, name)
    return json_response(open_inference.metadata_of(described))


@router.get(
    "/v2/models/{name}/ready",
    summary="Are a model's requests answered?",
    responses=ok_response(open_inference.ModelReady, {"name": "byola", "ready": True})
    | errors(*MODEL_ERRORS, BadRequest),
)
async def model_ready(request: Request, name: str) -> Response:
    """200 where it is served; one that is not loaded yet is loaded by its first request."""
    model = server_of(request).loaded_model(request, name)
    if model is not None and model.failure:
        raise ModelUnavailable(f"the model `{model.card.name}` {model.failure}")
    return json_response({"name": request.scope[RECORD].model, "ready": True})


@router.post(
    "/v2/models/{name}/infer",
    summary="Clips to embeddings and scores, in the words of the Open Inference Protocol",
    responses=ok_response(open_inference.InferAnswer, open_inference.INFER_EXAMPLE, binary=OCTETS)
    | errors(*CLASSIFY_ERRORS),
    openapi_extra=infer_body(open_inference.INFER_BODY) | {"parameters": [DEADLINE]},
)
async def infer(request: Request, name: str) -> Response:
    """Encoded files as `audio` or samples as `samples`; the outputs that are asked for, else all. One clip
    that fails fails the request."""
    server = server_of(request)
    started, allowed_s = time.perf_counter(), deadline_s(request, server.settings.deadline_s)
    server.loaded_model(request, name)  # one that is not known is refused before the body is read
    wanted, uploads = await open_inference.read_infer(request, server.budget, server.models.cards[name])
    request.scope[RECORD].timings = timings = Timings(read=time.perf_counter() - started)
    zero_shot = server.zero_shot(wanted.parameters.labels, wanted.parameters.template)

    async def embed(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
        heads = wanted.heads_of(model, zero_shot(model) if zero_shot else None)
        options = EmbedOptions(
            head_of=(lambda _: heads) if heads else None,
            normalize=wanted.parameters.normalize,
            dimensions=wanted.parameters.dimensions,
        )
        options.check(model)
        clips: list[EmbeddedClip] = []
        if len(uploads) == 1:
            clips = [await server.embedder.embed(model, uploads[0].source, options, timings)]
        else:
            sources = [upload.source for upload in uploads]
            sounds = await server.embedder.embed_all(model, sources, options, timings)
            clips = all_or_error(sounds, wanted.inputs[0].name)
        request.scope[RECORD].audio_s = sum(clip.duration_s for clip in clips)
        content: dict[str, Any] = {"model_name": model.card.name, "model_version": model.card.version}
        if wanted.id:
            content["id"] = wanted.id
        return lambda: tensor_response(content, open_inference.outputs_of(wanted, heads, clips))

    return await answer_uploads(
        request,
        ClipRequest(name, EmbedOptions(), zero_shot),
        uploads,
        embed,
        timings=timings,
        allowed_s=allowed_s,
        is_large=len(uploads) > 1,
    )
