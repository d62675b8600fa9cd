"""A request's body in, the encoded bytes of its clips out, read in a stream and never past the limit.

A clip is the raw body (`audio/*` or `application/octet-stream`) or the field `file` of a multipart form.
Clips are kept in memory up to SPOOL_BYTES, longer ones in a temporary file, so that many long uploads at once
do not fill the memory.
"""

import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import AudioMissing, BadRequest, BodyTooLarge, UnsupportedMediaType

FIELD = "file"
MAX_FILES = 256  # in one /embed/batch: their answers alone take megabytes
SPOOL_BYTES = 16_000_000  # a minute and a half of CD sound

ACCEPTED = "the sound itself as the body with a Content-Type of audio/* or application/octet-stream"
ACCEPTED_FORM = f"a multipart/form-data form with the sound in the field `{FIELD}`"


class ClientLeft(Exception):  # noqa: N818 - nobody's mistake, and nobody is there to be told
    """The client closed the connection before it was answered."""


@dataclass(frozen=True)
class Upload:
    """One clip. source: its encoded bytes, in memory or in a temporary file; name: as the client says."""

    source: bytes | BinaryIO
    name: str = ""

    def close(self) -> None:
        """Give the temporary file back, if there is one."""
        if not isinstance(self.source, bytes):
            self.source.close()


async def read_clip(request: Request, *, max_body_bytes: int) -> Upload:
    """The one clip of a request. Raises BodyTooLarge, UnsupportedMediaType, AudioMissing or BadRequest."""
    media_type, options = _media_type(request)
    if media_type == "multipart/form-data":
        uploads = await _read_form(request, options, max_body_bytes)
        if len(uploads) > 1:
            raise BadRequest(
                f"the form holds {len(uploads)} files; send one, or all of them to {request.url.path}/batch"
            )
        return uploads[0]
    if not (media_type.startswith("audio/") or media_type == "application/octet-stream"):
        raise UnsupportedMediaType(f"{_as_sent(media_type)}; send {ACCEPTED}, or {ACCEPTED_FORM}")
    body = _Body()
    async for chunk in _stream(request, max_body_bytes):
        body.write(chunk)
    if body.length == 0:
        raise AudioMissing(f"the body is empty; send {ACCEPTED}, or {ACCEPTED_FORM}")
    return Upload(body.source())


async def read_clips(request: Request, *, max_body_bytes: int) -> list[Upload]:
    """All clips of a batch, one field `file` each, in order. Raises as `read_clip` does."""
    media_type, options = _media_type(request)
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType(f"{_as_sent(media_type)}; send {ACCEPTED_FORM}, once for each clip")
    return await _read_form(request, options, max_body_bytes)


def _media_type(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """(media type in lower case, its options). Without a header, bytes: as RFC 9110 (8.3) allows."""
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise UnsupportedMediaType(f"the Content-Encoding is {coding}; send the body as it is")
    header = request.headers.get("content-type") or "application/octet-stream"
    media_type, options = parse_options_header(header)
    return media_type.decode("latin-1").strip().lower(), options


def _as_sent(media_type: str) -> str:
    hint = " (curl's default)" if media_type == "application/x-www-form-urlencoded" else ""
    return f"the Content-Type is {media_type or 'empty'}{hint}"


async def _stream(request: Request, max_body_bytes: int) -> AsyncIterator[bytes]:
    """The body's chunks. Raises BodyTooLarge by Content-Length, or with the chunk that passes the limit."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_body_bytes:
        raise _too_large(max_body_bytes)
    length = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk = message.get("body", b"")
        length += len(chunk)
        if length > max_body_bytes:
            raise _too_large(max_body_bytes)
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


def _too_large(max_body_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is longer than the {max_body_bytes} bytes that are accepted; send a shorter clip, "
        "or compress it"
    )


async def _read_form(request: Request, options: dict[bytes, bytes], max_body_bytes: int) -> list[Upload]:
    if not options.get(b"boundary"):
        raise BadRequest("the Content-Type multipart/form-data names no boundary; let the HTTP client set it")
    try:
        form = _Form(options[b"boundary"])
        async for chunk in _stream(request, max_body_bytes):
            form.feed(chunk)
    except FormParserError as error:
        raise BadRequest(f"the multipart body is malformed: {error}") from error
    return form.uploads()


class _Body:
    """Bytes that arrive in chunks: a list in memory, from SPOOL_BYTES on a temporary file."""

    def __init__(self) -> None:
        self.length = 0
        self._chunks: list[bytes] = []
        self._file: BinaryIO | None = None

    def write(self, chunk: bytes) -> None:
        self.length += len(chunk)
        if self._file is None and self.length > SPOOL_BYTES:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by Upload.close
            self._file.writelines(self._chunks)
            self._chunks = []
        if self._file is None:
            self._chunks.append(chunk)
        else:
            self._file.write(chunk)  # into the page cache: tens of microseconds, no reason to leave the loop

    def source(self) -> bytes | BinaryIO:
        if self._file is not None:
            self._file.seek(0)
            return self._file
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)


class _Form:
    """A multipart body, parsed as it arrives; only the fields `file` are kept."""

    def __init__(self, boundary: bytes) -> None:
        self._files: list[tuple[str, _Body]] = []
        self._other_fields: list[str] = []
        self._body: _Body | None = None
        self._header_name = self._header_value = self._disposition = b""
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

    def uploads(self) -> list[Upload]:
        """The clips. Raises BadRequest or AudioMissing where the form is not one of clips alone."""
        if not self._is_complete:
            raise BadRequest("the multipart body ends before its closing boundary; send the whole form")
        if not self._files:
            fields = ", ".join(f"`{name}`" for name in self._other_fields) or "no fields"
            raise AudioMissing(f"the form has no field `{FIELD}`, it has {fields}; send {ACCEPTED_FORM}")
        if self._other_fields:
            raise BadRequest(
                f"the form field `{self._other_fields[0]}` is not known; parameters go into the query string"
            )
        return [Upload(body.source(), name) for name, body in self._files]

    def _begin_part(self) -> None:
        self._disposition = b""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            self._other_fields.append(field)
            self._body = None
            return
        if len(self._files) == MAX_FILES:
            raise BadRequest(f"the form holds more than {MAX_FILES} files; send several requests")
        self._body = _Body()
        self._files.append((options.get(b"filename", b"").decode("utf-8", "replace"), self._body))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._body is not None:
            self._body.write(data[start:end])

    def _end(self) -> None:
        self._is_complete = True
