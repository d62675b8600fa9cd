"""Settings in, servers out that live one after the other on one port: each with its log and its ledger."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness.connection import Connection, Gone, ask, get
from benchmarks.harness.servers import ROOT, family, free_port, is_running, memory_kb, started, viola
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.record import Record

LOGS = ROOT / "runs" / "soak"
OF_WORKERS = "viola-metrics-*"  # folders that they share; a supervisor that was killed leaves its own
READY_S, STOP_S = 180.0, 150.0  # patience, for machines that are busy

MAX_AUDIO_S = 700.0
MAX_BODY_BYTES = 25_000_000
SETTINGS = {
    "VIOLA_MAX_AUDIO_S": str(MAX_AUDIO_S),
    "VIOLA_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    # Eighty clips of 5 s; the good clients alone may need half of it.
    "VIOLA_MAX_QUEUE_FRAMES": "40000",
    "VIOLA_MAX_QUEUE_S": "5",  # a long upload shall find room among the others, on a slow machine too
    "VIOLA_DEADLINE_S": "120",
    "VIOLA_UPLOAD_TIMEOUT_S": "3",
}


@dataclass
class Life:
    """One server process, and the ledger of those who asked it."""

    process: "subprocess.Popen[bytes]"
    log: Path
    settings: dict[str, str]
    ledger: Ledger = field(default_factory=Ledger)
    memory_mb: dict[str, float] = field(default_factory=dict)  # at rest, after each act's first performance
    open_files: int | None = None  # at rest, after the first act


class Lives:
    """is_up: whether the last one must answer now
    is_being_killed: whether clients who wait now may be lost"""

    def __init__(self, model: Path, temporary: Path, record: Record) -> None:
        """model: its folder, which acts may damage; temporary: the folder in which the servers keep what does
        not fit into memory."""
        self.port = free_port()
        self.all: list[Life] = []
        self.is_up = False
        self.is_being_killed = False
        self._model = model
        self._temporary = temporary
        self._record = record

    @property
    def last(self) -> Life:
        return self.all[-1]

    @property
    def ledger(self) -> Ledger:
        """Of all of them together."""
        return sum((life.ledger for life in self.all), Ledger())

    def start(self, **settings: str) -> None:
        server = viola(self._model, "auto")
        own = server.environment | SETTINGS | {"TMPDIR": str(self._temporary)} | settings
        log = LOGS / f"server-{len(self.all) + 1}.log"
        self.all.append(Life(started(replace(server, environment=own), self.port, log), log, settings))

    async def ready(self) -> None:
        """Wait for the last one. Raises TimeoutError, and RuntimeError when the process ends instead."""
        life = self.last
        async with asyncio.timeout(READY_S):
            while True:
                code = life.process.poll()
                if code is not None:
                    raise RuntimeError(f"the server ended with code {code}; its log is {life.log}")
                with suppress(OSError, Gone):
                    if (await ask(self.port, get("/health/ready"))).status == 200:
                        break
                await asyncio.sleep(0.02)
        self.is_up = True

    async def stop(self) -> None:
        """The last one, by SIGTERM."""
        self.is_up = False
        self.last.process.send_signal(signal.SIGTERM)
        await self.ended_well(self.last)

    async def ended_well(self, life: Life) -> None:
        """Wait for its end after SIGTERM."""
        try:
            code = await asyncio.to_thread(life.process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._record.complain(f"the server did not end within {STOP_S:g} s of SIGTERM")
            return
        self._record.check(code == 0, f"the server ended with code {code} after SIGTERM")

    def starting(self) -> "subprocess.Popen[bytes]":
        """Another server, on a port of its own, that nobody asks."""
        server = viola(self._model, "auto")
        own = server.environment | SETTINGS | {"TMPDIR": str(self._temporary)}
        return started(replace(server, environment=own), free_port(), LOGS / "starting.log")

    @contextmanager
    def torn_model(self) -> Iterator[None]:
        """For as long, the model's folder lacks its graphs."""
        graphs = [*self._model.glob("*.onnx")]
        for graph in graphs:
            graph.rename(graph.with_suffix(".aside"))
        yield
        for graph in graphs:
            graph.with_suffix(".aside").rename(graph)

    @contextmanager
    def lost_folders(self) -> Iterator[None]:
        """What workers share is deleted, and what they have counted by now may be counted or not."""
        for folder in self._temporary.glob(OF_WORKERS):
            shutil.rmtree(folder, ignore_errors=True)  # its users may be quicker
        yield
        books = self.last.ledger
        new = Ledger(perhaps=books.entries.total(), droppable=books.droppable)
        self.all.append(replace(self.last, ledger=new))

    async def log_says(self, sentence: str, *, times: int) -> None:
        """Wait for the last one's log to hold it so often."""
        async with asyncio.timeout(READY_S):
            while self.said(sentence) < times:  # noqa: ASYNC110 - a log tells nobody
                await asyncio.sleep(0.1)

    def said(self, sentence: str) -> int:
        return self.last.log.read_text(errors="replace").count(sentence)

    async def port_is_free(self) -> None:
        async with asyncio.timeout(STOP_S):
            while True:
                try:
                    await (await Connection.open(self.port)).close()
                except OSError:
                    return
                await asyncio.sleep(0.005)

    async def two_workers_are_there(self, *, without: int = 0) -> None:
        """Ready, both of them. without: the one that was killed."""
        async with asyncio.timeout(READY_S):
            while len(set(workers(self.last.process.pid)) - {without}) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
            while not await self._says("viola_ready 2.0"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def are_gone(self, pids: Sequence[int]) -> None:
        """Wait for processes to end; those that do not are ended."""
        alive = [*pids]
        for _ in range(100):
            alive = [pid for pid in pids if is_running(pid)]
            if not alive:
                return
            await asyncio.sleep(0.1)
        self._record.complain(f"{len(alive)} processes go on without their supervisor")
        for pid in alive:
            os.kill(pid, signal.SIGKILL)

    async def _says(self, metric: str) -> bool:
        try:
            return f"\n{metric}\n" in (await ask(self.port, get("/metrics"))).body.decode()
        except (OSError, Gone):  # nobody listens
            return False

    def kill_all(self) -> None:
        """What is left of them at the end."""
        for life in self.all:
            life.process.kill()
            life.process.wait()


def workers(pid: int) -> list[int]:
    """The serving processes behind a port, without their parent and multiprocessing's own helper."""
    return [each for each in family(pid)[1:] if b"spawn_main" in _command_line(each)]


def footprint(pid: int) -> tuple[float, int]:
    """(resident MB, open files) of the process and its children."""
    processes = family(pid)
    open_files = 0
    for each in processes:
        with suppress(OSError):
            open_files += len(list(Path(f"/proc/{each}/fd").iterdir()))
    return sum(memory_kb(each, "VmRSS") for each in processes) / 1000, open_files


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
