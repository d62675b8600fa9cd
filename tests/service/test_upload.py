"""Bodies read in a stream: raw and multipart, in chunks of any size, never past the limit."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request

from service import upload
from service.errors import AudioMissing, BadRequest, BodyTooLarge, UnsupportedMediaType, ViolaError
from service.upload import ClientLeft, Upload, read_clip, read_clips


class Sender:
    """A request whose body comes in the given chunks; `sent` counts those that were taken."""

    def __init__(self, chunks: Sequence[bytes], *, leaves: bool = False, **headers: str) -> None:
        self.sent = 0
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": leaves or index + 1 < len(chunks)}
            for index, chunk in enumerate(chunks)
        ] + [{"type": "http.disconnect"}]
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": raw, "query_string": b""}
        self.request = Request(scope | {"server": ("test", 80)}, self._receive)

    async def _receive(self) -> dict[str, Any]:
        self.sent += 1
        return self._messages[self.sent - 1]


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """A multipart body with the boundary `cut`; each part is (field, file name, content)."""
    body = b""
    for field, name, content in parts:
        file_name = f'; filename="{name}"' if name is not None else ""
        head = (
            f'--cut\r\nContent-Disposition: form-data; name="{field}"{file_name}\r\nContent-Type: audio/wav'
        )
        body += head.encode() + b"\r\n\r\n" + content + b"\r\n"
    return body + b"--cut--\r\n"


def sender_of_form(body: bytes, step: int = 10_000) -> Sender:
    chunks = [body[start : start + step] for start in range(0, len(body), step)]
    return Sender(chunks, content_type="multipart/form-data; boundary=cut")


def read(sender: Sender, max_body_bytes: int = 1_000_000) -> Upload:
    return asyncio.run(read_clip(sender.request, max_body_bytes=max_body_bytes))


@pytest.mark.parametrize("kind", ["audio/wav", "AUDIO/X-Anything; rate=8000", "application/octet-stream"])
def test_a_raw_body_is_the_clip(kind: str) -> None:
    assert read(Sender([b"RI", b"FF"], content_type=kind)).source == b"RIFF"


def test_a_body_without_a_type_is_bytes() -> None:
    assert read(Sender([b"RIFF"])).source == b"RIFF"


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "video/mp4", "nonsense"])
def test_another_type_is_refused_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=r"audio/\* or application/octet-stream, or a multipart"):
        read(Sender([b"RIFF"], content_type=kind))


def test_curls_default_type_is_recognised() -> None:
    with pytest.raises(UnsupportedMediaType, match="curl's default"):
        read(Sender([b"RIFF"], content_type="application/x-www-form-urlencoded"))


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="Content-Encoding is gzip"):
        read(Sender([b"RIFF"], content_encoding="gzip"))


def test_an_empty_body_misses_its_audio() -> None:
    with pytest.raises(AudioMissing, match="the body is empty"):
        read(Sender([b""], content_type="audio/wav"))


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
def test_a_form_is_read_in_chunks_of_any_size(step: int) -> None:
    content = bytes(range(256)) + b"\r\n--cu\r\n--not the end"
    clip = read(sender_of_form(form(("file", "a b.wav", content)), step))
    assert clip == Upload(content, "a b.wav")


def test_several_files_keep_their_order_and_names() -> None:
    sender = sender_of_form(form(("file", "one", b"1"), ("file", "two", b""), ("file", None, b"3")), 5)
    clips = asyncio.run(read_clips(sender.request, max_body_bytes=1000))
    assert clips == [Upload(b"1", "one"), Upload(b"", "two"), Upload(b"3", "")]


@pytest.mark.parametrize(
    ("body", "error", "sentence"),
    [
        (form(), AudioMissing, "it has no fields"),
        (form(("audio", "a.wav", b"x")), AudioMissing, "no field `file`, it has `audio`"),
        (form(("file", "a", b"x"), ("file", "b", b"y")), BadRequest, "2 files; send one, or all"),
        (form(("file", "a", b"x"), ("model", None, b"y")), BadRequest, "`model` is not known; parameters go"),
        (form(("file", "a", b"x"))[:-10], BadRequest, "ends before its closing boundary"),
        (b"no form at all", BadRequest, "malformed"),
        (b"", BadRequest, "ends before"),
    ],
)
def test_a_form_that_is_not_one_clip_is_refused(body: bytes, error: type[ViolaError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        read(
            sender_of_form(body) if body else Sender([b""], content_type="multipart/form-data; boundary=cut")
        )


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(BadRequest, match="boundary"):
        read(Sender([b"x"], content_type="multipart/form-data"))


def test_a_form_of_too_many_files_is_refused() -> None:
    body = form(*[("file", "a", b"x")] * (upload.MAX_FILES + 1))
    with pytest.raises(BadRequest, match="more than 256 files"):
        asyncio.run(read_clips(sender_of_form(body).request, max_body_bytes=1_000_000))


def test_a_batch_takes_forms_only() -> None:
    with pytest.raises(UnsupportedMediaType, match="once for each clip"):
        asyncio.run(read_clips(Sender([b"x"], content_type="audio/wav").request, max_body_bytes=10))


def test_an_announced_length_over_the_limit_is_refused_before_reading() -> None:
    sender = Sender([b"x" * 11], content_type="audio/wav", content_length="11")
    with pytest.raises(BodyTooLarge, match="10 bytes"):
        read(sender, max_body_bytes=10)
    assert sender.sent == 0


@pytest.mark.parametrize("kind", ["audio/wav", "multipart/form-data; boundary=cut"])
def test_a_body_over_the_limit_is_refused_with_the_chunk_that_passes_it(kind: str) -> None:
    start = form(("file", "a", b""))[:-11] if "cut" in kind else b""
    sender = Sender([start, *[b"xxxx"] * 100], content_type=kind)
    with pytest.raises(BodyTooLarge):
        read(sender, max_body_bytes=len(start) + 10)
    assert sender.sent == 4


def test_a_body_at_the_limit_is_accepted() -> None:
    assert read(Sender([b"x" * 10], content_type="audio/wav", content_length="10"), 10).source == b"x" * 10


def test_a_client_that_leaves_while_sending_is_noticed() -> None:
    with pytest.raises(ClientLeft):
        read(Sender([b"RI"], leaves=True, content_type="audio/wav"))


@pytest.mark.parametrize("as_form", [False, True])
def test_a_long_body_goes_to_a_file(as_form: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "SPOOL_BYTES", 100)
    content = bytes(range(250))
    clip = read(
        sender_of_form(form(("file", "a", content)), 60)
        if as_form
        else Sender([content[:120], content[120:]], content_type="audio/wav")
    )
    assert not isinstance(clip.source, bytes)
    with clip.source as file:
        assert file.read() == content
