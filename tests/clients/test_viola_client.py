"""The Python client against a live server."""

import asyncio
import inspect
import io
import itertools
import math
import os
import shutil
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from packaging.requirements import Requirement

from benchmarks.harness.servers import running, viola
from service.http.parameters import ClassifyParameters, EmbedParameters, TextParameters
from tests.service.conftest import write_toy
from tests.service.http.live import serving
from tests.service.text_towers import TOWER, vector_of, write_text_toy

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.insert(0, str(ROOT / "clients" / "python"))

from viola_client import (  # noqa: E402 - it is no package of this repository's environment
    AsyncClient,
    AudioMissing,
    AudioUnreadable,
    BadRequest,
    BodyTooLarge,
    Client,
    Embedding,
    Forbidden,
    LiveWindow,
    NoText,
    Overloaded,
    Retries,
    SoundError,
    TeachingOff,
    TextTooLong,
    Unauthorized,
    UnknownHead,
    UnknownModel,
    Unreachable,
    ViolaError,
)
from viola_client.results import classification_of  # noqa: E402
from viola_client.sounds import wav  # noqa: E402

DOG = FIXTURES / "dog_bark_44k1_mono.ogg"
YES = FIXTURES / "keyword_yes_16k_mono_pcm16.wav"
AT_ONCE = Retries(attempts=3, first_s=0.01)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = viola(ROOT / "models" / "byola", "int8")
    with_a_key = replace(server, environment=server.environment | {"VIOLA_API_KEYS": "open"})
    with running(with_a_key) as up:
        yield f"http://127.0.0.1:{up.port}"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, api_key="open", retries=AT_ONCE) as client:
        yield client


def test_a_path_its_bytes_and_its_samples_are_one_sound(client: Client) -> None:
    samples = soundfile.read(YES, dtype="float32")
    from_path, from_bytes, from_samples = map(client.embed, (YES, YES.read_bytes(), samples))
    assert from_path.vector.shape == (3072,)
    assert from_path.vector.dtype == np.float32
    assert from_path.duration_s == 1.0
    np.testing.assert_array_equal(from_path.vector, from_bytes.vector)
    np.testing.assert_allclose(from_path.vector, from_samples.vector, rtol=1e-5, atol=1e-6)


def test_integers_and_channels_are_scaled_and_mixed_as_in_a_file(client: Client) -> None:
    integers, rate = soundfile.read(YES, dtype="int16")
    stereo = np.stack([integers, integers], axis=1)
    expected = client.embed(YES).vector
    np.testing.assert_allclose(client.embed((stereo, rate)).vector, expected, rtol=1e-5, atol=1e-6)


def test_frames_windows_and_float16(client: Client) -> None:
    embedding = client.embed(DOG, frames=True, window_s=1.0, hop_s=0.5, dtype="float16")
    assert embedding.frames is not None
    assert embedding.times_s is not None
    assert embedding.windows is not None
    assert embedding.starts_s is not None
    assert embedding.frames.shape == (len(embedding.times_s), 3072)
    assert embedding.windows.shape == (len(embedding.starts_s), 3072)
    assert embedding.frames.dtype == np.float16
    np.testing.assert_allclose(np.diff(embedding.starts_s), 0.5)


def test_tags_and_their_timeline(client: Client) -> None:
    found = client.classify(DOG, head="esc50", top_k=3, window_s=1.0)
    assert found.tags[0].label == "dog"
    assert len(found.tags) == 3
    assert [segment.start_s for segment in found.timeline[:3]] == [0.0, 1.0, 2.0]
    birds = FIXTURES / "birds_30s_16k_mono.opus"
    mean, highest = (client.classify(birds, head="esc50", top_k=50, pooling=how) for how in ("mean", "max"))
    assert sum(tag.score for tag in mean.tags) == pytest.approx(1, abs=1e-4)
    assert sum(tag.score for tag in highest.tags) > 1


def test_segments_say_when_a_label_is_heard(client: Client) -> None:
    found = client.classify(DOG, head="esc50", segments=True, begin=0.6, end=0.3, shortest_s=0.5, gap_s=0.5)
    dog = [segment for segment in found.segments if segment.label == "dog"]
    assert dog
    assert all(0 <= each.start_s < each.end_s <= found.duration_s and each.score >= 0.6 for each in dog)
    assert found.timeline == ()


