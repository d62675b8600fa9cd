"""A JSON body in, its clips and parameters out, where JSON is all that a client can send.

    {"audio": "UklGRiR9AABXQVZF...", "window_s": 1}
    {"audio": ["data:audio/ogg;base64,T2dnUwAC...", ...]}          a batch

`audio` is the encoded sound in base64, bare or as a `data:` URI; beside it stand the parameters that the
query may also hold. Nothing is ever fetched: a URL is an error, because a server that opens what a stranger
names opens doors behind its firewall.
"""

import asyncio
import base64
import binascii
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel
from starlette.requests import Request

from service.errors import AudioMissing, BadRequest
from service.http.parameters import MAX_PARAMETERS, query_of, read
from service.http.request_body import SPOOL_BYTES, SpooledBody, UploadBudget, stream_body
from service.http.upload import (
    CLIPS_OF_BODY,
    MAX_FILES,
    Upload,
    media_type_of,
    parse_media_type,
    pcm_of,
    upload_of,
)
from service.sound.pcm import BYTES_PER_SAMPLE

JSON = "application/json"
FIELD = "audio"
MAX_JSON_BYTES = 32_000_000  # it is held three times over while it is read
READ_S = "viola.read_s"  # in the scope: seconds that reading a JSON body took, for Server-Timing
MAX_JSON_COMMAS = 2000  # a batch of MAX_FILES data: URIs has two for each
# Where there are texts, which have commas of their own: so many in a body that is not longer than this.
TEXT_BYTES, MAX_TEXT_COMMAS = 4_000_000, 100_000
LARGE_BYTES = 256_000  # above this, reading it is worth a thread
MAX_URI_HEAD = 1000  # characters of a data: URI before its comma
SLICE = 1 << 20  # characters of base64 (a multiple of 4) decoded at once: other threads run in between

Kind = TypeVar("Kind", bound=BaseModel)
Content = dict[str, Any]


async def read_request(
    kind: type[Kind], request: Request, budget: UploadBudget, *, many: bool = False
) -> Kind:
    """The parameters of the query, and those of the body where it is JSON: its clips are then ready for
    `upload.read_clip`, or for `read_clips` where `many` may be sent. Raises as those do."""
    if not is_json(request):
        return read(kind, query_of(request))
    started = time.perf_counter()
    content, body = await read_json(request, budget)
    try:
        if FIELD not in content:
            raise AudioMissing(f"the JSON has no `{FIELD}`; it is the sound in base64, or as a data: URI")
        sounds = listed(content.pop(FIELD), f"`{FIELD}`", many=many)
        parameters = read(kind, query_of(request), content)
        request.scope[CLIPS_OF_BODY] = await clips_of(sounds, f"`{FIELD}`", body)
        request.scope[READ_S] = time.perf_counter() - started
        return parameters
    except BaseException:
        body.close()
        raise


def is_json(request: Request) -> bool:
    media_type, _, _ = request.headers.get("content-type", "").partition(";")
    return media_type.strip().lower() == JSON


async def read_json(
    request: Request, budget: UploadBudget, *, max_bytes: int | None = None, with_texts: bool = False
) -> tuple[Content, SpooledBody]:
    """The body as an object, and what it holds: to be closed when its clips are done with. max_bytes: of it,
    MAX_JSON_BYTES by default; with_texts: whether it may hold some, which have commas of their own."""
    media_type_of(request)  # refuses a Content-Encoding
    body = SpooledBody(budget)
    try:
        await stream_body(request, budget, body.write, max_bytes=max_bytes or MAX_JSON_BYTES)
        source = body.source()
        text = source if isinstance(source, bytes) else source.read()
        is_text = with_texts and len(text) <= TEXT_BYTES
        most = MAX_TEXT_COMMAS if is_text else MAX_JSON_COMMAS
        content = await in_thread_if_large(len(text), _parsed, text, most)
        if is_text and len(content) > MAX_PARAMETERS:
            raise BadRequest(f"the JSON has {len(content)} fields; /docs lists those of this route")
        return content, body
    except BaseException:
        body.close()
        raise


