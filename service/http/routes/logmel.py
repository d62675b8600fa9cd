"""One clip in, the picture of its log-mel out: /logmel."""

import contextlib

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.http.cancellation import CancelScope, deadline_s
from service.http.json_body import read_request
from service.http.openapi_document import EMBED_ERRORS, clip_route
from service.http.parameters import LogmelParameters
from service.http.request_record import RECORD
from service.http.responses import json_response
from service.http.schemas import LOGMEL_EXAMPLE, LogmelAnswer
from service.http.server import server_of
from service.http.upload import read_clip

router = APIRouter()


@router.post(
    "/logmel",
    **clip_route(
        "One clip to the picture of its log-mel",
        parameters=LogmelParameters,
        answer=LogmelAnswer,
        example=LOGMEL_EXAMPLE,
        errors=EMBED_ERRORS,
    ),
)
async def logmel(request: Request) -> Response:
    """What the model sees of a sound, for eyes: the frames of a long clip are averaged into columns."""
    server = server_of(request)
    parameters = await read_request(LogmelParameters, request, server.budget)
    model = server.loaded_model(request, parameters.model)
    allowed_s = deadline_s(request, server.settings.deadline_s)
    upload = await read_clip(request, server.budget)
    with contextlib.closing(upload):
        async with CancelScope(request.receive, allowed_s):
            model = model or await server.model(request, parameters.model)
            picture, duration_s = await server.embedder.draw(model, upload.source, columns=parameters.columns)
    request.scope[RECORD].audio_s = duration_s
    return json_response({"model": model.card.name, "duration_s": duration_s, **picture.content()})
