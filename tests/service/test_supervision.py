"""`python -m service` where signals come early, models are torn, disks full, folders or calls missing."""

import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service import healthcheck
from tests.service.servers import ROOT, ServerProcess, free_port, run, until

RAW = {"Content-Type": "audio/wav"}

# Read by every Python process before its first instruction: holds it for a minute where it imports a module.
HOLD_THE_IMPORT = """
import os, pathlib, sys, time

class Hold:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["HELD_MODULE"]:
            pathlib.Path(os.environ["HELD_MARK"]).touch()
            time.sleep(60)

sys.meta_path.insert(0, Hold())
"""
# ... and takes away what macOS does not have.
NOT_LINUX = """
import os
del os.posix_fallocate, os.sched_getaffinity
"""
# ... and Windows, once what asyncio has instead there is loaded.
NO_LOCKS = """
import asyncio, sys
sys.modules["fcntl"] = sys.modules["termios"] = sys.modules["uvloop"] = None
"""


@pytest.fixture
def sound(fixtures_dir: Path) -> bytes:
    return (fixtures_dir / "keyword_yes_16k_mono_pcm16.wav").read_bytes()


@pytest.fixture
def own_models(tmp_path: Path, make_toy: Callable[..., Path]) -> Path:
    make_toy(tmp_path / "models" / "toy")
    return tmp_path / "models"


def first_thing(folder: Path, code: str) -> str:
    """PYTHONPATH with which every process runs `code` before anything else."""
    folder = folder / "first"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


def embed(server: ServerProcess, sound: bytes) -> int:
    return httpx.post(f"{server.url}/embed", content=sound, headers=RAW, timeout=30).status_code


def version(server: ServerProcess) -> str:
    card: str = httpx.get(f"{server.url}/models/toy", timeout=30).json()["card"]["version"]
    return card


# ── Ending ──


@pytest.mark.parametrize(
    ("module", "workers"),
    [("pydantic", 1), ("uvicorn", 1), ("onnxruntime", 1), ("uvicorn", 2), ("onnxruntime", 2)],
)
def test_a_sigterm_during_an_import_ends_it_with_0(
    module: str, workers: int, models_dir: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    settings = {"HELD_MODULE": module, "HELD_MARK": str(mark), "VIOLA_WORKERS": str(workers)}
    path = first_thing(tmp_path, HOLD_THE_IMPORT)
    with ServerProcess(models_dir, tmp_path, PYTHONPATH=path, **settings) as server:
        until(mark.exists, seconds=150)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0, server.log()  # the import would take a minute
        assert "Traceback" not in server.log()
        assert not list(tmp_path.glob("viola-metrics-*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sigterm_while_a_model_is_being_loaded_ends_it_with_0(
    workers: int, own_models: Path, tmp_path: Path
) -> None:
    graph = own_models / "toy" / "encoder.onnx"
    graph.unlink()
    os.mkfifo(graph)  # a disk that does not answer: whoever opens it waits
    with ServerProcess(own_models, tmp_path, VIOLA_WORKERS=str(workers)) as server:
        until(lambda: "Waiting for application startup" in server.log(), seconds=150)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0, server.log()


def test_a_server_ends_with_the_terminal_in_which_it_was_started(models_dir: Path, tmp_path: Path) -> None:
    """And not where SIGHUP comes from anybody else."""
    here, terminal = pty.openpty()
    log_path = tmp_path / "log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=ROOT,
            env=os.environ
            | {"VIOLA_PORT": str(free_port()), "VIOLA_MODELS_DIR": str(models_dir), "VIOLA_MODEL": "toy"},
            stdin=terminal,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    os.close(terminal)
    try:
        until(lambda: "serving on" in log_path.read_text(), seconds=150)
        process.send_signal(signal.SIGHUP)
        until(lambda: "the folder of models is read again" in log_path.read_text(), seconds=150)
        os.close(here)  # the window is closed; its shell tells all that it has started
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


# ── SIGHUP, alike for one process and several ──


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_serves_what_the_folder_holds_now_and_keeps_what_is_served_where_that_is_broken(
    workers: int, own_models: Path, tmp_path: Path, sound: bytes, make_toy: Callable[..., Path]
) -> None:
    log_of_a_refusal = {1: "toy is not replaced, the old one is served on", 2: "the restart is given up"}
    graph, aside = own_models / "toy" / "encoder.onnx", own_models / "toy" / "aside"
    with ServerProcess(own_models, tmp_path, VIOLA_WORKERS=str(workers)) as server:
        server.wait_until_ready()
        until(lambda: server.metric("viola_ready") == workers, seconds=150)

        graph.rename(aside)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: log_of_a_refusal[workers] in server.log(), seconds=150)
        assert "encoder.onnx" in server.log().split(log_of_a_refusal[workers])[1]
        until(lambda: server.metric("viola_ready") == workers, seconds=150)
        assert [embed(server, sound) for _ in range(8)] == [200] * 8

        shutil.rmtree(own_models / "toy")
        make_toy(own_models / "toy", version="2")
        server.process.send_signal(signal.SIGHUP)
        ready = set()

        def is_new() -> bool:
            ready.add(httpx.get(f"{server.url}/health/ready", timeout=30).status_code)
            return [version(server) for _ in range(4)] == ["2"] * 4

        until(is_new, seconds=150)
        assert ready == {200}
        assert embed(server, sound) == 200
        until(lambda: server.metric("viola_ready") == workers, seconds=150)
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)


