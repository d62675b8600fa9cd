"""Bodies read in a stream: raw and multipart, in chunks of any size, never past the limit."""

import asyncio
import base64
import gc
import io
import resource
import socket
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from starlette.requests import Request

from service import upload
from service.audio import decode
from service.errors import (
    AudioMissing,
    AudioUnreadable,
    BadRequest,
    BodyTooLarge,
    Overloaded,
    UnsupportedMediaType,
    UploadTimeout,
    ViolaError,
)
from service.upload import Body, ClientLeft, Intake, Upload, read_clip, read_clips


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


def intake(max_body_bytes: int = 1_000_000, *, timeout_s: float = 5, max_held_bytes: int = 10**9) -> Intake:
    return Intake(max_body_bytes, timeout_s, max_held_bytes)


def read(sender: Sender, max_body_bytes: int = 1_000_000) -> Upload:
    return asyncio.run(read_clip(sender.request, intake(max_body_bytes)))


@pytest.mark.parametrize("kind", ["audio/wav", "AUDIO/X-Anything; rate=8000", "application/octet-stream"])
def test_a_raw_body_is_the_clip(kind: str) -> None:
    assert read(Sender([b"RI", b"FF"], content_type=kind)).source == b"RIFF"


def test_a_body_without_a_type_is_bytes() -> None:
    assert read(Sender([b"RIFF"])).source == b"RIFF"


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "video/mp4", "nonsense"])
def test_another_type_is_refused_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(
        UnsupportedMediaType,
        match=r"audio/\* or application/octet-stream, a multipart.*, or application/json",
    ):
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
    clips = asyncio.run(read_clips(sender.request, intake()))
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
        asyncio.run(read_clips(sender_of_form(body).request, intake()))


def test_a_batch_takes_forms_only() -> None:
    with pytest.raises(UnsupportedMediaType, match="once for each clip"):
        asyncio.run(read_clips(Sender([b"x"], content_type="audio/wav").request, intake()))


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


class DripDrop:
    """A request whose body never ends: `chunk` every `pause_s` seconds."""

    def __init__(self, chunk: bytes, pause_s: float) -> None:
        self.sent = 0
        self._chunk, self._pause_s = chunk, pause_s
        scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
        self.request = Request(scope, self._receive)

    async def _receive(self) -> dict[str, Any]:
        await asyncio.sleep(self._pause_s)
        self.sent += len(self._chunk)
        return {"type": "http.request", "body": self._chunk, "more_body": True}


@pytest.mark.parametrize(("chunk", "pause_s"), [(b"x", 0.02), (b"x" * 10, 0.1), (b"", 60)])
def test_a_slow_body_is_refused_whether_it_drips_or_stops(chunk: bytes, pause_s: float) -> None:
    slow = DripDrop(chunk, pause_s)
    with pytest.raises(UploadTimeout, match=r"fewer than 500 per second in the last 0\.3 s; send it again"):
        asyncio.run(read_clip(slow.request, intake(timeout_s=0.3)))
    assert slow.sent < 0.3 * upload.MIN_BYTES_PER_S


def test_a_long_body_may_take_long_as_long_as_it_comes_fast_enough() -> None:
    steady = DripDrop(b"x" * 100, 0.01)
    with pytest.raises(BodyTooLarge):  # after a second, with a limit of 0.2 s
        asyncio.run(read_clip(steady.request, intake(10_000, timeout_s=0.2)))
    assert steady.sent > 10_000


def test_all_bodies_together_may_hold_so_much() -> None:
    shared = intake(max_held_bytes=100)

    async def read_one(n_bytes: int) -> Upload:
        return await read_clip(Sender([b"x" * n_bytes], content_type="audio/wav").request, shared)

    first, second = asyncio.run(read_one(60)), asyncio.run(read_one(40))
    with pytest.raises(Overloaded, match="no room for more uploads"):
        asyncio.run(read_one(1))
    first.close()
    assert asyncio.run(read_one(60)).source == b"x" * 60
    second.close()
    second.close()  # twice is once
    assert shared.held_bytes == 0  # the third is forgotten: it has no name


