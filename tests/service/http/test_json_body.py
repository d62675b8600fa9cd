"""Sounds in JSON: base64 and data: URIs, and the parameters beside them."""

import asyncio
import base64
import gc
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request

from service.errors import AudioMissing, AudioUnreadable, BadRequest, BodyTooLarge, Overloaded, ViolaError
from service.http import json_body
from service.http.json_body import decoded, read_request
from service.http.parameters import ClassifyParameters, EmbedParameters
from service.http.request_body import UploadBudget
from service.http.upload import Upload, read_clip, read_clips
from service.sound.audio import decode

SOUND = bytes(range(256))
BASE64 = base64.b64encode(SOUND).decode()


def request_of(body: bytes, query: str = "", kind: str = "application/json") -> Request:
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": headers}
    return Request(scope | {"query_string": query.encode()}, receive)


def budget(max_body_bytes: int = 100_000_000) -> UploadBudget:
    return UploadBudget(max_body_bytes, timeout_s=5, max_held_bytes=10**9)


def read(content: Any, query: str = "", room: UploadBudget | None = None) -> tuple[EmbedParameters, Upload]:
    async def read_both() -> tuple[EmbedParameters, Upload]:
        request, limits = request_of(json.dumps(content).encode(), query), room or budget()
        return await read_request(EmbedParameters, request, limits), await read_clip(request, limits)

    return asyncio.run(read_both())


def read_many(content: Any) -> list[Upload]:
    async def read_both() -> list[Upload]:
        request, limits = request_of(json.dumps(content).encode()), budget()
        await read_request(ClassifyParameters, request, limits, many=True)
        return await read_clips(request, limits)

    return asyncio.run(read_both())


@pytest.mark.parametrize(
    "sound",
    [
        BASE64,
        f"data:audio/wav;base64,{BASE64}",
        f"DATA:;BASE64,{BASE64}",
        "\r\n".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76)),
        base64.urlsafe_b64encode(SOUND).decode(),
    ],
)
def test_the_sound_is_base64_or_a_data_uri(sound: str) -> None:
    assert read({"audio": sound})[1].source == SOUND


def test_parameters_stand_beside_the_sound_or_in_the_query() -> None:
    content = {"audio": BASE64, "window_s": 2, "frames": True, "dtype": "float16"}
    parameters, _ = read(content, "encoding=base64")
    assert parameters == EmbedParameters(window_s=2.0, frames=True, dtype="float16", encoding="base64")


def test_several_sounds_keep_their_order() -> None:
    clips = read_many({"audio": ["AAAA", "data:audio/ogg;base64,////"], "top_k": 2})
    assert [clip.source for clip in clips] == [b"\0\0\0", b"\xff\xff\xff"]
    assert [clip.source for clip in read_many({"audio": "AAAA"})] == [b"\0\0\0"]


def test_a_data_uri_of_raw_pcm_says_its_rate() -> None:
    samples = np.array([8192, -8192] * 50, dtype=">i2")
    uri = f"data:audio/L16;rate=16000;base64,{base64.b64encode(samples.tobytes()).decode()}"
    waveform = decode(decoded(uri, "it"), sample_rate=16_000)
    np.testing.assert_array_equal(waveform.samples, samples / np.float32(32_768))


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        ({}, AudioMissing, "the JSON has no `audio`; it is the sound in base64"),
        ([BASE64], BadRequest, "the JSON is no object"),
        ({"audio": 5}, BadRequest, "`audio` is the sound as a string, or a list of such strings"),
        ({"audio": [1, 2]}, BadRequest, "a list of such strings"),
        ({"audio": [BASE64]}, BadRequest, "lists under /embed/batch"),
        ({"audio": "no base64!"}, BadRequest, r"`audio` is no base64 \(.*\); send the bytes of the file"),
        ({"audio": "ümläut"}, BadRequest, "no base64"),
        ({"audio": "data:audio/wav,%00%01"}, BadRequest, "a data: URI without `;base64,`"),
        ({"audio": "data:audio/l16;base64,AAAA"}, BadRequest, "names no rate"),
        ({"audio": "data:audio/l16;rate=8000;base64,AAAA"}, AudioUnreadable, "3 bytes, no whole number"),
        ({"audio": "https://example.org/a.wav"}, BadRequest, "is a URL, and nothing is fetched here"),
        ({"audio": "file:///etc/passwd"}, BadRequest, "nothing is fetched"),
        ({"audio": BASE64, "windows": 1}, BadRequest, "the parameter `windows` is not known"),
        ({"audio": BASE64, "window_s": "long"}, BadRequest, "window_s: input should be a valid number"),
        ({"audio": BASE64, "encoding": "base64"}, BadRequest, "`encoding` is given 2 times"),
    ],
)
def test_what_is_no_sound_is_refused(content: Any, error: type[ViolaError], sentence: str) -> None:
    room = budget()
    with pytest.raises(error, match=sentence):
        read(content, "encoding=float", room)
    assert room.held_bytes == 0


