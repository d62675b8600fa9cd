"""`python -m service` as a process: it starts, says what it does, and ends well."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **settings: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIOLA_")}
    return subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def wait_until_ready(url: str, process: "subprocess.Popen[str]") -> None:
    for _ in range(600):
        assert process.poll() is None, process.communicate()[1]
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("not ready within half a minute")


@pytest.mark.parametrize("workers", [1, 2])
def test_it_serves_and_a_sigterm_ends_it_with_0(workers: int, models_dir: Path, fixtures_dir: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = run(
        VIOLA_HOST="127.0.0.1",
        VIOLA_PORT=str(port),
        VIOLA_MODELS_DIR=str(models_dir),
        VIOLA_MODEL="toy",
        VIOLA_DEVICE="cpu",
        VIOLA_LOG_FORMAT="json",
        VIOLA_WORKERS=str(workers),
    )
    try:
        wait_until_ready(url, process)
        sound = {"file": (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()}
        assert httpx.post(f"{url}/embed", files=sound).json()["duration_s"] == 1
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    lines = [orjson.loads(line) for line in log.splitlines()]
    assert any("thread(s) for inference" in line["message"] for line in lines)
    assert {line["level"] for line in lines} == {"info"}


def test_from_sigterm_on_it_is_not_ready_and_answers_what_it_accepted(
    models_dir: Path, fixtures_dir: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = run(
        VIOLA_HOST="127.0.0.1",
        VIOLA_PORT=str(port),
        VIOLA_MODELS_DIR=str(models_dir),
        VIOLA_MODEL="toy",
        VIOLA_DEVICE="cpu",
        VIOLA_MAX_WAIT_MS="1000",  # a lone request takes a second
        VIOLA_PROT="8000",
    )
    try:
        wait_until_ready(url, process)
        sound = (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url) as open_connection:
            accepted = pool.submit(httpx.post, f"{url}/embed", files={"file": sound})
            while "viola_queue_frames 0.0" in open_connection.get("/metrics").text:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert not_ready_or_closed(open_connection)
            assert refused_within_s(2, port)
            assert accepted.result().json()["duration_s"] == 1
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "VIOLA_PROT is no setting" in log


def not_ready_or_closed(client: httpx.Client) -> bool:
    """What an open connection sees from the signal on: 503, and a moment later its end."""
    time.sleep(0.02)  # for the signal to arrive
    try:
        return client.get("/health/ready").status_code == 503
    except httpx.TransportError:
        return True


def refused_within_s(seconds: float, port: int) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.01)
    return False


def test_a_wrong_setting_is_named() -> None:
    process = run(VIOLA_PORT="many")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "VIOLA_PORT" in errors
    assert "many" in errors
    assert "Traceback" not in errors


def test_an_unknown_command_is_answered_with_those_there_are() -> None:
    process = run("sevre")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "python -m service embed" in errors