@pytest.mark.parametrize(
    "sender",
    [
        Sender([b"x" * 2_000_000], content_type="audio/wav"),
        Sender([b"x" * 50], leaves=True, content_type="audio/wav"),
        sender_of_form(form(("file", "a", b"x"), ("file", "b", b"y"))),
        sender_of_form(form(("file", "a", b"x"), ("model", None, b"y"))),
        sender_of_form(form(("file", "a", b"x"))[:-10]),
        Sender([b"xyz"], content_type="audio/l16;rate=8000"),
    ],
)
def test_a_body_that_is_refused_holds_nothing(sender: Sender) -> None:
    empty = intake()
    with pytest.raises((ViolaError, ClientLeft)):
        asyncio.run(read_clip(sender.request, empty))
    assert empty.held_bytes == empty.bytes_in_memory == 0


def test_a_form_of_many_other_fields_is_refused_before_its_end() -> None:
    body = form(*[("other", None, b"x")] * 1000)
    sender = sender_of_form(body, step=1000)
    with pytest.raises(BadRequest, match="more than 16 fields that are not `file`"):
        read(sender)
    assert 1000 * sender.sent < len(body) / 10


# ── Raw PCM ──


def decoded(clip: Upload) -> np.ndarray:
    return decode(clip.source, sample_rate=16_000).samples


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("audio/L16; rate=16000", ">i2"),
        ("audio/l16;rate=16000;channels=1;endianness=big-endian", ">i2"),
        ('audio/l16;rate="16000";Endianness=Little-Endian', "<i2"),
    ],
)
@pytest.mark.parametrize("as_form", [False, True])
def test_raw_pcm_is_read_as_its_type_says(kind: str, order: str, as_form: bool) -> None:
    samples = (8192 * np.sin(np.arange(1000))).astype(order)
    body = form(("file", "a", samples.tobytes())).replace(b"audio/wav", kind.encode())
    sender = sender_of_form(body, 100) if as_form else Sender([samples.tobytes()], content_type=kind)
    np.testing.assert_array_equal(decoded(read(sender)), samples.astype(np.float32) / 32_768)


def test_channels_of_raw_pcm_are_averaged_and_its_rate_is_the_one_it_says() -> None:
    left_right = np.array([[8192, 16_384]] * 8000, dtype=">i2")
    clip = read(Sender([left_right.tobytes()], content_type="audio/l16;rate=8000;channels=2"))
    waveform = decode(clip.source, sample_rate=16_000)
    assert waveform.duration_s == 1
    np.testing.assert_allclose(waveform.samples[1000:-1000], 0.375, atol=1e-3)


def test_raw_pcm_that_is_long_goes_to_a_file_with_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "SPOOL_BYTES", 100)
    samples = np.arange(200, dtype=">i2")
    clip = read(Sender([samples.tobytes()], content_type="audio/l16;rate=16000"))
    assert not isinstance(clip.source, bytes)
    np.testing.assert_array_equal(decoded(clip), samples / np.float32(32_768))
    clip.close()