def test_the_sentence_names_the_sound_of_a_list() -> None:
    with pytest.raises(BadRequest, match=r"`audio`\[1\] is no base64"):
        read_many({"audio": ["AAAA", "A"]})
    with pytest.raises(AudioMissing, match="an empty list"):
        read_many({"audio": []})
    with pytest.raises(BadRequest, match="more than 256 sounds"):
        read_many({"audio": ["AAAA"] * 257})


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(BadRequest, match="the body is no JSON: "):
        asyncio.run(read_request(EmbedParameters, request_of(b"{"), budget()))


def test_a_sentence_repeats_little_of_what_was_sent() -> None:
    with pytest.raises(BadRequest) as refused:
        read({"audio": BASE64, "frames": "x" * 100_000, "y" * 100_000: 1})
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "body",
    [
        '{"audio": "", ' + ", ".join(f'"{i:x}": 1' for i in range(200_000)) + "}",
        '{"audio": [' + ", ".join(["1"] * 500_000) + "]}",
        '{"audio": [' + ", ".join(["{}"] * 500_000) + "]}",
    ],
)
def test_json_of_very_many_values_is_refused_before_it_is_taken_apart(body: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match="more than 2000 values"):
            asyncio.run(read_request(EmbedParameters, request_of(body.encode()), budget()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body)  # the body itself, where it is held; its values would be twenty times as much


def test_the_complaints_of_one_answer_are_few() -> None:
    with pytest.raises(BadRequest, match=r"and 1001 more$") as refused:
        read({"audio": BASE64, "top_k": 0} | {f"field{i}": i for i in range(1005)})
    assert str(refused.value).count(" is not known") == 5


def test_a_large_body_is_read_as_a_small_one() -> None:
    sound = np.random.default_rng(0).bytes(3 * json_body.SLICE)
    room = budget()
    _, clip = read({"audio": base64.b64encode(sound).decode()}, room=room)
    assert not isinstance(clip.source, bytes)  # it is long, and therefore in a file, as uploads of all kinds
    assert clip.source.read() == sound
    assert room.held_bytes == len(sound)
    assert room.bytes_in_memory == 0
    clip.close()
    assert room.held_bytes == 0


def test_sounds_for_which_there_is_no_room_leave_nothing() -> None:
    room = budget()
    content = {"audio": BASE64}
    room.max_held_bytes = len(json.dumps(content))
    _, first = read(content, room=room)
    with pytest.raises(Overloaded):
        read(content, room=room)
    first.close()
    assert room.held_bytes == room.bytes_in_memory == 0


def test_json_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "MAX_JSON_BYTES", 100)
    with pytest.raises(BodyTooLarge, match=r"longer than the 100 bytes .* send its bytes"):
        read({"audio": BASE64})


def test_a_clip_holds_its_room_until_it_is_closed_or_forgotten() -> None:
    room = budget()
    _, clip = read({"audio": BASE64}, room=room)
    assert room.held_bytes == room.bytes_in_memory == len(SOUND)
    clip.close()
    assert room.held_bytes == 0
    _, clip = read({"audio": BASE64}, room=room)
    del clip  # as in a request that ends with an unknown model
    gc.collect()
    assert room.held_bytes == 0


def test_another_body_is_left_alone() -> None:
    request = request_of(b"RIFF", "window_s=1", kind="audio/wav")

    async def read_both() -> tuple[EmbedParameters, Upload]:
        return await read_request(EmbedParameters, request, budget()), await read_clip(request, budget())

    parameters, clip = asyncio.run(read_both())
    assert parameters.window_s == 1
    assert clip.source == b"RIFF"
