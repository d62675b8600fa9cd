"""Sounds of Hugging Face's clients in, labels or vectors out: /models/{name}/pipeline/<task>."""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.http import huggingface_api
from service.http.cancellation import deadline_s
from service.http.clip_request import Build, ClipRequest, all_or_error, answer_uploads, chosen_once
from service.http.huggingface_api import AudioClassificationParameters, FeatureExtractionParameters
from service.http.openapi_document import (
    CLASSIFY_ERRORS,
    EMBED_ERRORS,
    error_responses,
    ok_response,
    pipeline_body,
    query_parameters,
)
from service.http.request_record import RECORD
from service.http.responses import json_response, numbers
from service.http.server import server_of
from service.http.upload import Upload
from service.inference.embedder import EmbeddedClip, EmbedOptions, Timings
from service.inference.heads import Head, best_tags
from service.inference.model import Model
from service.inference.tags import clip_scores

router = APIRouter()
errors = partial(error_responses, path="/models/{name}/pipeline/")


@router.post(
    "/models/{name}/pipeline/audio-classification",
    summary="A clip to its labels, in the words of Hugging Face's API",
    responses=ok_response(list[huggingface_api.LabelScore], huggingface_api.CLASSIFICATION_EXAMPLE)
    | errors(*CLASSIFY_ERRORS),
    openapi_extra=query_parameters(AudioClassificationParameters)
    | pipeline_body(AudioClassificationParameters),
)
async def audio_classification(request: Request, name: str) -> Response:
    """The labels of a head with the scores of /classify, best first."""
    server = server_of(request)
    started, allowed_s = time.perf_counter(), deadline_s(request, server.settings.deadline_s)
    server.loaded_model(request, name)  # one that is not known is refused before the body is read
    parameters, uploads = await huggingface_api.read_pipeline(
        AudioClassificationParameters, request, server.budget, many=False
    )
    request.scope[RECORD].timings = timings = Timings(read=time.perf_counter() - started)

    def choose(model: Model) -> Head:
        head = model.head(parameters.head)
        parameters.check(head)
        return head

    head_of = chosen_once(choose)
    options = EmbedOptions(head_of=head_of)

    async def embed(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
        clip = await server.embedder.embed(model, uploads[0].source, options, timings)
        request.scope[RECORD].audio_s = clip.duration_s
        return partial(_labels, head_of(model), clip, parameters)

    wanted = ClipRequest(name, options)
    return await answer_uploads(
        request, wanted, uploads, embed, timings=timings, allowed_s=allowed_s, is_large=False
    )


@router.post(
    "/models/{name}/pipeline/feature-extraction",
    summary="Clips to their embeddings, in the words of Hugging Face's API",
    responses=ok_response(list[list[float]], huggingface_api.FEATURES_EXAMPLE) | errors(*EMBED_ERRORS),
    openapi_extra=query_parameters(FeatureExtractionParameters) | pipeline_body(FeatureExtractionParameters),
)
async def feature_extraction(request: Request, name: str) -> Response:
    """One vector per clip, in a list also where there is one. A clip that fails fails the request."""
    server = server_of(request)
    started, allowed_s = time.perf_counter(), deadline_s(request, server.settings.deadline_s)
    server.loaded_model(request, name)  # as above
    parameters, uploads = await huggingface_api.read_pipeline(
        FeatureExtractionParameters, request, server.budget, many=True
    )
    request.scope[RECORD].timings = timings = Timings(read=time.perf_counter() - started)
    options = EmbedOptions(normalize=parameters.normalize, dimensions=parameters.dimensions)

    async def embed(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
        if len(uploads) == 1:
            clips = [await server.embedder.embed(model, uploads[0].source, options, timings)]
        else:
            sources = [upload.source for upload in uploads]
            sounds = await server.embedder.embed_all(model, sources, options, timings)
            clips = all_or_error(sounds, huggingface_api.INPUTS)
        request.scope[RECORD].audio_s = sum(clip.duration_s for clip in clips)
        return partial(_vectors, clips)

    return await answer_uploads(
        request,
        ClipRequest(name, options),
        uploads,
        embed,
        timings=timings,
        allowed_s=allowed_s,
        is_large=len(uploads) > 1,
    )


def _labels(head: Head, clip: EmbeddedClip, parameters: AudioClassificationParameters) -> Response:
    """None where the head knows nothing like the clip."""
    scored = clip_scores(head, clip.embedding)
    tags = best_tags(head, scored.scores, top_k=parameters.top_k, threshold=0) if scored.is_known else []
    return json_response([{"label": tag.label, "score": tag.score} for tag in tags])


def _vectors(clips: Sequence[EmbeddedClip]) -> Response:
    vectors = np.stack([clip.vector for clip in clips])
    return json_response(numbers(vectors, encoding="float", dtype="float32"))
