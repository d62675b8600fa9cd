"""A request's body in, the encoded bytes of its clips out, read in a stream and never past the limits.

A clip is the raw body (`audio/*` or `application/octet-stream`) or the field `file` of a multipart form; how
clips come in JSON is told in json_body.py.

    limit                  passed by                                                     answer
    max_body_bytes         Content-Length, or the chunk that passes it                   413
    timeout_s              fewer than MIN_BYTES_PER_S on average in so many seconds      408
    max_held_bytes         all bodies that are being read or worked on, and large        503
                           answers that are being sent, together

Clips are kept in memory up to SPOOL_BYTES, longer ones in a temporary file, and so is every clip while those
in memory take MEMORY_BYTES together: many uploads at once, or slow ones, do not fill the memory.
"""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import (
    AudioMissing,
    BadRequest,
    BodyTooLarge,
    Overloaded,
    UnsupportedMediaType,
    UploadTimeout,
)
from service.pcm import L16, Pcm

log = logging.getLogger(__name__)

FIELD = "file"
MAX_FILES = 256  # in one request: their answers alone take megabytes
MAX_OTHER_FIELDS = 16  # of a form, before it is refused unread
SPOOL_BYTES = 1_000_000
MEMORY_BYTES = 128_000_000
MIN_BYTES_PER_S = 500  # 4 kbit/s: less than any codec here makes of speech
HELD_RETRY_AFTER_S = 5.0

ACCEPTED = "the sound itself as the body with a Content-Type of audio/* or application/octet-stream"
ACCEPTED_FORM = f"a multipart/form-data form with the sound in the field `{FIELD}`"
ACCEPTED_JSON = "application/json with the sound in base64 as `audio`"
CLIPS_OF_BODY = "viola.clips"  # in the scope: the clips of a JSON body, once it was read for its parameters
INTAKE = "viola.intake"  # in the scope: the intake that the body came through; its answer counts there, too


class ClientLeft(Exception):  # noqa: N818 - nobody's mistake, and nobody is there to be told
    """The client closed the connection before it was answered."""


@dataclass
class Intake:
    """What a process takes in: the limits drawn above, and what it holds at this moment."""

    max_body_bytes: int
    timeout_s: float
    max_held_bytes: int
    held_bytes: int = 0
    bytes_in_memory: int = 0


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


async def read_clip(request: Request, intake: Intake) -> Upload:
    """The one clip of a request. Raises BodyTooLarge, UploadTimeout, Overloaded, UnsupportedMediaType,
    AudioMissing, AudioUnreadable or BadRequest."""
    if CLIPS_OF_BODY in request.scope:
        clip: Upload = request.scope.pop(CLIPS_OF_BODY)[0]
        return clip
    media_type, options = media_type_of(request)
    if media_type == "multipart/form-data":
        uploads = await _read_form(request, options, intake)
        if len(uploads) > 1:
            for upload in uploads:
                upload.close()
            raise BadRequest(
                f"the form holds {len(uploads)} files; send one, or all of them to {request.url.path}/batch"
            )
        return uploads[0]
    if not (media_type.startswith("audio/") or media_type == "application/octet-stream"):
        raise UnsupportedMediaType(
            f"{_as_sent(media_type)}; send {ACCEPTED}, {ACCEPTED_FORM}, or {ACCEPTED_JSON}"
        )
    body = Body(intake, pcm_of(media_type, options))
    try:
        await pour(request, intake, body.write)
        if body.length == 0:
            raise AudioMissing(f"the body is empty; send {ACCEPTED}, or {ACCEPTED_FORM}")
        return body.upload()
    except BaseException:
        body.close()
        raise


async def read_clips(request: Request, intake: Intake) -> list[Upload]:
    """All clips of a batch, one field `file` each, in order. Raises as `read_clip` does."""
    if CLIPS_OF_BODY in request.scope:
        clips: list[Upload] = request.scope.pop(CLIPS_OF_BODY)
        return clips
    media_type, options = media_type_of(request)
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(
            f"{_as_sent(media_type)}; send {ACCEPTED_FORM}, once for each clip, or {ACCEPTED_JSON}, in a list"
        )
    return await _read_form(request, options, intake)


async def pour(
    request: Request, intake: Intake, write: Callable[[bytes], None], *, max_bytes: int | None = None
) -> None:
    """Every chunk of the body into `write`. Raises BodyTooLarge by Content-Length, or with the chunk that
    passes the limit (`max_bytes` where it is given); UploadTimeout where a client is slow; ClientLeft."""
    request.scope[INTAKE] = intake
    max_bytes = intake.max_body_bytes if max_bytes is None else min(max_bytes, intake.max_body_bytes)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    patience = _Patience(intake.timeout_s)
    length, length_of_next_respite = 0, intake.timeout_s * MIN_BYTES_PER_S
    try:
        while True:
            message = await request.receive()
            if patience.is_over:  # in the same moment as this chunk
                await asyncio.sleep(0)  # lets the cancellation happen here
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk = message.get("body", b"")
            length += len(chunk)
            if length > max_bytes:
                raise _too_large(max_bytes)
            if chunk:
                write(chunk)
            if not message.get("more_body", False):
                return
            if length >= length_of_next_respite:
                length_of_next_respite = length + intake.timeout_s * MIN_BYTES_PER_S
                patience.renew()
    except asyncio.CancelledError as error:
        if not patience.took_it_back():
            raise
        raise UploadTimeout(
            f"the body came too slowly: {length} bytes so far, and fewer than {MIN_BYTES_PER_S} per second "
            f"in the last {intake.timeout_s:g} s; send it again, faster"
        ) from error
    finally:
        patience.end()


