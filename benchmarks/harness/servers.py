"""How to start a server in, the running process out: its port, its log, its CPU time and memory.

Every server runs in a process of its own on loopback, and is stopped by its process id. CPU time and memory
are those of the process and all that it started, from /proc: Linux only.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.clients import HOST

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "runs" / "bench"
START_S = 120.0
STOP_S = 30.0
PORT = "{port}"  # stands for it in a command
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# Set by the import of `service`, for this process; what it starts shall have the libraries' own defaults.
THREAD_PINS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Server:
    """command: `{port}` stands for the port; environment: beside this process's own; ready: answers 200."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    ready: str = "/health/ready"


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    server: Server
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_s(self) -> float:
        """User and system time so far, steps of 10 ms."""
        return sum(_cpu_s(pid) for pid in family(self.pid))

    def memory_mb(self) -> float:
        """What the processes hold, pages that they share counted once (PSS)."""
        return sum(_pss_kb(pid) for pid in family(self.pid)) / 1000


def viola(model: Path, precision: str, *, workers: int = 1, **settings: str) -> Server:
    """Our server, as `python -m service` starts it, with one model folder. settings: `max_queue_s="1"`."""
    return Server(
        f"viola {precision}" + f" {workers} workers" * (workers > 1),
        (sys.executable, "-m", "service"),
        {
            "VIOLA_HOST": HOST,
            "VIOLA_PORT": PORT,
            "VIOLA_MODELS_DIR": str(model.parent.resolve()),
            "VIOLA_MODEL": model.name,
            "VIOLA_PRECISION": precision,
            "VIOLA_WORKERS": str(workers),
            "VIOLA_ACCESS_LOG": "false",  # as the peers: a line for each request measures the disk
            **{f"VIOLA_{name.upper()}": value for name, value in settings.items()},
        },
    )


@contextlib.contextmanager
def running(server: Server) -> Iterator[Running]:
    """Started and ready; stopped by SIGTERM at the end. Raises RuntimeError when it does not become ready."""
    port = free_port()
    log = LOGS / f"{server.name.replace(' ', '-')}.log"
    process = started(server, port, log)
    try:
        _wait_until_ready(process, port, server.ready, log)
        yield Running(server, port, process)
    finally:
        _stop(process)


def started(server: Server, port: int, log: Path) -> "subprocess.Popen[bytes]":
    """Its process, which is not ready yet. log: is written anew."""
    log.parent.mkdir(parents=True, exist_ok=True)
    own = {name: value.replace(PORT, str(port)) for name, value in server.environment.items()}
    command = [part.replace(PORT, str(port)) for part in server.command]
    with log.open("w") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=without_thread_pins() | own, stdout=output, stderr=output
        )


def without_thread_pins() -> dict[str, str]:
    """The environment as it was before this process set THREAD_PINS in it."""
    return {name: value for name, value in os.environ.items() if name not in THREAD_PINS}


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(path)
        if fields:
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def is_running(pid: int) -> bool:
    """False also for a process that has ended and that its parent has not waited for: a zombie."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return bool(fields) and fields[0] != "Z"


def memory_kb(pid: int, name: str) -> int:
    """A line of /proc/PID/status, as VmRSS (resident now) or VmHWM (the most that ever was); 0 once it has
    ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _stat(path: Path) -> list[str]:
    """The fields of /proc/PID/stat behind the name (which may hold blanks): state, parent, …"""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return []


def _cpu_s(pid: int) -> float:
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S if fields else 0.0


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, path: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}; its log is {log}")
        if answers(port, path):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server was not ready after {START_S:g} s; its log is {log}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    started = {pid: _started_at(pid) for pid in family(process.pid)}
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Some servers leave processes behind. A number that another process has got since is let be.
    for pid, at in started.items():
        if at and _started_at(pid) == at:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _started_at(pid: int) -> str:
    """In ticks since the machine's start; empty when there is no such process."""
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return fields[19] if fields else ""
