"""A model's name, or none, in; its card, or those of all models, out. /models/reload: changed folders in."""

import asyncio
import dataclasses

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import BadRequest, Forbidden, InternalError, Unauthorized
from service.http.admin import admin_only
from service.http.openapi_document import MODEL_ERRORS, error_responses, ok_response
from service.http.responses import json_response
from service.http.schemas import (
    MODEL_EXAMPLE,
    MODELS_EXAMPLE,
    RELOAD_EXAMPLE,
    ModelAnswer,
    ModelsAnswer,
    ReloadAnswer,
)
from service.http.server import server_of
from service.inference.registry import Reloaded, together

router = APIRouter()


@router.get(
    "/models",
    summary="The models and their cards",
    responses=ok_response(ModelsAnswer, MODELS_EXAMPLE) | error_responses(Unauthorized, InternalError),
)
async def list_models(request: Request) -> Response:
    """Every model that is served, with its card, heads and labels; and every folder that is refused, with the
    reason."""
    models = server_of(request).models
    described = await asyncio.to_thread(models.describe_all)
    return json_response({"default": models.default, "models": described, "refused": models.refused})


@router.post(
    "/models/reload",
    summary="Serve what the model folders hold now",
    responses=ok_response(ReloadAnswer, RELOAD_EXAMPLE)
    | error_responses(Unauthorized, Forbidden, InternalError),
)
@admin_only
async def reload_models(request: Request) -> Response:
    """Notice folders that appeared, changed or went. A model is replaced once the new one is loaded, warm and
    has passed its self-test; requests that have begun finish with the old one. All worker processes do so
    before the answer comes."""
    server = server_of(request)
    own = await asyncio.shield(asyncio.create_task(server.models.reload()))
    others = [Reloaded(**orjson.loads(report)) for report in await server.broadcast.ask()]
    report = together([own, *others])
    return json_response({**dataclasses.asdict(report), "processes": 1 + len(others)})


@router.get(
    "/models/{name}",
    summary="One model's card",
    responses=ok_response(ModelAnswer, MODEL_EXAMPLE) | error_responses(*MODEL_ERRORS, BadRequest),
)
async def show_model(request: Request, name: str) -> Response:
    """Its card, heads and labels."""
    return json_response(await asyncio.to_thread(server_of(request).models.describe, name))