@pytest.mark.parametrize("asked", [{"normalize": True}, {"dimensions": 128}])
def test_cosines_of_normalised_vectors_mean_something(asked: dict[str, Any], client: Client) -> None:
    sounds = [DOG, YES, FIXTURES / "rain_44k1_mono.mp3", FIXTURES / "violin_44k1_mono_pcm16.wav"]
    plain = [client.embed(sound).vector for sound in sounds]
    vectors = [client.embed(sound, **asked).vector for sound in sounds]
    lengths = [np.linalg.norm(vector) for vector in vectors]
    assert lengths == pytest.approx([1.0] * 4, abs=1e-5)
    assert len(vectors[0]) == asked.get("dimensions", 3072)

    def highest(of: list[Any]) -> float:
        """The greatest cosine of two different sounds."""
        unit = np.stack(of) / np.linalg.norm(of, axis=1, keepdims=True)
        return float((unit @ unit.T - 2 * np.eye(len(of))).max())

    assert highest(plain) > 0.7  # they all point the same way
    assert highest(vectors) < 0.35
    windows = client.embed(DOG, window_s=1.0, **asked).windows
    assert windows is not None
    np.testing.assert_allclose(np.linalg.norm(windows, axis=1), 1, atol=1e-5)


def test_tags_vector_and_picture_come_in_one_answer(client: Client) -> None:
    found = client.classify(DOG, head="esc50", embedding=True, normalize=True, logmel_columns=50)
    assert found.tags[0].label == "dog"
    assert found.vector is not None
    np.testing.assert_allclose(found.vector, client.embed(DOG, normalize=True).vector, atol=1e-3)  # of int8
    embedding = client.embed(DOG, logmel_columns=50)
    for logmel in (found.logmel, embedding.logmel):
        assert logmel is not None
        assert logmel.pixels.shape[0] == 64
        assert 25 < logmel.pixels.shape[1] <= 50
        assert logmel.pixels.dtype == np.uint8
        assert logmel.low < logmel.high
    assert client.classify(DOG).vector is None


def test_it_takes_everything_that_the_server_does() -> None:
    """By the same names, waiting or awaited; the vectors always come as base64."""
    for kind in (Client, AsyncClient):
        embed = set(inspect.signature(kind.embed).parameters) - {"self", "sound"}
        classify = set(inspect.signature(kind.classify).parameters) - {"self", "sound"}
        assert embed == set(EmbedParameters.model_fields) - {"encoding"}
        assert classify == set(ClassifyParameters.model_fields)


def test_an_answer_may_say_how_known_a_sound_is() -> None:
    answer: dict[str, Any] = {"model": "m", "head": "h", "duration_s": 2.0, "tags": []}
    window = {"start_s": 0.0, "end_s": 1.0, "tags": []}
    found = classification_of(answer | {"known": 0.25, "timeline": [window | {"known": 0.5}, window]})
    assert (found.known, [segment.known for segment in found.timeline]) == (0.25, [0.5, None])
    assert classification_of(answer).known is None


def test_many_sounds_come_in_order_each_with_its_own_error(client: Client) -> None:
    sounds = [YES, FIXTURES / "invalid" / "text.wav", FIXTURES / "not_there.wav", *[DOG, YES] * 4]
    outcomes = list(client.embed_many(sounds, concurrency=3))
    assert isinstance(outcomes[1], AudioUnreadable)
    assert isinstance(outcomes[2], SoundError)
    assert isinstance(outcomes[2].__cause__, FileNotFoundError)
    expected = {sound: client.embed(sound) for sound in (YES, DOG)}
    for sound, outcome in zip(sounds, outcomes, strict=True):
        if sound in expected:
            assert isinstance(outcome, Embedding)
            np.testing.assert_allclose(outcome.vector, expected[sound].vector, rtol=1e-4, atol=1e-5)


def test_a_caller_may_stop_half_way(client: Client) -> None:
    outcomes = client.embed_many([YES] * 50, concurrency=2)
    assert isinstance(next(outcomes), Embedding)
    outcomes.close()