class _Patience:
    """Cancels the task after timeout_s seconds, unless it is renewed: `asyncio.timeout` at half its cost."""

    def __init__(self, timeout_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timeout_s = timeout_s
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self._cancel)

    def renew(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(self._timeout_s, self._cancel)

    def end(self) -> None:
        self._timer.cancel()

    def took_it_back(self) -> bool:
        """Whether the cancellation was this one's, and nobody else wants it."""
        return self.is_over and self._task.uncancel() == 0

    def _cancel(self) -> None:
        self.is_over = True
        self._task.cancel()


def media_type_of(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """(media type in lower case, its options). Without a header, bytes: as RFC 9110 (8.3) allows."""
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise UnsupportedMediaType(f"the Content-Encoding is {coding}; send the body as it is")
    return parse_media_type(request.headers.get("content-type") or "application/octet-stream")


def parse_media_type(text: str | bytes) -> tuple[str, dict[bytes, bytes]]:
    """`audio/L16; rate=8000` → ("audio/l16", {b"rate": b"8000"})"""
    media_type, options = parse_options_header(text)
    return media_type.decode("latin-1").strip().lower(), options


def pcm_of(media_type: str, options: dict[bytes, bytes]) -> Pcm | None:
    """How raw PCM is to be read; None for everything that tells it itself. Raises BadRequest."""
    return Pcm(options) if media_type == L16 else None


def _as_sent(media_type: str) -> str:
    hint = " (curl's default)" if media_type == "application/x-www-form-urlencoded" else ""
    return f"the Content-Type is {media_type or 'empty'}{hint}"


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is longer than the {max_bytes} bytes that are accepted; send a shorter clip, compress it, "
        "or send its bytes themselves where it is JSON now"
    )


async def _read_form(request: Request, options: dict[bytes, bytes], intake: Intake) -> list[Upload]:
    if not options.get(b"boundary"):
        raise BadRequest("the Content-Type multipart/form-data names no boundary; let the HTTP client set it")
    form = _Form(options[b"boundary"], intake)
    try:
        await pour(request, intake, form.feed)
        return form.uploads()
    except FormParserError as error:
        form.close()
        raise BadRequest(f"the multipart body is malformed: {error}") from error
    except BaseException:
        form.close()
        raise
    finally:
        form.end()


class Body:
    """Bytes that arrive in chunks: a list in memory, or a temporary file; they count as held until `close`.

    pcm: what they are, where they are raw samples; the header that they lack is put before them.
    """

    def __init__(self, intake: Intake, pcm: Pcm | None = None) -> None:
        self.length = 0
        self.intake = intake
        self._pcm = pcm
        self._chunks: list[bytes] = [pcm.header()] if pcm else []
        self._file: BinaryIO | None = None
        self._in_memory = 0

    def write(self, chunk: bytes) -> None:
        """Raises Overloaded where the process holds as much as it may."""
        intake, n = self.intake, len(chunk)
        if intake.held_bytes + n > intake.max_held_bytes:
            raise no_room()
        intake.held_bytes += n
        self.length += n
        if self._file is None and self.length <= SPOOL_BYTES and intake.bytes_in_memory <= MEMORY_BYTES:
            self._chunks.append(chunk)
            intake.bytes_in_memory += n
            self._in_memory += n
        else:
            self._write_to_file(chunk)

    def upload(self, name: str = "") -> Upload:
        """Raises AudioUnreadable where raw samples end within one, and as `source` does."""
        if self._pcm and self.length:
            self._pcm.check(self.length)
        return Upload(self.source(), name, self.close)

    def source(self) -> bytes | BinaryIO:
        """All of it, once there is no more to write. Raises Overloaded where the disk is full."""
        if self._file is not None:
            try:
                self._file.seek(0)  # which writes what is still in the file's buffer
            except OSError as error:
                raise _no_disk(error) from error
            return self._file
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def close(self) -> None:
        """Give back the room and the file; nothing happens the second time."""
        self.intake.held_bytes -= self.length
        self.intake.bytes_in_memory -= self._in_memory
        self.length = self._in_memory = 0
        self._chunks = []
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, once more
                self._file.close()

    # A request may end between its body and its clips, with an unknown model for instance.
    __del__ = close

    def _write_to_file(self, chunk: bytes) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
                self._file.writelines(self._chunks)
                self._chunks = []
                self.intake.bytes_in_memory -= self._in_memory
                self._in_memory = 0
            self._file.write(chunk)  # into the page cache: tens of microseconds, no reason to leave the loop
        except OSError as error:
            raise _no_disk(error) from error


def no_room(what: str = "uploads") -> Overloaded:
    return Overloaded(
        f"the server has no room for more {what}, try again later", retry_after_s=HELD_RETRY_AFTER_S
    )


def _no_disk(error: OSError) -> Overloaded:
    log.warning("an upload is refused, because its temporary file cannot be written: %s", error)
    return no_room()


class _Form:
    """A multipart body, parsed as it arrives; only the fields `file` are kept."""

    def __init__(self, boundary: bytes, intake: Intake) -> None:
        self._intake = intake
        self._files: list[tuple[str, Body]] = []
        self._other_fields: list[str] = []
        self._body: Body | None = None
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
        return [body.upload(name) for name, body in self._files]

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
        self._body = Body(self._intake, pcm_of(*parse_media_type(self._type)))
        self._files.append((options.get(b"filename", b"").decode("utf-8", "replace"), self._body))

    def _begin_other_field(self, name: str) -> None:
        if len(self._other_fields) == MAX_OTHER_FIELDS:
            raise BadRequest(f"the form has more than {MAX_OTHER_FIELDS} fields that are not `{FIELD}`")
        self._other_fields.append(name)
        self._body = None

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._body is not None:
            self._body.write(data[start:end])

    def _end(self) -> None:
        self._is_complete = True
