"""The Python client against a live server."""

import asyncio
import shutil
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement

from benchmarks.servers import running, viola

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path.insert(0, str(ROOT / "clients" / "python"))

from viola_client import (  # noqa: E402 - it is no package of this repository's environment
    AsyncClient,
    AudioUnreadable,
    Client,
    Embedding,
    Overloaded,
    Retries,
    Unauthorized,
    UnknownHead,
    UnknownModel,
    Unreachable,
    ViolaError,
)

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


def test_many_sounds_come_in_order_each_with_its_own_error(client: Client) -> None:
    sounds = [YES, FIXTURES / "invalid" / "text.wav", FIXTURES / "not_there.wav", *[DOG, YES] * 4]
    outcomes = list(client.embed_many(sounds, concurrency=3))
    assert isinstance(outcomes[1], AudioUnreadable)
    assert isinstance(outcomes[2], FileNotFoundError)
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
    with pytest.raises(ValueError, match="give \\(n,\\) or \\(n, channels\\)"):
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
    source = shutil.copytree(ROOT / "clients" / "python", folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("there is no package index to build a wheel with")
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("viola_client-*.whl")
    return built


def test_the_wheel_holds_the_client_and_names_two_dependencies(wheel: Path) -> None:
    (distribution,) = metadata.distributions(path=[str(wheel)])
    names = {str(file) for file in distribution.files or ()}
    package = ROOT / "clients" / "python" / "viola_client"
    assert {f"viola_client/{path.name}" for path in package.iterdir() if path.is_file()} <= names
    needs = [Requirement(line) for line in distribution.requires or ()]
    assert sorted(each.name for each in needs if not each.marker) == ["httpx", "numpy"]
    assert [str(each.marker) for each in needs if each.marker] == ['extra == "progress"']


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