def test_the_async_client_does_the_same(url: str, client: Client) -> None:
    async def ask() -> None:
        async with AsyncClient(url, api_key="open") as asynchronous:
            assert await asynchronous.is_ready()
            embedding = await asynchronous.embed(DOG)
            np.testing.assert_allclose(embedding.vector, client.embed(DOG).vector, rtol=1e-4, atol=1e-5)
            assert (await asynchronous.classify(DOG, head="esc50")).tags[0].label == "dog"
            found = await asynchronous.classify(
                DOG, head="esc50", embedding=True, dimensions=64, logmel_columns=9
            )
            assert found.vector is not None
            assert found.logmel is not None
            vector = (await asynchronous.embed(DOG, dimensions=64)).vector
            np.testing.assert_allclose(found.vector, vector, atol=1e-3)
            sounds = [YES, FIXTURES / "invalid" / "text.wav", DOG]
            outcomes = [outcome async for outcome in asynchronous.embed_many(sounds, concurrency=2)]
            assert [type(outcome) for outcome in outcomes] == [Embedding, AudioUnreadable, Embedding]
            assert (await asynchronous.models())["default"] == "byola"

    asyncio.run(ask())


def test_errors_are_exceptions_by_their_code(url: str, client: Client) -> None:
    with pytest.raises(AudioUnreadable) as caught:
        client.embed(FIXTURES / "invalid" / "text.wav")
    assert (caught.value.code, caught.value.status) == ("audio_unreadable", 422)
    with pytest.raises(UnknownModel, match="there is no model `nobody`"):
        client.embed(YES, model="nobody")
    with pytest.raises(UnknownHead):
        client.classify(YES, head="nobody")
    with Client(url) as without_a_key, pytest.raises(Unauthorized):
        without_a_key.embed(YES)
    with pytest.raises(SoundError, match="give \\(n,\\) or \\(n, channels\\)"):
        client.embed((np.zeros((2, 2, 2), np.float32), 16_000))


def test_every_code_of_the_server_has_its_exception() -> None:
    from viola_client.errors import BY_CODE

    from service import errors as of_the_server

    kinds = of_the_server.ViolaError.__subclasses__()
    reach_no_client = {"model_folder"}
    assert {kind.code for kind in kinds} - reach_no_client <= set(BY_CODE)


class Refusing(BaseHTTPRequestHandler):
    """503 twice, then an answer; notes what was sent."""

    bodies: list[bytes] = []  # noqa: RUF012 - of the one server of the test below

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        status, text = 200, b'{"model": "m", "head": "h", "duration_s": 1.0, "tags": []}'
        if len(self.bodies) % 3:
            status, text = 503, b'{"error": "overloaded", "detail": "the queue is full"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if status == 503:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    Refusing.bodies.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_overloaded_server_is_asked_again_with_the_whole_sound(refusing: str) -> None:
    with Client(refusing) as client:
        client.classify(YES)
    assert [len(body) for body in Refusing.bodies] == [YES.stat().st_size] * 3


def test_it_is_not_asked_for_ever(refusing: str) -> None:
    with Client(refusing, retries=Retries(attempts=2)) as client, pytest.raises(Overloaded):
        client.classify(YES)
    assert len(Refusing.bodies) == 2


