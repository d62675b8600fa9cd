"""The Python client's streams against a live server, and against one that breaks off."""

import asyncio
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from benchmarks.harness.servers import LOGS, running, viola
from service.sound.audio import decode
from tests.service.servers import until

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "clients" / "python"))

from viola_client import (  # noqa: E402 - it is no package of this repository's environment
    AsyncClient,
    AudioUnreadable,
    Client,
    Event,
    LiveWindow,
    Retries,
    SoundError,
    UnknownModel,
    Unreachable,
)

DOG = ROOT / "tests" / "fixtures" / "dog_bark_44k1_mono.ogg"
AT_ONCE = Retries(attempts=3, first_s=0.01)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(viola(ROOT / "models" / "byola", "int8")) as up:
        yield f"http://127.0.0.1:{up.port}"


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """(n,) float32 at 16 kHz."""
    return np.asarray(decode(DOG.read_bytes(), sample_rate=16_000).samples)


def pieces(samples: np.ndarray, n: int = 4_000) -> Iterator[np.ndarray]:
    for start in range(0, len(samples), n):
        yield samples[start : start + n]


def test_a_stream_hears_what_a_file_hears(url: str, samples: np.ndarray) -> None:
    with Client(url) as client:
        expected = client.classify((samples, 16_000), head="esc50", window_s=1, hop_s=0.5)
        for form in ("s16le", "f32le"):
            heard = [
                *client.stream(pieces(samples), rate=16_000, head="esc50", window_s=1, hop_s=0.5, format=form)
            ]
            windows = [each for each in heard if isinstance(each, LiveWindow)]
            assert [(w.start_s, w.end_s) for w in windows] == [
                (s.start_s, s.end_s) for s in expected.timeline
            ]
            for window, segment in zip(windows, expected.timeline, strict=True):
                assert window.tags[0].label == segment.tags[0].label
                # 16 bits are no floats, and the graph is in 8.
                assert window.tags[0].score == pytest.approx(segment.tags[0].score, abs=1e-2)
        assert [each for each in heard if isinstance(each, Event)]


def test_the_awaiting_client_hears_the_same_and_embeds(url: str, samples: np.ndarray) -> None:
    async def microphone() -> AsyncIterator[np.ndarray]:
        for piece in pieces(samples):
            yield piece
            await asyncio.sleep(0)

    async def story() -> list[Any]:
        async with AsyncClient(url) as client:
            stream = client.stream(microphone(), rate=16_000, embeddings=True, format="f32le")
            return [heard async for heard in stream]

    heard = asyncio.run(story())
    with Client(url) as client:
        expected = [*client.stream(pieces(samples, 999), rate=16_000, format="f32le")]
        embedding = client.embed((samples, 16_000), window_s=1, hop_s=0.5)
    windows = [each for each in heard if isinstance(each, LiveWindow)]
    assert [w.tags for w in windows] == [w.tags for w in expected if isinstance(w, LiveWindow)]
    assert embedding.windows is not None
    largest = np.abs(embedding.windows).max()
    for window, vector in zip(windows, embedding.windows, strict=True):
        assert window.embedding is not None
        np.testing.assert_allclose(window.embedding, vector, atol=1e-4 * largest)


def test_what_a_recorder_writes_is_streamed_as_bytes(url: str) -> None:
    data = DOG.read_bytes()
    with Client(url) as client:
        heard = [*client.stream([data[:5_000], data[5_000:]], format="ogg")]
        assert heard
        with pytest.raises(AudioUnreadable):
            list(client.stream([data[5_000:]], format="ogg"))


