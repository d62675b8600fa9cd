"""Several processes of one server: what one of them is taught all serve, and a killed one loses nothing."""

import io
import os
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from tests.service.servers import ServerProcess

RATE = 16_000


def tone(hz: float, seed: int = 0) -> bytes:
    t = np.arange(RATE) / RATE
    samples = 0.3 * np.sin(2 * np.pi * hz * t) + np.random.default_rng(seed).normal(scale=0.01, size=RATE)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return file.getvalue()


def teach(url: str, label: str, hz: float, **query: str) -> None:
    files = [("file", (f"{i}.wav", tone(hz, i))) for i in range(3)]
    params = {"label": label} | query
    answer = httpx.post(f"{url}/models/toy/heads/doors/examples", params=params, files=files, timeout=120)
    assert answer.status_code == 200, answer.text


def best(url: str, hz: float) -> str:
    """By a connection of its own, which any of the workers may take."""
    answer = httpx.post(f"{url}/classify", params={"head": "doors"}, content=tone(hz, 9), timeout=60)
    label: str = answer.json()["tags"][0]["label"]
    return label


@pytest.mark.timeout(600)
def test_all_workers_serve_what_one_was_taught_and_a_start_after_kill_9_does_too(
    models_dir: Path, tmp_path: Path
) -> None:
    data = {"VIOLA_DATA_DIR": str(tmp_path / "data")}
    with ServerProcess(models_dir, tmp_path, VIOLA_WORKERS="2", **data) as server:
        server.wait_until_ready()
        teach(server.url, "low", 300)
        teach(server.url, "high", 3000, fit="auto")
        assert {best(server.url, 310) for _ in range(20)} == {"low"}
        teach(server.url, "middle", 1000, fit="auto")
        assert {best(server.url, 1010) for _ in range(20)} == {"middle"}
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(60)
    with ServerProcess(models_dir, tmp_path, **data) as server:
        server.wait_until_ready()
        assert [best(server.url, hz) for hz in (310, 1010, 2900)] == ["low", "middle", "high"]
        deleted = httpx.delete(f"{server.url}/models/toy/heads/doors", timeout=60)
        assert deleted.status_code == 200