Kinds = dict[str, tuple[Callable[[], Any], type]]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    """What a caller may give for a sound, good and bad, each made anew, and what comes of it."""
    folder = tmp_path_factory.mktemp("kinds")
    content = YES.read_bytes()
    samples, rate = soundfile.read(YES, dtype="float32")
    os.mkfifo(folder / "pipe.wav")
    (folder / "to_nowhere.wav").symlink_to(folder / "gone.wav")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    good: dict[str, Callable[[], Any]] = {
        "a path": lambda: YES,
        "a path as text": lambda: str(YES),
        "bytes": lambda: content,
        "a bytearray": lambda: bytearray(content),
        "a view": lambda: memoryview(content),
        "an open file": lambda: io.BytesIO(content),
        "a file on the disk, open": lambda: YES.open("rb"),
        "a pipe, open": lambda: written_to_a_pipe(content),
        "samples": lambda: (samples, rate),
        "a rate that is a float": lambda: (samples, float(rate)),
        "NumPy's rate": lambda: (samples, np.int64(rate)),
        "a list": lambda: (samples.tolist(), rate),
        "float64 in two channels": lambda: (np.stack([samples, samples], axis=1).astype(np.float64), rate),
    }
    bad: dict[str, Callable[[], Any]] = {
        "not there": lambda: folder / "gone.wav",
        "a name no system can have": lambda: "a\0b.wav",
        "no name": lambda: "",
        "a folder": lambda: folder,
        "a pipe nobody writes to": lambda: folder / "pipe.wav",
        "a device without end": lambda: Path("/dev/zero"),
        "a link to nowhere": lambda: folder / "to_nowhere.wav",
        "a link to itself": lambda: folder / "loop.wav",
        "a file open as text": lambda: YES.open(encoding="latin-1"),
        "a closed file": closed_file,
        "a released view": released_view,
        "a generator": lambda: (value for value in samples),
        "nothing": lambda: None,
        "a number": lambda: 7,
        "an array without its rate": lambda: samples,
        "three of them": lambda: (samples, rate, "left"),
        "scipy's order": lambda: (rate, samples),
        "channels first": lambda: (np.stack([samples, samples]), rate),
        "one channel first": lambda: (samples[None], rate),
        "more channels than a WAV file can have": lambda: (np.zeros((20_000, 20_000), np.float16), rate),
        "unsigned": lambda: (np.zeros(9, np.uint8), rate),
        "complex": lambda: (np.zeros(9, np.complex64), rate),
        "words": lambda: (["a", "b"], rate),
        "a ragged list": lambda: ([[1.0], [1.0, 2.0]], rate),
        "no samples": lambda: (samples[:0], rate),
        "a rate of -1": lambda: (samples, -1),
        "half a hertz": lambda: (samples, 22050.5),
        "no rate": lambda: (samples, None),
        "a rate without end": lambda: (samples, math.inf),
        "a rate that is none": lambda: (samples, math.nan),
    }
    refused: dict[str, tuple[Callable[[], Any], type]] = {
        "empty": (lambda: b"", AudioMissing),
        "text": (lambda: b"not a sound", AudioUnreadable),
        "not a number": (lambda: (samples * np.nan, rate), AudioUnreadable),
        "past float32": (lambda: (samples.astype(np.float64) * 1e300, rate), AudioUnreadable),
    }
    made = {name: (sound, Embedding) for name, sound in good.items()}
    return made | {name: (sound, SoundError) for name, sound in bad.items()} | refused


