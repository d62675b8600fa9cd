"""A live server with the toy model for a test, sounds to send to it, and checks of what it answers."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from service.http.app import create_app
from service.settings import Settings
from tests.service.servers import in_thread, url_of

RAW = {"Content-Type": "application/octet-stream"}
FIXTURES = Path(__file__).parents[2] / "fixtures"
INVALID = {
    "empty.wav": "audio_missing",
    "nan_inf_float32.wav": "audio_unreadable",
    "no_frames.wav": "audio_too_short",
    "text.wav": "audio_unreadable",
    "truncated.flac": "audio_unreadable",
}


@contextlib.contextmanager
def serving(models_dir: Path, **settings: Any) -> Iterator[tuple[httpx.Client, Any]]:
    """A client of a server of its own, and the server's state."""
    settings = {"models_dir": models_dir, "model": "toy", "device": "cpu", "threads": 2} | settings
    app = create_app(Settings(**settings))
    with in_thread(app) as server, httpx.Client(base_url=url_of(server), timeout=20) as client:
        yield client, app.state.server


@contextlib.contextmanager
def held_worker(state: Any) -> Iterator[None]:
    """Nobody runs a batch until the block ends."""
    with state.embedder.batcher._run_lock:
        yield


def wav(samples: np.ndarray, rate_hz: int = 16_000, subtype: str = "FLOAT") -> bytes:
    """samples: (n,) or (n, channels) in [-1, 1]"""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype=subtype)
    return file.getvalue()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """(n,) float32 at 16 kHz"""
    return np.random.default_rng(seed).normal(scale=0.1, size=round(16_000 * seconds)).astype(np.float32)


def embed(client: httpx.Client, content: bytes, **parameters: Any) -> dict[str, Any]:
    response = client.post("/embed", content=content, headers=RAW, params=parameters)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def check_error(response: httpx.Response, status: int, code: str) -> str:
    """The one shape of every error; returns the sentence."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert sorted(answer) == ["detail", "error"]
    assert answer["error"] == code
    detail: str = answer["detail"]
    assert len(detail.split()) > 3
    assert "Traceback" not in detail
    return detail


def value(page: str, metric: str) -> float:
    (line,) = (line for line in page.splitlines() if line.startswith(f"{metric} "))
    return float(line.split()[1])
