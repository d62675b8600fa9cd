"""Examples with labels in, a head that is served at once out: /models/{name}/heads, to teach a model.

Whatever is told of a head comes from service/teaching; here it is read, checked and answered.
"""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import (
    AudioMissing,
    AudioUnreadable,
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    HeadConflict,
    HeadOutdated,
    Overloaded,
    StorageFailed,
    TeachingLimit,
    TeachingOff,
    UnknownExample,
    UnknownHead,
    UnsupportedMediaType,
    UploadTimeout,
)
from service.http.admin import admin_only
from service.http.cancellation import CancelScope, deadline_s
from service.http.clip_request import Build, ClipRequest, answer_uploads
from service.http.json_body import is_json, read_json, read_request
from service.http.openapi_document import (
    MODEL_ERRORS,
    error_responses,
    examples_route,
    head_file_body,
    ok_response,
    query_parameters,
)
from service.http.parameters import (
    ExampleParameters,
    FitParameters,
    ForgetParameters,
    HeadOptions,
    NoParameters,
    query_of,
    read,
)
from service.http.request_body import SpooledBody, stream_body
from service.http.request_record import RECORD
from service.http.responses import json_response
from service.http.schemas import (
    ADDED_EXAMPLE,
    EXAMPLES_EXAMPLE,
    FIT_EXAMPLE,
    FORGOT_EXAMPLE,
    TAUGHT_EXAMPLE,
    AddedAnswer,
    ExamplesAnswer,
    FitAnswer,
    ForgotAnswer,
    HeadsAnswer,
    TaughtHead,
)
from service.http.server import server_of
from service.http.upload import Upload, media_type_of, read_clip, read_clips
from service.inference.embedder import EmbedOptions, Timings
from service.inference.model import Model
from service.teaching.names import head_name, label_of
from service.teaching.store import Example
from service.teaching.teacher import MAX_HEAD_BYTES, Added, Clip, Teacher

router = APIRouter()

HEADS = "/models/{name}/heads"
HEAD = f"{HEADS}/{{head}}"
READ_ERRORS = (*MODEL_ERRORS, BadRequest, UnknownHead, TeachingOff, StorageFailed, Overloaded)
WRITE_ERRORS = (*READ_ERRORS, Forbidden, HeadConflict, TeachingLimit)
FIT_ERRORS = (*WRITE_ERRORS, HeadOutdated, DeadlineExceeded)
BODY_ERRORS = (AudioMissing, AudioUnreadable, BodyTooLarge, UploadTimeout, UnsupportedMediaType)
HEAD_FILE = "application/octet-stream"
AS_A_FILE = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}  # never a page of ours