def written_to_a_pipe(content: bytes) -> Any:
    """The end to read from; the other is closed after the last byte."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(content)

    threading.Thread(target=write).start()
    return os.fdopen(reading, "rb")


def closed_file() -> Any:
    file = YES.open("rb")
    file.close()
    return file


def released_view() -> memoryview:
    view = memoryview(b"RIFF")
    view.release()
    return view


def close(sounds: list[Any]) -> None:
    for sound in sounds:
        if isinstance(sound, io.IOBase):
            sound.close()


def check(outcomes: list[Any], names: list[str], kinds: Kinds) -> None:
    assert [type(outcome) for outcome in outcomes] == [kinds[name][1] for name in names]
    for outcome in outcomes:
        if isinstance(outcome, ViolaError):
            assert len(str(outcome)) > 10


def test_each_kind_of_sound_gives_its_embedding_or_its_error(client: Client, kinds: Kinds) -> None:
    expected = client.embed(YES).vector
    names = list(kinds)
    sounds = [kinds[name][0]() for name in names]
    outcomes = list(client.embed_many(sounds, concurrency=3))
    close(sounds)
    check(outcomes, names, kinds)
    for outcome in outcomes:
        if isinstance(outcome, Embedding):
            np.testing.assert_allclose(outcome.vector, expected, rtol=1e-4, atol=1e-5)


@given(data=st.data(), concurrency=st.integers(1, 4), asynchronous=st.booleans())
@settings(max_examples=25, deadline=None)
def test_whatever_the_sounds_each_has_its_outcome_in_order(
    data: st.DataObject, concurrency: int, asynchronous: bool, url: str, client: Client, kinds: Kinds
) -> None:
    cheap = sorted(set(kinds) - {"more channels than a WAV file can have"})
    names = data.draw(st.lists(st.sampled_from(cheap), max_size=8))
    sounds = [kinds[name][0]() for name in names]
    try:
        if asynchronous:
            outcomes = asyncio.run(classified(url, sounds, concurrency))
            wanted = [kinds[name][1] for name in names]
            got = [Embedding if type(each).__name__ == "Classification" else type(each) for each in outcomes]
            assert got == wanted
        else:
            check(list(client.embed_many(iter(sounds), concurrency=concurrency)), names, kinds)
    finally:
        close(sounds)


async def classified(url: str, sounds: list[Any], concurrency: int) -> list[Any]:
    async with AsyncClient(url, api_key="open", retries=AT_ONCE) as client:
        outcomes = client.classify_many(iter(sounds), concurrency=concurrency, head="esc50", top_k=1)
        return [outcome async for outcome in outcomes]


@given(
    samples=arrays.arrays(
        dtype=arrays.scalar_dtypes(),
        shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    rate=st.one_of(st.integers(-2, 50_000), st.integers(), st.floats(), st.none(), st.text(max_size=2)),
)
@settings(deadline=None)
def test_samples_become_a_file_that_soundfile_reads_or_an_error(samples: Any, rate: Any) -> None:
    try:
        written = wav(samples, rate)
    except SoundError:
        return
    assert written[:4] == b"RIFF"
    if not 1 <= rate <= 192_000:  # libsndfile has limits of its own
        return
    read, read_rate = soundfile.read(io.BytesIO(written), dtype="float32", always_2d=True)
    assert read_rate == rate
    assert read.shape == (samples.shape if samples.ndim == 2 else (len(samples), 1))
    full_scale = -float(np.iinfo(samples.dtype).min) if samples.dtype.kind == "i" else 1.0
    with np.errstate(over="ignore"):
        expected = (samples / full_scale).astype(np.float32).reshape(read.shape)
    np.testing.assert_array_equal(read, expected)


class Meddling(BaseHTTPRequestHandler):
    """Does something to the file once its first bytes are on their way, then reads on and answers."""

    meddle: Callable[[], None]
    lengths: list[int] = []  # noqa: RUF012 - of the one server of each test

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        if length > 1_000_000:
            type(self).meddle()
        self.lengths.append(len(self.rfile.read(length)))
        text = b'{"model": "m", "head": "h", "duration_s": 1.0, "tags": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


MEDDLED_BYTES = 40_000_000  # more than lies in the sockets' buffers when the other side begins to read


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("bytes_then", "becomes"),
    [
        (MEDDLED_BYTES + 5_000_000, None),
        (0, "became shorter while it was sent: [0-9]+ of its 40000000 bytes were left"),
    ],
)
def test_a_file_that_is_written_to_while_it_is_sent_stops_no_other(
    bytes_then: int, becomes: str | None, asynchronous: bool, tmp_path: Path
) -> None:
    """It is sent as it was when it was opened, as long as that is there."""
    changing = tmp_path / "changing.wav"
    changing.touch()
    os.truncate(changing, MEDDLED_BYTES)
    Meddling.meddle = staticmethod(lambda: os.truncate(changing, bytes_then))
    Meddling.lengths.clear()
    with served_by(Meddling) as url:
        sounds = [YES, changing, YES]
        if asynchronous:
            outcomes = asyncio.run(classified(url, sounds, 1))
        else:
            with Client(url) as client:
                outcomes = list(client.classify_many(sounds, concurrency=1))
    names = [type(outcome).__name__ for outcome in outcomes]
    if becomes is None:
        assert names == ["Classification"] * 3
        assert sorted(Meddling.lengths) == sorted([YES.stat().st_size, MEDDLED_BYTES, YES.stat().st_size])
    else:
        assert names == ["Classification", "SoundError", "Classification"]
        with pytest.raises(SoundError, match=becomes):
            raise outcomes[1]


def test_a_sound_that_is_too_large_has_the_servers_sentence(client: Client, tmp_path: Path) -> None:
    """Which answers and closes long before it has all of it."""
    large = tmp_path / "large.wav"
    large.touch()
    os.truncate(large, 300_000_000)
    with pytest.raises(BodyTooLarge, match="the body is longer than the 200000000 bytes"):
        client.embed(large)


def test_sounds_may_come_without_end(client: Client) -> None:
    outcomes = client.embed_many(itertools.repeat(YES), concurrency=2)
    assert isinstance(next(outcomes), Embedding)
    outcomes.close()


def test_a_call_that_is_wrong_for_all_its_sounds_is_no_error_of_a_sound(client: Client) -> None:
    with pytest.raises(TypeError, match="sounds is a str: give a list of sounds, even for one"):
        next(client.embed_many("dog.wav"))
    with pytest.raises(ValueError, match="concurrency is 0"):
        next(client.embed_many([YES], concurrency=0))


class Strange(BaseHTTPRequestHandler):
    """Answers 200 with what no viola answers."""

    encoding = ""
    text = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.text)))
        if self.encoding:
            self.send_header("Content-Encoding", self.encoding)
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (b"<html>", ""),
        (b"[]", ""),
        (b"{}", ""),
        (b'{"embedding_size": 2, "embedding": [1, 2], "model": "m", "duration_s": 1}', ""),
        (b'{"embedding_size": 2, "embedding": "!", "model": "m", "duration_s": 1}', ""),
        (b'{"embedding_size": 2, "embedding": "", "model": "m", "duration_s": 1, "frames": ["a"]}', ""),
        (b"not zipped", "gzip"),
    ],
)
def test_a_strange_answer_takes_the_place_of_its_sound(text: bytes, encoding: str) -> None:
    Strange.text, Strange.encoding = text, encoding
    with served_by(Strange) as url, Client(url, retries=Retries(attempts=1)) as client:
        outcomes = list(client.embed_many([YES, YES]))
    assert all(isinstance(outcome, ViolaError) for outcome in outcomes)


class Proxy(Refusing):
    """Notes for whom it is asked, and answers itself."""

    asked: list[str] = []  # noqa: RUF012 - as above

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The addresses that a proxy is asked for, which the environment names for all."""
    Proxy.asked.clear()
    with served_by(Proxy) as url:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, url)
        yield Proxy.asked


