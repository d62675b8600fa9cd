"""Clips in, their embeddings out: /embed, of several /embed/batch; texts in, theirs out: /embed/text."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import BadRequest, UnknownModel
from service.http.cancellation import deadline_s
from service.http.clip_request import Build, ClipRequest, answer_batch, answer_clip, answer_uploads
from service.http.json_body import read_request
from service.http.openapi_document import BATCH_ERRORS, EMBED_ERRORS, batch_route, clip_route, text_route
from service.http.parameters import EmbedParameters, TextParameters
from service.http.request_record import RECORD
from service.http.responses import (
    embed_content,
    json_response,
    npy_response,
    requested_array,
    text_content,
    wants_npy,
)
from service.http.schemas import (
    EMBED_EXAMPLE,
    EMBED_TEXT_EXAMPLE,
    EmbedAnswer,
    EmbedBatchAnswer,
    EmbedTextAnswer,
)
from service.http.server import server_of
from service.http.text_request import embed_texts, read_texts
from service.http.upload import Upload
from service.inference.embedder import EmbeddedClip, EmbedOptions, Timings
from service.inference.model import Model

router = APIRouter()


@router.post(
    "/embed",
    **clip_route(
        "One clip to its embedding",
        parameters=EmbedParameters,
        answer=EmbedAnswer,
        example=EMBED_EXAMPLE,
        errors=EMBED_ERRORS,
        npy=True,
    ),
)
async def embed(request: Request) -> Response:
    """The clip's vector; with `Accept: application/x-npy` the array itself: the vector
    (embedding_size,), with frames=true the frames (n, embedding_size), with window_s the windows (n,
    embedding_size)."""
    parameters = await read_request(EmbedParameters, request, server_of(request).budget)
    as_npy = wants_npy(",".join(request.headers.getlist("accept")))
    if as_npy and parameters.frames and parameters.window_s:
        raise BadRequest("an array holds frames or windows, not both; leave one out, or ask for JSON")
    if as_npy and parameters.logmel_columns:
        raise BadRequest("an array holds no picture; leave out logmel_columns, or ask for JSON")

    def respond(model: Model, clip: EmbeddedClip) -> Response:
        if as_npy:
            return npy_response(requested_array(clip, parameters), dtype=parameters.dtype)
        return json_response(_content(model, clip, parameters=parameters))

    return await answer_clip(request, _clip_request(parameters), respond)


@router.post(
    "/embed/batch",
    **batch_route(
        "Several clips to their embeddings",
        parameters=EmbedParameters,
        answer=EmbedBatchAnswer,
        example=EMBED_EXAMPLE,
        errors=(*BATCH_ERRORS, UnknownModel),
    ),
)
async def embed_batch(request: Request) -> Response:
    """Results in the order of the files; a file that fails carries its error, the others succeed."""
    parameters = await read_request(EmbedParameters, request, server_of(request).budget, many=True)
    return await answer_batch(request, _clip_request(parameters), partial(_content, parameters=parameters))


@router.post(
    "/embed/text",
    **text_route(
        "Texts to embeddings among those of sounds",
        parameters=TextParameters,
        answer=EmbedTextAnswer,
        example=EMBED_TEXT_EXAMPLE,
    ),
)
async def embed_text(request: Request) -> Response:
    """Of a model with a text tower. Results in the order of the texts; one that cannot be embedded fails the
    request. With `Accept: application/x-npy` the array (n, embedding_size) itself."""
    server = server_of(request)
    started, allowed_s = time.perf_counter(), deadline_s(request, server.settings.deadline_s)
    parameters, texts, body = await read_texts(request, server.budget)
    try:
        request.scope[RECORD].timings = timings = Timings(read=time.perf_counter() - started)
        as_npy = wants_npy(",".join(request.headers.getlist("accept")))

        async def embed(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
            made = await embed_texts(server, model, texts, normalize=parameters.normalize, timings=timings)
            if as_npy:
                return lambda: npy_response(made.vectors, dtype=parameters.dtype)
            return lambda: json_response(text_content(model.card.name, made, parameters))

        wanted = ClipRequest(parameters.model, EmbedOptions())
        return await answer_uploads(
            request, wanted, [], embed, timings=timings, allowed_s=allowed_s, is_large=len(texts) > 1
        )
    finally:
        body.close()


def _clip_request(parameters: EmbedParameters) -> ClipRequest:
    options = EmbedOptions(
        frames=parameters.frames,
        window_s=parameters.window_s,
        hop_s=parameters.hop_s,
        logmel_columns=parameters.logmel_columns,
        normalize=parameters.normalize,
        dimensions=parameters.dimensions,
    )
    return ClipRequest(parameters.model, options)


def _content(model: Model, clip: EmbeddedClip, *, parameters: EmbedParameters) -> dict[str, Any]:
    return embed_content(model.card.name, clip, parameters)