# ── Addresses ──


@pytest.mark.parametrize("workers", [1, 2])
def test_the_address_of_all_of_ipv6_is_that_of_all_of_ipv4(
    workers: int, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    settings = {"VIOLA_HOST": "::", "VIOLA_PORT": str(free_port()), "VIOLA_WORKERS": str(workers)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    process = run(
        VIOLA_MODELS_DIR=str(models_dir),
        VIOLA_MODEL="toy",
        TMPDIR=str(tmp_path),
        stderr=subprocess.DEVNULL,
        **settings,
    )
    try:
        until(lambda: healthcheck.main() == 0, seconds=150)
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{settings['VIOLA_PORT']}/health/ready").status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)


# ── Disks ──


def test_workers_whose_folder_was_deleted_serve_on_and_count_again(
    models_dir: Path, tmp_path: Path, sound: bytes
) -> None:
    with ServerProcess(models_dir, tmp_path, VIOLA_WORKERS="2") as server:
        server.wait_until_ready()
        until(lambda: server.metric("viola_ready") == 2, seconds=150)
        (folder,) = tmp_path.glob("viola-metrics-*")
        shutil.rmtree(folder, ignore_errors=True)  # its users may be quicker
        statuses = []

        def is_counted_again() -> bool:
            statuses.append(embed(server, sound))
            return "all workers are new" in server.log() and server.metric("viola_ready") == 2

        until(is_counted_again, seconds=150)
        assert set(statuses) == {200}
        before = server.metric('viola_requests_total{code="200",model="toy",route="/embed"}')
        assert [embed(server, sound) for _ in range(8)] == [200] * 8
        assert server.metric('viola_requests_total{code="200",model="toy",route="/embed"}') == before + 8
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)
        assert not folder.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk of its own")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_kills_no_worker(models_dir: Path, small_disk: Path, sound: bytes) -> None:
    with ServerProcess(models_dir, small_disk, VIOLA_WORKERS="2") as server:
        server.wait_until_ready()
        until(lambda: server.metric("viola_ready") == 2, seconds=150)
        with contextlib.suppress(OSError), (small_disk / "fill").open("wb", buffering=0) as fill:
            while fill.write(bytes(4096)):
                pass
        statuses = {embed(server, sound) for _ in range(20)}
        statuses |= {httpx.get(f"{server.url}/nothing/{n}").status_code for n in range(20)}
        assert statuses == {200, 404}

        # A worker that is killed now is followed by one that counts where it did.
        pids = [int(path.read_text()) for path in small_disk.glob("viola-metrics-*/*.pid")]
        os.kill(max(pids), signal.SIGKILL)
        until(lambda: server.metric("viola_ready") == 1, seconds=150)
        until(lambda: server.metric("viola_ready") == 2, seconds=150)
        (small_disk / "fill").unlink()
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)


# ── Other systems ──


def test_on_a_system_without_linux_own_calls_workers_serve_and_count(
    models_dir: Path, tmp_path: Path, sound: bytes
) -> None:
    path = first_thing(tmp_path, NOT_LINUX)
    with ServerProcess(models_dir, tmp_path, PYTHONPATH=path, VIOLA_WORKERS="2") as server:
        server.wait_until_ready()
        until(lambda: server.metric("viola_ready") == 2, seconds=150)
        assert [embed(server, sound) for _ in range(4)] == [200] * 4
        assert server.metric('viola_requests_total{code="200",model="toy",route="/embed"}') == 4
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)
        assert "not shared evenly" not in server.log()


def test_on_a_system_without_file_locks_one_process_serves(
    models_dir: Path, tmp_path: Path, sound: bytes
) -> None:
    path = first_thing(tmp_path, NO_LOCKS)
    with ServerProcess(models_dir, tmp_path, PYTHONPATH=path) as server:
        server.wait_until_ready()
        assert embed(server, sound) == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.ends_with(0)
    process = run(PYTHONPATH=path, VIOLA_WORKERS="2", VIOLA_PORT=str(free_port()))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "VIOLA_WORKERS=1" in errors
    assert "Traceback" not in errors
