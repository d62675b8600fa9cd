"""What clients of OpenAI's API send in, what they expect out: /v1/embeddings and /v1/models."""

import asyncio
import time
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import BadRequest, InternalError, Unauthorized
from service.http import openai_api
from service.http.cancellation import deadline_s
from service.http.clip_request import Build, ClipRequest, all_or_error, answer_uploads
from service.http.error_shape import OPENAI
from service.http.openapi_document import (
    EMBED_ERRORS,
    MODEL_ERRORS,
    TEXT_ERRORS,
    error_responses,
    ok_response,
    openai_body,
)
from service.http.request_record import RECORD
from service.http.responses import Array, json_response
from service.http.server import server_of
from service.http.text_request import embed_texts
from service.http.upload import Upload
from service.inference.embedder import EmbedOptions, Timings
from service.inference.model import Model

router = APIRouter()


@router.post(
    "/v1/embeddings",
    summary="Several clips or texts to their embeddings, in the words of OpenAI's API",
    responses=ok_response(openai_api.EmbeddingsAnswer, openai_api.EMBEDDINGS_EXAMPLE)
    | error_responses(*EMBED_ERRORS, *TEXT_ERRORS, path=OPENAI),
    openapi_extra=openai_body(openai_api.EmbeddingsParameters),
)
async def openai_embeddings(request: Request) -> Response:
    """Sounds in base64 or as data: URIs where OpenAI has text; of a model with a text tower texts, too. One
    that fails fails the request."""
    server = server_of(request)
    started, allowed_s = time.perf_counter(), deadline_s(request, server.settings.deadline_s)
    parameters, inputs = await openai_api.read_embeddings(
        request, server.budget, has_text=server.models.has_text
    )
    request.scope[RECORD].timings = timings = Timings(read=time.perf_counter() - started)
    options = EmbedOptions(normalize=parameters.normalize, dimensions=parameters.dimensions)
    wanted = ClipRequest(parameters.model, options)

    async def embed(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
        vectors: dict[int, Array] = {}
        n_tokens = 0
        if inputs.texts:
            made = await embed_texts(
                server,
                model,
                inputs.texts,
                names=inputs.text_names,
                normalize=bool(parameters.normalize),
                timings=timings,
            )
            vectors |= zip(inputs.text_places, made.vectors, strict=True)
            n_tokens += sum(made.n_tokens)
        if uploads:
            sources = [upload.source for upload in uploads]
            sounds = await server.embedder.embed_all(model, sources, wanted.options, timings)
            clips = all_or_error(sounds, openai_api.INPUT, inputs.sound_places)
            request.scope[RECORD].audio_s = sum(clip.duration_s for clip in clips)
            vectors |= ((i, clip.vector) for i, clip in zip(inputs.sound_places, clips, strict=True))
            n_tokens += sum(openai_api.frames_of(model.card, clip.duration_s) for clip in clips)
        in_order = [vectors[i] for i in range(len(inputs))]
        return lambda: json_response(
            openai_api.embeddings_content(model.card, in_order, parameters.encoding_format, n_tokens=n_tokens)
        )

    try:
        return await answer_uploads(
            request,
            wanted,
            inputs.sounds,
            embed,
            timings=timings,
            allowed_s=allowed_s,
            is_large=len(inputs) > 1,
        )
    finally:
        inputs.close()


@router.get(
    "/v1/models",
    summary="The models, in the words of OpenAI's API",
    responses=ok_response(openai_api.ModelList, openai_api.MODELS_EXAMPLE)
    | error_responses(Unauthorized, InternalError, path=OPENAI),
)
async def openai_models(request: Request) -> Response:
    """Every model that is served."""
    described = await asyncio.to_thread(server_of(request).models.describe_all)
    return json_response({"object": "list", "data": list(map(openai_api.model_content, described))})


@router.get(
    "/v1/models/{name}",
    summary="One model, in the words of OpenAI's API",
    responses=ok_response(openai_api.OneModel, openai_api.MODEL_EXAMPLE)
    | error_responses(*MODEL_ERRORS, BadRequest, path=OPENAI),
)
async def openai_model(request: Request, name: str) -> Response:
    """That it is served."""
    described = await asyncio.to_thread(server_of(request).models.describe, name)
    return json_response(openai_api.model_content(described))