@pytest.mark.parametrize(
    ("kind", "error", "sentence"),
    [
        ("audio/l16", BadRequest, "names no rate; send e.g. audio/l16;rate=16000"),
        ("audio/l16;rate=fast", BadRequest, "rate is fast in audio/l16; it is a whole number"),
        ("audio/l16;rate=0", BadRequest, "rate is 0"),
        ("audio/l16;rate=9999999999", BadRequest, "from 1 to 768000"),
        ("audio/l16;rate=8000;channels=0", BadRequest, "channels is 0"),
        ("audio/l16;rate=8000;channels=65", BadRequest, "from 1 to 64"),
        (
            "audio/l16;rate=8000;endianness=middle",
            BadRequest,
            "endianness is middle; it may be big-endian or",
        ),
        ("audio/l16;rate=8000;channel=2", BadRequest, "the option `channel` of audio/l16 is not known"),
        ("audio/l16;rate=8000;channels=2", AudioUnreadable, r"6 bytes, no whole number of frames of 4 bytes"),
    ],
)
def test_raw_pcm_that_does_not_say_enough_is_refused(
    kind: str, error: type[ViolaError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        read(Sender([b"123456"], content_type=kind))


def test_empty_raw_pcm_misses_its_audio() -> None:
    with pytest.raises(AudioMissing):
        read(Sender([b""], content_type="audio/l16;rate=8000"))


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


def test_a_clip_in_memory_is_held_once_and_let_go() -> None:
    body = Body(intake())
    for _ in range(100):
        body.write(b"x" * 1000)
    joined = body.source()
    assert body.source() is joined  # the chunks are gone
    count = sys.getrefcount(joined)
    body.close()
    assert sys.getrefcount(joined) == count - 1


@pytest.mark.parametrize("n_bytes", [100, 3_000_000])
def test_a_full_disk_is_no_room_and_holds_nothing(
    n_bytes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upload, "SPOOL_BYTES", 50)
    shared = intake(10_000_000)
    chunks = [b"x" * (n_bytes // 10)] * 10
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # no file may be longer
    try:
        with pytest.raises(Overloaded, match="no room for more uploads"):
            asyncio.run(read_clip(Sender(chunks, content_type="audio/wav").request, shared))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert shared.held_bytes == shared.bytes_in_memory == 0
    assert "File too large" in caplog.text


def test_a_form_leaves_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = []

    class Seen(upload._Form):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            forms.append(weakref.ref(self))

    monkeypatch.setattr(upload, "_Form", Seen)
    gc.disable()
    try:
        clip = read(sender_of_form(form(("file", "a", b"x"))))
        assert forms[0]() is None
        assert clip.source == b"x"
    finally:
        gc.enable()


# ── Over a socket ──


def test_a_client_of_a_byte_a_second_is_told_408_and_let_go(serve: Any) -> None:
    with serve(upload_timeout_s=0.5) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"POST /embed HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\nRIFF")
            received = b""
            while chunk := client.recv(10_000):  # until the server closes
                received += chunk
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in received
        assert b'"error":"upload_timeout"' in received
        assert httpx.get(f"{url}/health/live").status_code == 200


def test_a_body_that_is_too_long_is_told_413_and_its_connection_ends(serve: Any) -> None:
    with serve(max_body_bytes=1000) as url, httpx.Client(base_url=url) as client:
        for body in (b"x" * 3_000_000, iter([b"x" * 1_000_000] * 3)):  # announced, and in chunks
            answer = client.post("/embed", content=body, headers={"Content-Type": "audio/wav"})
            assert answer.status_code == 413
            assert answer.headers["connection"] == "close"
            assert answer.json()["error"] == "body_too_large"


def test_json_raw_pcm_and_a_form_give_what_the_file_itself_gives(live_url: str) -> None:
    samples = (8192 * np.sin(np.arange(16_000) / 5)).astype("<i2")
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    wav = file.getvalue()
    raw = httpx.post(f"{live_url}/embed", content=wav, headers={"Content-Type": "audio/wav"}).json()
    kind = "audio/l16;rate=16000;endianness=little-endian"
    pcm = httpx.post(f"{live_url}/embed", content=samples.tobytes(), headers={"Content-Type": kind}).json()
    encoded = base64.b64encode(wav).decode()
    as_json = httpx.post(f"{live_url}/embed", json={"audio": encoded})
    assert raw == pcm == as_json.json() == httpx.post(f"{live_url}/embed", files={"file": wav}).json()
    assert float(as_json.headers["Server-Timing"].split("read;dur=")[1].split(",")[0]) > 0
    batch = {"audio": [encoded, "AAAA"], "top_k": 1}
    first, second = httpx.post(f"{live_url}/classify/batch", json=batch).json()["results"]
    assert len(first["tags"]) == 1
    assert second["error"] == "audio_unreadable"