AS_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {HEAD_FILE: {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get(
    HEADS,
    summary="The heads of a model that were taught",
    responses=ok_response(HeadsAnswer, {"model": "byola", "heads": [TAUGHT_EXAMPLE], "damaged": []})
    | error_responses(*READ_ERRORS),
)
async def list_heads(request: Request, name: str) -> Response:
    """Each with its labels, and whether it is served. Heads of the model's folder are in GET /models."""
    teacher, model = await _asked(request, name)
    heads, damaged = await teacher.describe_all(model)
    content = {
        "model": model.card.name,
        "heads": [_without_report(head) for head in heads],
        "damaged": [
            {"head": head, "error": error.code, "detail": str(error)} for head, error in damaged.items()
        ],
    }
    return json_response(content)


@router.get(
    HEAD,
    summary="One head that was taught",
    responses=ok_response(TaughtHead, TAUGHT_EXAMPLE) | error_responses(*READ_ERRORS),
)
async def show_head(request: Request, name: str, head: str) -> Response:
    """Its options and labels, and what its last fit said."""
    teacher, model = await _asked(request, name, head)
    return json_response(await teacher.describe(model, head))


@router.put(
    HEAD,
    summary="Make a head to be taught, or change its options",
    responses=ok_response(TaughtHead, TAUGHT_EXAMPLE) | error_responses(*WRITE_ERRORS),
    openapi_extra=query_parameters(HeadOptions),
)
@admin_only
async def put_head(request: Request, name: str, head: str) -> Response:
    """Examples make a head by themselves, with the usual options; what changes here counts from the next fit
    on. Options stand in the query, or in a JSON object."""
    teacher = server_of(request).teacher
    teacher.check_on()
    content: dict[str, Any] = {}
    if is_json(request):
        content, body = await read_json(request, server_of(request).budget)
        body.close()
    options = read(HeadOptions, query_of(request), content)
    teacher, model = await _asked(request, name, head, options=HeadOptions)
    changes = options.model_dump(exclude_none=True)
    return json_response(await teacher.put(model, head, changes))


@router.delete(
    HEAD,
    summary="Forget a head that was taught",
    responses=ok_response(ForgotAnswer, FORGOT_EXAMPLE) | error_responses(*WRITE_ERRORS),
)
@admin_only
async def delete_head(request: Request, name: str, head: str) -> Response:
    """With all its examples; from the next request on no process serves it."""
    teacher, model = await _asked(request, name, head)
    await teacher.remove(model, head)
    return json_response({"model": model.card.name, "head": head, "removed": [], "fit": None})


@router.post(
    f"{HEAD}/examples",
    **examples_route(
        "Examples of a label",
        parameters=ExampleParameters,
        answer=AddedAnswer,
        example=ADDED_EXAMPLE,
        errors=(*FIT_ERRORS, *BODY_ERRORS),
    ),
)
@admin_only
async def add_examples(request: Request, name: str, head: str) -> Response:
    """One clip or many of one label; of a long one each passage of 5 s is an example. A clip that cannot be
    read, or in which nothing can be heard, is refused with its reason, and the others are taken."""
    server = server_of(request)
    server.teacher.check_on()
    head_name(head)
    allowed_s = deadline_s(request, server.settings.deadline_s)
    model = server.loaded_model(request, name)
    started = time.perf_counter()
    parameters = await read_request(ExampleParameters, request, server.budget, many=True)
    uploads = await _read_uploads(request)
    request.scope[RECORD].timings = timings = Timings(read=time.perf_counter() - started)

    async def teach(model: Model, uploads: Sequence[Upload], timings: Timings) -> Build:
        clips = [Clip(upload.source, upload.name) for upload in uploads]
        added = await server.teacher.add(model, head, parameters.label, clips, timings)
        request.scope[RECORD].audio_s = sum(one.duration_s for one in added)
        content = {
            "model": model.card.name,
            "head": head,
            "results": [_result(request, upload, one) for upload, one in zip(uploads, added, strict=True)],
        }
        is_fitted = parameters.fit == "auto" and any(one.examples for one in added)
        content |= await _fit_if(is_fitted, server.teacher, model, head)
        return lambda: json_response(content)

    wanted = ClipRequest(name, EmbedOptions())
    return await answer_uploads(
        request, wanted, uploads, teach, model=model, timings=timings, allowed_s=allowed_s, is_large=False
    )


@router.get(
    f"{HEAD}/examples",
    summary="The examples of a head",
    responses=ok_response(ExamplesAnswer, EXAMPLES_EXAMPLE) | error_responses(*READ_ERRORS),
)
async def list_examples(request: Request, name: str, head: str) -> Response:
    """From the oldest on."""
    teacher, model = await _asked(request, name, head)
    examples, heard = await teacher.examples(model, head)
    listed = [_example(one) | {"clip": one.id in heard} for one in examples]
    return json_response({"model": model.card.name, "head": head, "examples": listed})


@router.delete(
    f"{HEAD}/examples",
    summary="Forget the examples of a label",
    responses=ok_response(ForgotAnswer, FORGOT_EXAMPLE) | error_responses(*FIT_ERRORS, UnknownExample),
    openapi_extra=query_parameters(ForgetParameters),
)
@admin_only
async def delete_examples(request: Request, name: str, head: str) -> Response:
    """All of them; the head is served as it is until the next fit."""
    teacher, model = await _asked(request, name, head, options=ForgetParameters)
    parameters = read(ForgetParameters, query_of(request))
    label = None if parameters.label is None else label_of(parameters.label)
    removed = await teacher.forget(model, head, label=label)
    return await _forgot(teacher, model, head, removed, is_fitted=parameters.fit == "auto")


@router.delete(
    f"{HEAD}/examples/{{example}}",
    summary="Forget one example",
    responses=ok_response(ForgotAnswer, FORGOT_EXAMPLE) | error_responses(*FIT_ERRORS, UnknownExample),
    openapi_extra=query_parameters(FitParameters),
)
@admin_only
async def delete_example(request: Request, name: str, head: str, example: str) -> Response:
    """The head is served as it is until the next fit."""
    teacher, model = await _asked(request, name, head, options=FitParameters)
    parameters = read(FitParameters, query_of(request))
    removed = await teacher.forget(model, head, example=example)
    return await _forgot(teacher, model, head, removed, is_fitted=parameters.fit == "auto")


@router.get(
    f"{HEAD}/examples/{{example}}/clip",
    summary="The sound of an example",
    response_class=Response,
    responses=AS_FILE | error_responses(*READ_ERRORS, UnknownExample),
)
async def show_clip(request: Request, name: str, head: str, example: str) -> Response:
    """As it was sent, where clips are kept."""
    teacher, model = await _asked(request, name, head)
    return Response(await teacher.clip(model, head, example), media_type=HEAD_FILE, headers=AS_A_FILE)


@router.post(
    f"{HEAD}/fit",
    summary="Fit a head to its examples",
    responses=ok_response(FitAnswer, FIT_EXAMPLE) | error_responses(*FIT_ERRORS),
)
@admin_only
async def fit_head(request: Request, name: str, head: str) -> Response:
    """It is served by every process from then on; the answer tells how good it is on sounds that were left
    out. Examples of an older version of the model are embedded again where their clips were kept."""
    server = server_of(request)
    teacher, model = await _asked(request, name, head)
    async with CancelScope(request.receive, deadline_s(request, server.settings.deadline_s)):
        report = await teacher.fit(model, head)
    return json_response({"model": model.card.name, "head": head, **report})


@router.get(
    f"{HEAD}/file",
    summary="A head as a file",
    response_class=Response,
    responses=AS_FILE | error_responses(*READ_ERRORS, HeadConflict),
)
async def export_head(request: Request, name: str, head: str) -> Response:
    """The `heads/<head>.safetensors` that a model folder takes, and another server's PUT. No example is in
    it, and no name of a file."""
    teacher, model = await _asked(request, name, head)
    file_name = {"Content-Disposition": f'attachment; filename="{head}.safetensors"'}
    return Response(await teacher.file(model, head), media_type=HEAD_FILE, headers=AS_A_FILE | file_name)


@router.put(
    f"{HEAD}/file",
    summary="A head from a file",
    responses=ok_response(TaughtHead, TAUGHT_EXAMPLE)
    | error_responses(*WRITE_ERRORS, BodyTooLarge, UploadTimeout, UnsupportedMediaType),
    openapi_extra=head_file_body(),
)
@admin_only
async def import_head(request: Request, name: str, head: str) -> Response:
    """What another server's GET, or `python -m training fit-head`, has made for this model."""
    server = server_of(request)
    server.teacher.check_on()
    head_name(head)
    media_type_of(request)  # refuses a Content-Encoding
    body = SpooledBody(server.budget)
    try:
        await stream_body(request, server.budget, body.write, max_bytes=MAX_HEAD_BYTES)
        source = body.source()
        content = source if isinstance(source, bytes) else source.read()
        teacher, model = await _asked(request, name, head)
        return json_response(await teacher.take_in(model, head, content))
    finally:
        body.close()


async def _asked(
    request: Request, name: str, head: str | None = None, options: type[Any] = NoParameters
) -> tuple[Teacher, Model]:
    """Who teaches, and the model; the head's name and the query are checked."""
    server = server_of(request)
    server.teacher.check_on()
    if head is not None:
        head_name(head)
    if options is NoParameters:
        read(NoParameters, query_of(request))
    return server.teacher, await server.model(request, name)


async def _read_uploads(request: Request) -> list[Upload]:
    """The clips of a form, of JSON, or the one that the body is."""
    budget = server_of(request).budget
    if is_json(request) or media_type_of(request)[0] == "multipart/form-data":
        return await read_clips(request, budget)
    return [await read_clip(request, budget)]


async def _fit_if(wanted: bool, teacher: Teacher, model: Model, head: str) -> dict[str, Any]:
    """`fit`, what a fit says where one is wanted; and why there is none, which is no error of the request."""
    if not wanted:
        return {"fit": None}
    try:
        return {"fit": await teacher.fit(model, head)}
    except (BadRequest, HeadOutdated, Overloaded, UnknownHead, StorageFailed) as error:
        return {"fit": None, "not_fitted_because": str(error)}


async def _forgot(
    teacher: Teacher, model: Model, head: str, removed: list[str], *, is_fitted: bool
) -> Response:
    content = {"model": model.card.name, "head": head, "removed": removed}
    return json_response(content | await _fit_if(is_fitted, teacher, model, head))


def _result(request: Request, upload: Upload, added: Added) -> dict[str, Any]:
    """Of one clip."""
    if added.error is not None:
        server_of(request).metrics.errors.labels(added.error.code).inc()
        return {"file": upload.name, "error": added.error.code, "detail": str(added.error)}
    return {
        "file": upload.name,
        "duration_s": added.duration_s,
        "silent": added.silent,
        "examples": [_example(one) for one in added.examples],
    }


def _example(one: Example) -> dict[str, Any]:
    return {
        "id": one.id,
        "labels": one.labels,
        "file": one.file,
        "start_s": one.start_s,
        "end_s": one.end_s,
        "added": one.added,
    }


def _without_report(head: dict[str, Any]) -> dict[str, Any]:
    report = head["report"]
    return head | {"report": None, "accuracy": report.get("accuracy") if report else None}
