"""The clips of a body: raw, in a form of any number of chunks, or raw PCM."""

import asyncio
import base64
import gc
import io
import weakref
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from service.errors import (
    AudioMissing,
    AudioUnreadable,
    BadRequest,
    UnsupportedMediaType,
    ViolaError,
)
from service.http import request_body, upload
from service.http.upload import Upload, read_clips
from service.sound.audio import decode
from tests.service.http.bodies import Sender, budget, form, read, sender_of_form


@pytest.mark.parametrize(
    "kind",
    [
        "audio/wav",
        "AUDIO/X-Anything; rate=8000",
        "application/octet-stream",
        "video/webm;codecs=opus",  # as browsers give to files
        "video/mp4",
        "application/ogg",
    ],
)
def test_a_raw_body_is_the_clip(kind: str) -> None:
    assert read(Sender([b"RI", b"FF"], content_type=kind)).source == b"RIFF"


def test_a_body_without_a_type_is_bytes() -> None:
    assert read(Sender([b"RIFF"])).source == b"RIFF"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json", "image/png", "application/pdf", "nonsense"]
)
def test_another_type_is_refused_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(
        UnsupportedMediaType,
        match=r"audio/\*, video/\* or application/octet-stream, a multipart.*, or application/json",
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
    clips = asyncio.run(read_clips(sender.request, budget()))
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


@pytest.mark.parametrize("length", [71, 256])
def test_a_boundary_longer_than_the_standard_has_it_is_read_where_the_parser_reads_it(length: int) -> None:
    boundary = b"B" * length
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    body = form(("file", "a", b"x")).replace(b"--cut", b"--" + boundary)
    assert read(Sender([body], content_type=kind)) == Upload(b"x", "a")


@pytest.mark.parametrize("length", [257, 50_000])
def test_a_boundary_that_is_too_long_is_refused_with_a_sentence(length: int) -> None:
    with pytest.raises(BadRequest, match=f"has {length} characters, and may have 70"):
        read(Sender([b"x"], content_type=f"multipart/form-data; boundary={'B' * length}"))


@pytest.mark.parametrize(
    "boundary", ['"', '""', '"a', "\x80\xff", "a b", "'", '"a\\"b"', "x;boundary=y", "=;=", "*"]
)
def test_a_boundary_of_any_characters_is_no_fault_of_ours(boundary: str) -> None:
    with pytest.raises(BadRequest):
        read(Sender([b"x"], content_type=f"multipart/form-data; boundary={boundary}"))


def test_the_name_of_a_file_has_a_limit() -> None:
    (clip,) = asyncio.run(read_clips(sender_of_form(form(("file", "n" * 4000, b"x"))).request, budget()))
    assert clip.name == "n" * 255 + "..."


def test_a_form_of_too_many_files_is_refused() -> None:
    body = form(*[("file", "a", b"x")] * (upload.MAX_FILES + 1))
    with pytest.raises(BadRequest, match="more than 256 files"):
        asyncio.run(read_clips(sender_of_form(body).request, budget()))


def test_a_batch_takes_forms_only() -> None:
    with pytest.raises(UnsupportedMediaType, match="once for each clip"):
        asyncio.run(read_clips(Sender([b"x"], content_type="audio/wav").request, budget()))


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
    monkeypatch.setattr(request_body, "SPOOL_BYTES", 100)
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