def test_what_is_wrong_is_raised(url: str) -> None:
    with Client(url, retries=AT_ONCE) as client:
        with pytest.raises(UnknownModel):
            list(client.stream([b"\0\0"], rate=16_000, model="none"))
        with pytest.raises(SoundError, match="rate"):
            client.stream([b"\0\0"])
        with pytest.raises(SoundError, match="int64"):
            list(client.stream([np.zeros(3, np.int64)], rate=16_000))
        with pytest.raises(ZeroDivisionError):
            list(client.stream((bytes(1 // n) for n in (1, 0)), rate=16_000))
    with Client("http://127.0.0.1:9", retries=AT_ONCE) as client, pytest.raises(Unreachable):
        list(client.stream([b"\0\0"], rate=16_000))


def message(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind} | fields)


def test_another_connection_goes_on_where_the_sound_is() -> None:
    """A server that ends after a second of sound, as one that is restarted does, and another in its place."""
    seconds: list[int] = []
    closed = threading.Semaphore(0)

    def listen(line: ServerConnection) -> None:
        line.send(message("ready", model="m", head="h", window_s=1, hop_s=1))
        for second in range(2):
            if line.recv() == '{"type": "end"}':
                line.send(message("end", seconds=second))
                return
            tags = [{"label": "dog", "score": 0.5}]
            line.send(message("tags", start_s=second, end_s=second + 1, tags=tags))
            seconds.append(second)
        line.close(1001)
        closed.release()

    with serve(listen, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        heard: list[Any] = []
        gate = threading.Semaphore(1)

        def microphone() -> Iterator[bytes]:
            for second in range(5):
                gate.acquire()  # a second is spoken once the one before was heard
                if second % 2 == 0 and second:
                    closed.acquire()  # what had left on the line that ends would be lost
                yield bytes(2 * 16_000)

        with Client(address, retries=AT_ONCE) as client:
            for each in client.stream(microphone(), rate=16_000):
                heard.append(each)
                gate.release()
        server.shutdown()
    assert [each.start_s for each in heard] == [0, 1, 2, 3, 4]
    assert seconds == [0, 1, 0, 1, 0]


def test_a_microphone_is_heard_through_a_restart_of_the_server() -> None:
    """The workers are replaced in the middle of the fifth second; times go on where the sound is."""
    with running(viola(ROOT / "models" / "byola", "int8", workers=2, drain_s="0")) as up:
        log = LOGS / f"{up.server.name.replace(' ', '-')}.log"
        address = f"http://127.0.0.1:{up.port}"
        said = threading.Semaphore(0)

        def microphone() -> Iterator[bytes]:
            for number in range(20):  # half a second each
                if number == 9:
                    for _ in range(3):  # of 4.5 s three windows are told for certain
                        assert said.acquire(timeout=60)
                    up.process.send_signal(signal.SIGHUP)
                    until(lambda: "all workers are new" in log.read_text(), 120)
                yield bytes(16_000)

        windows = []
        with Client(address, retries=AT_ONCE) as client:
            for each in client.stream(microphone(), rate=16_000, window_s=1, hop_s=1):
                if isinstance(each, LiveWindow):
                    windows.append((each.start_s, each.end_s))
                    said.release()
    # Those of the old worker, whose last one is cut where its sound ended, and those of the new one.
    assert windows[:4] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    rest = [window for window in windows[4:] if window[0] >= 4.5]
    assert rest == [(4.5 + n, min(5.5 + n, 10)) for n in range(6)]
    assert len(windows) - len(rest) <= 5


def listen(*arguments: str, stdin: bytes = b"", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "viola_client", "listen", *arguments],
        cwd=ROOT / "clients" / "python",
        input=stdin,
        capture_output=True,
        env=os.environ | environment,
        check=False,
        timeout=120,
    )


def test_the_command_writes_what_it_hears(url: str, samples: np.ndarray) -> None:
    sound = np.round(samples * 32_767).astype("<i2").tobytes()
    done = listen("-", "--server", url, "--head", "esc50", "--tags", "--format", "csv", stdin=sound)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert {row["type"] for row in rows} >= {"tags"}
    assert "dog" in {row["label"] for row in rows}
    told = listen("-", "--server", url, "--head", "esc50", "--tags", "--format", "jsonl", stdin=sound)
    lines = told.stdout.splitlines()
    assert "dog" in {json.loads(line).get("label") for line in lines}
    refused = listen("-", "--server", url, "--model", "none", stdin=sound)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)
    in_words = listen("-", "--server", url, "--labels", "dog,rain", "--template", "the {}", stdin=sound)
    assert in_words.returncode == 1
    assert b"the model `byola` has no text tower" in in_words.stderr


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_the_command_listens_to_what_ffmpeg_reads(url: str) -> None:
    done = listen("--url", str(DOG), "--server", url, "--head", "esc50", "--tags")
    assert done.returncode == 0, done.stderr
    assert b"dog" in done.stdout


def test_the_command_says_that_ffmpeg_is_missing(tmp_path: Path) -> None:
    done = listen("--url", "rtsp://camera/stream", PATH=str(tmp_path))
    assert done.returncode == 2
    assert b"ffmpeg is missing" in done.stderr