@pytest.mark.parametrize(
    "here", ["127.0.0.1", "localhost", "127.0.0.2", "[::1]", "viola.localhost", "0.0.0.0"]
)
def test_a_server_on_this_machine_is_not_asked_through_a_proxy(here: str, proxy: list[str]) -> None:
    with Client(f"http://{here}:9", retries=Retries(attempts=1)) as client:
        assert not client.is_ready()  # nothing listens there
    assert proxy == []


def test_a_server_elsewhere_is_asked_through_the_proxy(
    proxy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> bool:
        async with AsyncClient("http://viola.invalid") as client:
            return await client.is_ready()

    assert asyncio.run(ask())
    with Client("http://viola.invalid") as client:
        assert client.is_ready()
    assert proxy == ["http://viola.invalid/health/ready"] * 2
    monkeypatch.setenv("no_proxy", "viola.invalid")
    with Client("http://viola.invalid", retries=Retries(attempts=1)) as client:
        assert not client.is_ready()


def test_retry_after_is_obeyed_and_without_it_waits_double() -> None:
    retries = Retries(attempts=5, first_s=1.0, longest_s=3.0, give_up_s=60.0)
    assert 7.0 <= (retries.wait_s(1, 503, "7") or 0) <= 7.7
    assert retries.wait_s(1, 503, "61") is None
    assert retries.wait_s(1, 422, None) is None
    assert retries.wait_s(5, 503, "1") is None
    for attempt, longest in ((1, 1.0), (2, 2.0), (3, 3.0), (4, 3.0)):
        assert longest / 2 <= (retries.wait_s(attempt, 0, None) or 0) <= longest


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with Client("http://127.0.0.1:9", retries=Retries(attempts=1)) as client:
        assert not client.is_ready()
        with pytest.raises(Unreachable):
            client.embed(YES)


def test_an_answer_that_is_not_violas_is_an_error_all_the_same() -> None:
    from viola_client.errors import error_of

    error = error_of(502, None)
    assert type(error) is ViolaError
    assert error.status == 502


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(
        ROOT / "clients" / "python", folder / "source", ignore=shutil.ignore_patterns("__pycache__")
    )
    before = files_of(source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("there is no package index to build a wheel with")
    assert done.returncode == 0, done.stderr
    assert files_of(source) == before  # no build/, no egg-info: what is installed from is left as it was
    (built,) = folder.glob("viola_client-*.whl")
    return built


def files_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_wheel_holds_the_client_and_names_two_dependencies(wheel: Path) -> None:
    (distribution,) = metadata.distributions(path=[str(wheel)])
    names = {str(file) for file in distribution.files or ()}
    package = ROOT / "clients" / "python" / "viola_client"
    assert {f"viola_client/{path.name}" for path in package.iterdir() if path.is_file()} <= names
    needs = [Requirement(line) for line in distribution.requires or ()]
    assert sorted(each.name for each in needs if not each.marker) == ["httpx", "numpy"]
    assert not any("tests" in name or name.startswith("build") for name in names)
    extras = {str(each.marker) for each in needs if each.marker}
    assert extras == {'extra == "live"', 'extra == "mcp"', 'extra == "progress"'}


def test_building_it_leaves_nothing_in_the_checkout(wheel: Path) -> None:
    source, package = wheel.parent / "source", ROOT / "clients" / "python"
    assert {path.relative_to(source) for path in source.rglob("*")} == {
        path.relative_to(package) for path in package.rglob("*") if "__pycache__" not in path.parts
    }


def test_the_wheel_is_enough_beside_its_two_dependencies(wheel: Path, url: str, tmp_path: Path) -> None:
    """In a fresh environment that has httpx, NumPy and what these need, and nothing else."""
    venv.create(tmp_path / "alone", with_pip=False)
    python = tmp_path / "alone" / "bin" / "python"
    (site,) = (tmp_path / "alone" / "lib").glob("python3.*/site-packages")
    for name in with_dependencies("httpx", "numpy"):
        for entry in top_level(metadata.distribution(name)):
            (site / entry.name).symlink_to(entry)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    program = f"""
from viola_client import Client
with Client({url!r}, api_key="open") as viola:
    print(viola.embed({str(DOG)!r}).vector.shape, viola.classify({str(DOG)!r}, head="esc50").tags[0].label)
"""
    done = subprocess.run([python, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(3072,) dog\n"), done.stderr


def with_dependencies(*names: str) -> set[str]:
    """The distributions, and all that they need here, extras left out."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or ())
            waiting += [each.name for each in needs if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


def top_level(distribution: metadata.Distribution) -> set[Path]:
    """The entries of site-packages that it consists of; not its commands."""
    entries = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
    return {Path(str(distribution.locate_file(entry))) for entry in entries - {"__pycache__"}}


@pytest.fixture(scope="module")
def taught_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("taught")


@pytest.fixture(scope="module")
def teaching(taught_dir: Path) -> Iterator[str]:
    """A server that can be taught."""
    server = viola(ROOT / "models" / "byola", "int8")
    folder = {"VIOLA_DATA_DIR": str(taught_dir)}
    with running(replace(server, environment=server.environment | folder)) as up:
        yield f"http://127.0.0.1:{up.port}"


def test_both_clients_teach_list_and_forget(teaching: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no sound")
    silence = (np.zeros(16_000, np.float32), 16_000)
    sounds = [DOG, notes, silence, tmp_path / "gone.wav"]
    with Client(teaching, retries=AT_ONCE) as client:
        first = client.teach("pets", "dog", sounds, fit=False)
        assert (first.taught, first.report) == (1, None)
        codes = ["audio_unreadable", "audio_silent", "sound"]
        assert [error.code for _, error in first.refused] == codes
        lesson = client.teach("pets", "voice", YES)
        assert lesson.taught == 1
        assert lesson.words
        assert client.classify(YES, head="pets").tags[0].label == "voice"
        assert [head["head"] for head in client.heads()["heads"]] == ["pets"]
        with pytest.raises(UnknownHead):
            client.forget("none")

    async def forgotten() -> tuple[int, list[str], dict[str, Any]]:
        async with AsyncClient(teaching, retries=AT_ONCE) as client:
            again = await client.teach("pets", "dog", [DOG], fit=False)
            gone = await client.forget("pets", label="voice")
            await client.forget("pets")
            return again.taught, gone, await client.heads(model="byola")

    taught, gone, left = asyncio.run(forgotten())
    assert (taught, len(gone)) == (1, 1)
    assert left == {"model": "byola", "heads": [], "damaged": []}


def test_a_head_that_the_disk_has_damaged_is_told_of(teaching: str, taught_dir: Path) -> None:
    with Client(teaching, retries=AT_ONCE) as client:
        client.teach("pets", "dog", DOG, fit=False)
        client.teach("doors", "bell", DOG, fit=False)
        (taught_dir / "byola" / "taught" / "doors" / "head.json").write_bytes(b"{")
        told = client.heads()
        assert [head["head"] for head in told["heads"]] == ["pets"]
        (damaged,) = told["damaged"]
        assert (damaged["head"], damaged["error"]) == ("doors", "storage_failed")
        assert "PUT" in damaged["detail"]


def test_a_server_that_cannot_be_taught_says_so(client: Client) -> None:
    # Whose key is no admin's is told that first.
    with pytest.raises((TeachingOff, Forbidden), match=r"VIOLA_DATA_DIR|VIOLA_ADMIN_KEYS"):
        client.teach("pets", "dog", [DOG])


# ── Texts and labels, of a model with a text tower ──


@pytest.fixture(scope="module")
def words_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    write_toy(folder / "toy")
    write_text_toy(folder / "clap", name="clap")
    with serving(folder, model="clap") as (live, _):
        yield str(live.base_url)


def test_texts_become_vectors_among_those_of_sounds(words_url: str) -> None:
    with Client(words_url) as client:
        one = client.embed_text("a dog barks")
        assert one.shape == (16,)
        np.testing.assert_allclose(one, vector_of("a dog barks"), atol=1e-5)
        many = client.embed_text((f"dog {'cat ' * (i % 7)}" for i in range(200)), normalize=True)
        assert many.shape == (200, 16)
        np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
        half = client.embed_text(["dog"], dtype="float16", model="clap")
        assert (half.dtype, half.shape) == (np.float16, (1, 16))
        sound = client.embed(YES, normalize=True).vector
        scores = np.exp(TOWER.logit_scale * client.embed_text(["dog", "cat"], normalize=True) @ sound)
        found = client.classify(YES, labels=["dog", "cat"], template="{}")
        assert {tag.label: tag.score for tag in found.tags} == pytest.approx(
            dict(zip(["dog", "cat"], scores / scores.sum(), strict=True)), abs=1e-5
        )
        assert found.head == "zero-shot"


def test_labels_may_hold_commas_and_be_one_string(words_url: str) -> None:
    with Client(words_url) as client:
        for labels in (["dog, barks", "cat"], ["[dog]", "cat"]):
            assert {tag.label for tag in client.classify(YES, labels=labels).tags} == set(labels)
        assert client.classify(YES, labels="dog,cat") == client.classify(YES, labels=["dog", "cat"])
        (outcome,) = client.classify_many([YES], labels=["dog", "cat"], top_k=1)
        assert not isinstance(outcome, ViolaError)
        assert len(outcome.tags) == 1


def test_texts_that_cannot_be_embedded_are_errors_by_their_code(words_url: str) -> None:
    with Client(words_url) as client:
        with pytest.raises(NoText, match="`clap` has one"):
            client.embed_text("dog", model="toy")
        with pytest.raises(TextTooLong, match=r"`input\[1\]` has 22 tokens"):
            client.embed_text(["dog", "a " * 20])
        with pytest.raises(BadRequest, match="empty list"):
            client.embed_text([])
        with pytest.raises(TypeError, match="a int is no text"):
            client.embed_text(["dog", 1])  # type: ignore[list-item]
        with pytest.raises(BadRequest, match=r"the labels take .* bytes of the request's address"):
            client.classify(YES, labels=["é" * 50] * 200)
        with pytest.raises(BadRequest, match="labels stand in place of one"):
            client.classify(YES, labels=["dog", "cat"], head="pets")


def test_texts_may_be_awaited(words_url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(words_url) as client:
            vectors = await client.embed_text(["dog", "cat"])
            np.testing.assert_allclose(vectors, [vector_of("dog"), vector_of("cat")], atol=1e-5)
            found = await client.classify(YES, labels=["dog", "cat"], template="the {}")
            assert len(found.tags) == 2

    asyncio.run(ask())


def test_texts_are_embedded_by_the_same_names_as_over_http() -> None:
    for kind in (Client, AsyncClient):
        names = set(inspect.signature(kind.embed_text).parameters) - {"self", "texts"}
        assert names == set(TextParameters.model_fields) - {"encoding"}


def test_both_clients_stream_with_labels(words_url: str) -> None:
    samples = np.random.default_rng(1).normal(size=32_000).astype(np.float32) / 10
    labels = ["dog", "rain, on the roof"]
    asked: dict[str, Any] = {"labels": labels, "template": "the {}", "window_s": 1.0}

    async def listened() -> list[Any]:
        async with AsyncClient(words_url) as client:
            return [heard async for heard in client.stream([samples], rate=16_000, format="f32le", **asked)]

    with Client(words_url) as client:
        expected = client.classify((samples, 16_000), **asked).timeline
        heard = [*client.stream([samples], rate=16_000, format="f32le", **asked)]
        for found in (heard, asyncio.run(listened())):
            windows = [each for each in found if isinstance(each, LiveWindow)]
            assert len(windows) == len(expected) == 2
            for window, span in zip(windows, expected, strict=True):
                scores = {tag.label: tag.score for tag in span.tags}
                assert set(scores) == set(labels)
                assert {tag.label: tag.score for tag in window.tags} == pytest.approx(scores, abs=1e-4)
        with pytest.raises(NoText):
            list(client.stream([samples], rate=16_000, model="toy", labels=labels))