def listed(value: Any, name: str, *, many: bool) -> list[str]:
    """`value` as a list of strings, where one string stands for a list of one. Raises BadRequest or
    AudioMissing."""
    if isinstance(value, str):
        return [value]
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise BadRequest(f"{name} is the sound as a string, or a list of such strings")
    if not many:
        raise BadRequest(f"{name} is a list; one sound is taken here, and lists under /embed/batch")
    if not value:
        raise AudioMissing(f"{name} is an empty list; it holds at least one sound")
    if len(value) > MAX_FILES:
        raise BadRequest(f"{name} holds more than {MAX_FILES} sounds; send several requests")
    return value


async def clips_of(
    sounds: Sequence[str], name: str, body: SpooledBody, *, names: Sequence[str] | None = None
) -> list[Upload]:
    """The sounds' bytes, in memory or in files as those of other uploads; the body that they came in is
    closed. name: of the list, for sentences, or the names of each. Raises BadRequest or Overloaded."""
    if names is None:
        names = [f"{name}[{i}]" for i in range(len(sounds))] if len(sounds) > 1 else [name]
    sources = await in_thread_if_large(body.length, lambda: list(map(decoded, sounds, names)))
    body.close()
    clips: list[Upload] = []
    try:
        for source in sources:
            clips.append(await _upload_of(source, body.budget))
        return clips
    except BaseException:
        for clip in clips:
            clip.close()
        raise


async def _upload_of(sound: bytes, budget: UploadBudget) -> Upload:
    """One that counts in the budget."""
    body = SpooledBody(budget)
    try:
        if len(sound) <= SPOOL_BYTES:
            body.write(sound)
            return upload_of(body)
        for start in range(0, len(sound), SLICE):
            body.write(sound[start : start + SLICE])
            await asyncio.sleep(0)  # others run between two writes to the disk
        return upload_of(body)
    except BaseException:
        body.close()
        raise


def decoded(sound: str, name: str) -> bytes:
    """Base64 or a `data:` URI as the bytes of a file. Raises BadRequest with `name` in its sentence."""
    pcm, encoded = None, sound
    if sound[:5].lower() == "data:":
        head, comma, encoded = sound[5:].partition(",")
        if not comma or not head.lower().endswith(";base64") or len(head) > MAX_URI_HEAD:
            raise BadRequest(f"{name} is a data: URI without `;base64,`; send data:audio/wav;base64,...")
        pcm = pcm_of(*parse_media_type(head[: -len(";base64")]))
    elif "://" in sound[:16]:
        raise BadRequest(f"{name} is a URL, and nothing is fetched here; send the sound itself in base64")
    sound_bytes = _from_base64(encoded, name)
    if pcm is None:
        return sound_bytes
    pcm.check(len(sound_bytes))
    return pcm.header() + sound_bytes if len(sound_bytes) >= BYTES_PER_SAMPLE else sound_bytes


def _parsed(text: bytes, most: int) -> Content:
    _check_how_many(text, most)
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadRequest(f'the JSON is no object; send {{"{FIELD}": "<the sound in base64>"}}')
    return content


def _check_how_many(text: bytes, most: int) -> None:
    """Raises BadRequest where the JSON holds so many values that taking it apart would cost seconds and
    gigabytes: every value but the first of a list or an object has a comma before it."""
    commas = 0
    for start in range(0, len(text), SLICE):
        commas += text.count(b",", start, start + SLICE)
        if commas > most:
            raise BadRequest(
                f"the JSON holds more than {most} values; it may hold {MAX_FILES} sounds, and the "
                "parameters that /docs lists"
            )


def _from_base64(text: str, name: str) -> bytes:
    """Lines may be broken, as mail programs do; the alphabet may be that for URLs."""
    if "\n" in text:
        text = text.replace("\n", "").replace("\r", "")
    if "-" in text or "_" in text:
        text = text.replace("-", "+").replace("_", "/")
    try:
        if len(text) <= SLICE:
            return base64.b64decode(text, validate=True)
        slices = range(0, len(text), SLICE)
        return b"".join(base64.b64decode(text[start : start + SLICE], validate=True) for start in slices)
    except (binascii.Error, ValueError) as error:
        reason = str(error)[:80]
        raise BadRequest(f"{name} is no base64 ({reason}); send the bytes of the file in base64") from error


async def in_thread_if_large(n_bytes: int, function: Any, *arguments: Any) -> Any:
    if n_bytes <= LARGE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)
