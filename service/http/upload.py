"""A request's body in, the encoded bytes of its clips out.

A clip is the raw body (`audio/*`, `video/*` or `application/octet-stream`) or the field `file` of a multipart
form; how clips come in JSON is told in json_body.py, and how any body is read within its limits in
request_body.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import AudioMissing, BadRequest, UnsupportedMediaType, shortened
from service.http.request_body import SpooledBody, UploadBudget, stream_body
from service.sound.pcm import L16, Pcm

FIELD = "file"
MAX_FILES = 256  # in one request: their answers alone take megabytes
MAX_NAME = 255  # characters of a file's name, which a batch repeats: the most that file systems take
MAX_BOUNDARY = 70  # characters, by the standard; the parser takes somewhat longer ones
MAX_OTHER_FIELDS = 16  # of a form, before it is refused unread

ACCEPTED = "the sound itself as the body with a Content-Type of audio/*, video/* or application/octet-stream"
ACCEPTED_FORM = f"a multipart/form-data form with the sound in the field `{FIELD}`"
ACCEPTED_JSON = "application/json with the sound in base64 as `audio`"
SOUND_TYPES = frozenset({"application/octet-stream", "application/ogg", "application/x-ogg"})
CLIPS_OF_BODY = "viola.clips"  # in the scope: the clips of a JSON body, once it was read for its parameters


@dataclass(frozen=True)
class Upload:
    """One clip. source: its encoded bytes, in memory or in a temporary file; name: as the client says."""

    source: bytes | BinaryIO
    name: str = ""
    on_close: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    def close(self) -> None:
        """Give back the temporary file, if there is one, and the room that the clip takes."""
        if self.on_close:
            self.on_close()


def upload_of(body: SpooledBody, name: str = "") -> Upload:
    """The clip that a body is, once all of it has come; it holds the body. Raises as `SpooledBody.source`."""
    return Upload(body.source(), name, body.close)


async def read_clip(request: Request, budget: UploadBudget) -> Upload:
    """The one clip of a request. Raises BodyTooLarge, UploadTimeout, Overloaded, UnsupportedMediaType,
    AudioMissing, AudioUnreadable or BadRequest."""
    if CLIPS_OF_BODY in request.scope:
        clip: Upload = request.scope.pop(CLIPS_OF_BODY)[0]
        return clip
    media_type, options = media_type_of(request)
    if media_type == "multipart/form-data":
        uploads = await _read_form(request, options, budget)
        if len(uploads) > 1:
            for upload in uploads:
                upload.close()
            raise BadRequest(
                f"the form holds {len(uploads)} files; send one, or all of them to {request.url.path}/batch"
            )
        return uploads[0]
    if not is_sound(media_type):
        raise UnsupportedMediaType(
            f"{_content_type_is(media_type)}; send {ACCEPTED}, {ACCEPTED_FORM}, or {ACCEPTED_JSON}"
        )
    body = SpooledBody(budget, pcm_of(media_type, options))
    try:
        await stream_body(request, budget, body.write)
        if body.length == 0:
            raise AudioMissing(f"the body is empty; send {ACCEPTED}, or {ACCEPTED_FORM}")
        return upload_of(body)
    except BaseException:
        body.close()
        raise


async def read_clips(request: Request, budget: UploadBudget) -> list[Upload]:
    """All clips of a batch, one field `file` each, in order. Raises as `read_clip` does."""
    if CLIPS_OF_BODY in request.scope:
        clips: list[Upload] = request.scope.pop(CLIPS_OF_BODY)
        return clips
    media_type, options = media_type_of(request)
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(
            f"{_content_type_is(media_type)}; send {ACCEPTED_FORM}, once for each clip, "
            f"or {ACCEPTED_JSON}, in a list"
        )
    return await _read_form(request, options, budget)


def media_type_of(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """(media type in lower case, its options). Without a header, bytes: as RFC 9110 (8.3) allows."""
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise UnsupportedMediaType(f"the Content-Encoding is {shortened(coding)}; send the body as it is")
    return parse_media_type(request.headers.get("content-type") or "application/octet-stream")


def parse_media_type(text: str | bytes) -> tuple[str, dict[bytes, bytes]]:
    """`audio/L16; rate=8000` → ("audio/l16", {b"rate": b"8000"})"""
    if isinstance(text, str):  # of a data: URI, perhaps, which may hold any character
        text = text.encode("latin-1", "replace")
    media_type, options = parse_options_header(text)
    return media_type.decode("latin-1").strip().lower(), options


def is_sound(media_type: str) -> bool:
    """Browsers name WebM, MP4 and 3GP by the film that they might be, and Ogg by its container."""
    return media_type.startswith(("audio/", "video/")) or media_type in SOUND_TYPES


def pcm_of(media_type: str, options: dict[bytes, bytes]) -> Pcm | None:
    """How raw PCM is to be read; None for everything that tells it itself. Raises BadRequest."""
    return Pcm(options) if media_type == L16 else None


def _content_type_is(media_type: str) -> str:
    hint = " (curl's default)" if media_type == "application/x-www-form-urlencoded" else ""
    return f"the Content-Type is {shortened(media_type) or 'empty'}{hint}"


async def _read_form(request: Request, options: dict[bytes, bytes], budget: UploadBudget) -> list[Upload]:
    if not options.get(b"boundary"):
        raise BadRequest("the Content-Type multipart/form-data names no boundary; let the HTTP client set it")
    try:
        form = _Form(options[b"boundary"], budget)
    except FormParserError as error:
        length = len(options[b"boundary"])
        raise BadRequest(
            f"the boundary in the Content-Type has {length} characters, and may have {MAX_BOUNDARY} (RFC "
            "2046, 5.1.1); let the HTTP client set it"
        ) from error
    try:
        await stream_body(request, budget, form.feed)
        return form.uploads()
    except FormParserError as error:
        form.close()
        raise BadRequest(f"the multipart body is malformed: {error}") from error
    except BaseException:
        form.close()
        raise
    finally:
        form.end()


class _Form:
    """A multipart body, parsed as it arrives; only the fields `file` are kept."""

    def __init__(self, boundary: bytes, budget: UploadBudget) -> None:
        self._budget = budget
        self._files: list[tuple[str, SpooledBody]] = []
        self._other_fields: list[str] = []
        self._body: SpooledBody | None = None
        self._header_name = self._header_value = self._disposition = self._type = b""
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_header_name,
                "on_header_value": self._add_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def end(self) -> None:
        """Nothing more comes: let go of the parser, which holds this form as this form holds it."""
        del self._parser

    def uploads(self) -> list[Upload]:
        """The clips. Raises BadRequest, AudioMissing or AudioUnreadable where the form is not one of clips
        alone."""
        if not self._is_complete:
            raise BadRequest("the multipart body ends before its closing boundary; send the whole form")
        if not self._files:
            fields = ", ".join(f"`{name}`" for name in self._other_fields) or "no fields"
            raise AudioMissing(f"the form has no field `{FIELD}`, it has {fields}; send {ACCEPTED_FORM}")
        if self._other_fields:
            raise BadRequest(
                f"the form field `{self._other_fields[0]}` is not known; parameters go into the query string"
            )
        return [upload_of(body, name) for name, body in self._files]

    def close(self) -> None:
        """Give back what its clips hold."""
        for _, body in self._files:
            body.close()

    def _begin_part(self) -> None:
        self._disposition = self._type = b""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        name = self._header_name.lower()
        if name == b"content-disposition":
            self._disposition = self._header_value
        elif name == b"content-type":
            self._type = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            self._begin_other_field(field)
            return
        if len(self._files) == MAX_FILES:
            raise BadRequest(f"the form holds more than {MAX_FILES} files; send several requests")
        self._body = SpooledBody(self._budget, pcm_of(*parse_media_type(self._type)))
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._files.append((shortened(name, MAX_NAME), self._body))

    def _begin_other_field(self, name: str) -> None:
        if len(self._other_fields) == MAX_OTHER_FIELDS:
            raise BadRequest(f"the form has more than {MAX_OTHER_FIELDS} fields that are not `{FIELD}`")
        self._other_fields.append(shortened(name))
        self._body = None

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._body is not None:
            self._body.write(data[start:end])

    def _end(self) -> None:
        self._is_complete = True
