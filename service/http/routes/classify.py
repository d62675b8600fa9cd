"""One clip in, its tags out: /classify; several clips in, the tags of each out: /classify/batch."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import HeadOutdated, NoText, TextTooLong, UnknownHead, UnknownModel
from service.http.clip_request import ClipRequest, answer_batch, answer_clip, chosen_once
from service.http.json_body import read_request
from service.http.openapi_document import BATCH_ERRORS, CLASSIFY_ERRORS, batch_route, clip_route
from service.http.parameters import ClassifyParameters
from service.http.responses import classify_content, json_response
from service.http.schemas import CLASSIFY_EXAMPLE, ClassifyAnswer, ClassifyBatchAnswer
from service.http.server import server_of
from service.inference.embedder import EmbeddedClip, EmbedOptions
from service.inference.heads import Head
from service.inference.model import Model

router = APIRouter()
HeadOf = Callable[[Model], Head]

NUMBER_CHARACTERS = 11  # of a number of a vector in JSON
TAG_CHARACTERS = 32  # of a tag in JSON, beside its label


@router.post(
    "/classify",
    **clip_route(
        "One clip to its tags",
        parameters=ClassifyParameters,
        answer=ClassifyAnswer,
        example=CLASSIFY_EXAMPLE,
        errors=CLASSIFY_ERRORS,
    ),
)
async def classify(request: Request) -> Response:
    """The tags of a head, or of labels in words, with their scores, best first; with window_s also a
    timeline, with segments from when to when each label is heard, with logmel_columns a picture of the
    log-mel: all from one decoding."""
    parameters = await read_request(ClassifyParameters, request, server_of(request).budget)
    wanted, head_of = _clip_request(request, parameters)

    def respond(model: Model, clip: EmbeddedClip) -> Response:
        return json_response(classify_content(model, head_of(model), clip, parameters))

    return await answer_clip(request, wanted, respond)


@router.post(
    "/classify/batch",
    **batch_route(
        "Several clips to their tags",
        parameters=ClassifyParameters,
        answer=ClassifyBatchAnswer,
        example=CLASSIFY_EXAMPLE,
        errors=(*BATCH_ERRORS, UnknownModel, UnknownHead, HeadOutdated, NoText, TextTooLong),
    ),
)
async def classify_batch(request: Request) -> Response:
    """Results in the order of the files; a file that fails carries its error, the others succeed."""
    parameters = await read_request(ClassifyParameters, request, server_of(request).budget, many=True)
    wanted, head_of = _clip_request(request, parameters)

    def content(model: Model, clip: EmbeddedClip) -> dict[str, Any]:
        return classify_content(model, head_of(model), clip, parameters)

    return await answer_batch(request, wanted, content)


def _clip_request(request: Request, parameters: ClassifyParameters) -> tuple[ClipRequest, HeadOf]:
    """What is asked for, and the head that scores it: one of the model's, or one of labels."""
    zero_shot, tag_numbers = server_of(request).zero_shot(parameters.labels, parameters.template), 0.0
    head_of: HeadOf = zero_shot or chosen_once(lambda model: model.head(parameters.head))
    if parameters.labels is not None:
        longest = sorted(map(len, parameters.labels), reverse=True)[: parameters.top_k]
        tag_numbers = sum(TAG_CHARACTERS + length for length in longest) / NUMBER_CHARACTERS
    options = EmbedOptions(
        window_s=parameters.window_s,
        hop_s=parameters.hop_s,
        logmel_columns=parameters.logmel_columns,
        head_of=head_of,
        events=parameters.segments,
        normalize=parameters.normalize,
        dimensions=parameters.dimensions,
        tag_numbers=tag_numbers,
    )
    return ClipRequest(parameters.model, options, zero_shot), head_of
