"""A scripted run of faults against a real server under load; out: a ledger in which nothing is lost.

Good clients send sounds of all lengths and formats the whole time, and every number that they are answered
is held against the one computed beforehand, alone. Beside them, one act after the other: slow clients,
poison, overload, deadlines, clients that leave, long uploads, all of it at once, a rolling restart, a kill,
two workers of which one is killed, the kill of their supervisor. After each act everybody waits, and the
clients' ledger, the server's metrics, its queue, its memory and its open files must fit together.

Exit code 0 if nothing was lost and nothing was wrong, else 1 with the reasons.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks import faults, ledger
from benchmarks.clients import END_OF_HEAD
from benchmarks.ledger import LOST, LOST_BY_KILL, WRONG, Ledger, unbalanced
from benchmarks.questions import Question, Questions, questions
from benchmarks.results import Result, markdown, read, say, write
from benchmarks.servers import ROOT, THREAD_PINS, family, free_port, viola
from benchmarks.wire import Answer, Connection, Gone, ask, get

LOGS = ROOT / "runs" / "soak"

CLIENTS = 8
PAUSE_S = 0.02  # at most, between an answer and the next request
COME_BACK_S = 0.25  # where nobody listened
OVERLOAD_CLIENTS = 150
SOON_S = 0.05  # less than a long upload takes
PATIENCE_S = 45.0  # with a server that should have hung up on a slow client
READY_S, STOP_S, REST_S = 180.0, 150.0, 240.0  # patience of the play itself, for machines that are busy
HEALTH_EVERY_S, HEALTH_S = 0.2, 20.0

MAX_AUDIO_S = 700.0
MAX_BODY_BYTES = 25_000_000
SETTINGS = {
    "VIOLA_MAX_AUDIO_S": str(MAX_AUDIO_S),
    "VIOLA_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    # Eighty clips of 5 s; the good clients alone may need half of it.
    "VIOLA_MAX_QUEUE_FRAMES": "40000",
    "VIOLA_DEADLINE_S": "120",
    "VIOLA_UPLOAD_TIMEOUT_S": "3",
}

# Bounds of the resident size: over what it was at first, and over what it was after the same act before.
OVER_FIRST, OVER_BEFORE, OVER_MB = 2.0, 1.15, 30.0
MORE_FILES = 8
LEFT_BY_A_KILL = "viola-metrics-*"  # of a supervisor; the next one makes its own


@dataclass
class Life:
    """One server process, and the ledger of those who asked it."""

    process: "subprocess.Popen[bytes]"
    log: Path
    settings: dict[str, str]
    ledger: Ledger = field(default_factory=Ledger)
    memory_mb: dict[str, float] = field(default_factory=dict)  # at rest, after each act's first performance
    open_files: int | None = None  # at rest, after the first act


Act = Callable[["Soak", float], Coroutine[Any, Any, None]]


class Soak:
    """The clients, the server's lives, and what went wrong; `run` plays all acts."""

    def __init__(
        self,
        asked: Questions,
        model: Path,
        seconds: float,
        seed: int,
        script: "Sequence[tuple[Act, float]]",
    ) -> None:
        self.complaints: list[str] = []
        self.lives: list[Life] = []
        self.latencies_s: dict[str, list[float]] = defaultdict(list)  # of right answers, by act
        self.health_s: list[float] = []
        self.admitted_s: list[float] = []  # of overloads
        self.refused_s: list[float] = []
        self.footprints: list[tuple[str, float, int]] = []
        self._questions = asked
        self._model = model
        self._seconds = seconds
        self._script = script
        self._chance = random.Random(seed)
        self._port = free_port()
        self._act = ""
        self._may_send = asyncio.Event()
        self._in_flight = 0
        self._slow: list[asyncio.Task[None]] = []  # clients who go on while other acts are played
        self._expects_100 = False  # every good client waits for `100 Continue`: its request is accepted
        self._is_killing = False
        self._is_up = False

    async def run(self) -> None:
        """All acts; then `verdict` knows what was wrong."""
        LOGS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=LOGS) as folder:
            self._folder = Path(folder)
            try:
                await self._play()
            except* (TimeoutError, RuntimeError, Gone, OSError) as group:
                for error in group.exceptions:
                    self._complain(f"the play ends in {self._act!r}: {error!r}")
            finally:
                for life in self.lives:
                    life.process.kill()
                    life.process.wait()
            left = sorted(path.name for path in self._folder.iterdir() if not path.match(LEFT_BY_A_KILL))
            self._check(not left, f"the servers left temporary files behind: {left}")

    @property
    def ledger(self) -> Ledger:
        return sum((life.ledger for life in self.lives), Ledger())

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def verdict(self) -> list[str]:
        """Everything that was wrong; empty when all is well."""
        found = [*self.complaints, *self.ledger.complaints]
        for life in self.lives:
            text = life.log.read_text(errors="replace")
            if "Traceback" in text:
                found.append(f"{life.log} holds a traceback: {text[text.index('Traceback') :][-1500:]}")
        for outcome in (LOST, WRONG):
            if number := self.ledger.outcomes(outcome):
                found.append(f"{number} requests {outcome}")
        return found

    async def _play(self) -> None:
        self._start()
        await self._ready()
        total = sum(weight for _, weight in self._script)
        async with _crowd(self._watch_health(), *(self._good_client() for _ in range(CLIENTS))):
            for act, weight in self._script:
                self._act = act.__name__.strip("_").replace("_", " ")
                self._may_send.set()
                began = time.perf_counter()
                await act(self, self._seconds * weight / total)
                await self._settle()
                answers = len(self.latencies_s[self._act])
                say(f"{self._act}: {time.perf_counter() - began:.1f} s, {answers} right answers")
            await self._stop(self.life)

    # -- the good clients --------------------------------------------------------------------------------

    async def _good_client(self) -> None:
        """A few requests on a connection, then the next one."""
        while True:
            await self._may_send.wait()
            life = self.life
            try:
                connection = await Connection.open(self._port)
            except OSError:
                self._nobody_listens("good")
                await asyncio.sleep(COME_BACK_S)
                continue
            try:
                while self._may_send.is_set():
                    answer = await self._ask(connection, life, self._chance.choice(self._questions.many))
                    await asyncio.sleep(self._chance.uniform(0, PAUSE_S))
                    is_closed = answer is None or answer.headers.get("connection") == "close"
                    if is_closed or self._chance.random() < 0.2:
                        break
            finally:
                await connection.close()

    async def _ask_alone(self, question: Question, kind: str) -> Answer | None:
        """On a connection of its own."""
        life = self.life
        try:
            connection = await Connection.open(self._port)
        except OSError:
            self._nobody_listens(kind)
            return None
        try:
            return await self._ask(connection, life, question, kind=kind)
        finally:
            await connection.close()

    async def _ask(
        self, connection: Connection, life: Life, question: Question, *, kind: str = "good"
    ) -> Answer | None:
        """The answer, noted; None where there is none."""
        began, act = time.perf_counter(), self._act
        waits_for_100 = self._expects_100 or self._chance.random() < 0.3
        self._in_flight += 1
        try:
            answer = await (_ask_politely if waits_for_100 else _ask_at_once)(connection, question.request)
        except (Gone, TimeoutError) as error:
            if isinstance(error, _NotAccepted) and not self._is_up:
                life.ledger.not_accepted(kind)
            else:
                life.ledger.lost(kind, by_kill=self._is_killing, complaint=f"{error!r} in {act!r}")
            return None
        finally:
            self._in_flight -= 1
        self._note(life, kind, question, answer)
        if answer.status == 200:
            self.latencies_s[act].append(time.perf_counter() - began)
        return answer

    def _note(self, life: Life, kind: str, question: Question, answer: Answer) -> None:
        complaint = question.complaint(answer) if answer.status == 200 else None
        if complaint:
            life.ledger.wrong(kind, complaint)
        else:
            life.ledger.answered(kind, answer)
        allowed = {200, 503} if self._act in REFUSING else {200}
        self._check(
            answer.status in allowed or kind == "deadline" or (kind, answer.status) == ("long", 504),
            f"a {kind} request is answered {answer.status} in {self._act!r}: {answer.body[:200]!r}",
        )

    def _nobody_listens(self, kind: str) -> None:
        self.life.ledger.not_accepted(kind)
        self._check(not self._is_up, f"{kind}: nobody listens on the port, in {self._act!r}")

    async def _watch_health(self) -> None:
        """Live and ready must be 200 whenever a server is up."""
        while True:
            for path in ("/health/live", "/health/ready"):
                was_up, began = self._is_up, time.perf_counter()
                try:
                    seen = str((await ask(self._port, get(path), timeout_s=HEALTH_S)).status)
                except (Gone, OSError, TimeoutError) as error:
                    seen = repr(error)
                if was_up and self._is_up:
                    self.health_s.append(time.perf_counter() - began)
                    self._check(seen == "200", f"{path} says {seen} while a server is up, in {self._act!r}")
            await asyncio.sleep(HEALTH_EVERY_S)

    # -- the acts: each takes about so many seconds ------------------------------------------------------

    async def _calm(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _slow_clients(self, seconds: float) -> None:
        """In the head, in the body, in taking the answer: each is hung up on, while the play goes on."""
        request = self._questions.heavy.request
        begin_of_body = request.index(END_OF_HEAD) + len(END_OF_HEAD)
        works = [
            *(self._drip(request, 20 + number) for number in range(3)),
            *(self._drip(request, begin_of_body + 1000 * number) for number in range(3)),
            *(self._never_read(self._questions.frames.request) for _ in range(2)),
        ]
        self._slow += [asyncio.create_task(work) for work in works]
        await asyncio.sleep(seconds)

    async def _end_of_the_slow_clients(self, seconds: float) -> None:
        await asyncio.gather(*self._slow)
        self._slow.clear()

    async def _poison(self, seconds: float) -> None:
        """Each kind at least once, mutants until the end."""
        until = time.perf_counter() + seconds
        for poison in faults.poisons(max_audio_s=MAX_AUDIO_S, max_body_bytes=MAX_BODY_BYTES):
            await self._send_poison(poison)
        await self._pipeline_garbage()
        for seed in count():
            for poison in faults.mutants(10, seed=seed):
                await self._send_poison(poison)
            if time.perf_counter() > until:
                return

    async def _overload(self, seconds: float) -> None:
        """Waves of more than the queue takes: who gets in is answered, the others are refused at once."""
        until = time.perf_counter() + seconds
        answers: list[tuple[int, float]] = []
        while not answers or time.perf_counter() < until:
            await asyncio.gather(*(self._overloader(answers) for _ in range(OVERLOAD_CLIENTS)))
        admitted = [seconds for status, seconds in answers if status == 200]
        refused = [seconds for status, seconds in answers if status == 503]
        self._check(bool(admitted), "in an overload nobody was admitted")
        self._check(bool(refused), "an overload was not refused")
        if admitted and refused:
            is_at_once = statistics.median(refused) < statistics.median(admitted)
            self._check(is_at_once, "in an overload a refusal took longer than an answer")
        self.admitted_s += admitted
        self.refused_s += refused

    async def _deadlines(self, seconds: float) -> None:
        """Long uploads that cannot be done in the time that their header gives them."""
        head, _, body = self._questions.long.request.partition(END_OF_HEAD)
        hasty = head + f"\r\nX-Deadline-S: {SOON_S}".encode() + END_OF_HEAD + body
        until = time.perf_counter() + seconds
        while True:
            answer = await self._ask_alone(replace(self._questions.long, request=hasty), "deadline")
            if answer and answer.status != 503:
                seen = answer.status
                self._check(seen == 504, f"a long upload with a deadline of {SOON_S} s is answered {seen}")
            if time.perf_counter() > until:
                return

    async def _leaving_clients(self, seconds: float) -> None:
        """After the head, in the body, before the answer, by a reset, by half a goodbye; twenty at a time."""
        until = time.perf_counter() + seconds
        while True:
            await asyncio.gather(*(self._leave(way) for way in 4 * WAYS_TO_LEAVE))
            if time.perf_counter() > until:
                return

    async def _long_upload(self, seconds: float) -> None:
        """Minutes of sound beside the short clips, and the frames of half a minute beside them."""
        until = time.perf_counter() + seconds
        while True:
            await asyncio.gather(
                self._ask_alone(self._questions.long, "long"),
                self._ask_alone(self._questions.frames, "frames"),
            )
            if time.perf_counter() > until:
                return

    async def _everything_at_once(self, seconds: float) -> None:
        await asyncio.gather(
            self._poison(seconds),
            self._overload(seconds),
            self._deadlines(seconds),
            self._leaving_clients(seconds),
            self._long_upload(seconds),
        )

    async def _rolling_restart(self, seconds: float) -> None:
        """SIGTERM; the next server takes the port as soon as it is free. Nothing accepted is lost."""
        self._expects_100 = True
        await asyncio.sleep(seconds / 2)
        old = self.life
        self._is_up = False
        old.process.send_signal(signal.SIGTERM)
        await self._port_is_free()
        self._start(**old.settings)
        await asyncio.gather(self._ended_well(old), self._ready())
        await asyncio.sleep(seconds / 2)
        self._expects_100 = False

    async def _kill(self, seconds: float) -> None:
        """SIGKILL, with uploads in temporary files among the load, and a new start."""
        self._expects_100 = True
        uploads = [asyncio.create_task(self._ask_alone(self._questions.long, "long")) for _ in range(2)]
        await asyncio.sleep(seconds / 2)
        old, in_flight = self.life, self._in_flight
        self._is_up, self._is_killing = False, True
        old.process.kill()
        old.process.wait()
        self._start()
        await asyncio.gather(self._ready(), *uploads)
        self._no_more_lost_than(in_flight, old)
        await asyncio.sleep(seconds / 2)

    async def _two_workers(self, seconds: float) -> None:
        """A server of two processes behind the port; one of them is killed."""
        self._may_send.clear()
        await self._settle()
        await self._stop(self.life)
        self._start(VIOLA_WORKERS="2")
        self._expects_100 = True
        await self._ready()
        await self._two_are_there()
        self._may_send.set()
        await asyncio.sleep(seconds / 2)
        in_flight = self._in_flight
        self._is_up, self._is_killing = False, True
        killed = workers(self.life.process.pid)[0]
        os.kill(killed, signal.SIGKILL)
        await self._two_are_there(without=killed)
        await self._ready()
        self._no_more_lost_than(in_flight, self.life)
        await asyncio.sleep(seconds / 2)

    async def _kill_of_the_supervisor(self, seconds: float) -> None:
        """Its workers end with it, so that the next server gets the port."""
        self._expects_100 = True
        await asyncio.sleep(seconds / 2)
        old, in_flight = self.life, self._in_flight
        self._is_up, self._is_killing = False, True
        processes = family(old.process.pid)
        old.process.kill()
        old.process.wait()
        await self._are_gone(processes)
        self._start()
        await self._ready()
        self._no_more_lost_than(in_flight, old)
        await asyncio.sleep(seconds / 2)

    def _no_more_lost_than(self, in_flight: int, life: Life) -> None:
        """The end of a kill."""
        self._is_killing = self._expects_100 = False
        lost = life.ledger.outcomes(LOST_BY_KILL)
        self._check(lost <= in_flight, f"{lost} were lost by a kill when {in_flight} waited")

    # -- the bad clients ---------------------------------------------------------------------------------

    async def _send_poison(self, poison: faults.Poison) -> None:
        ledger = self.life.ledger
        try:
            answer = await poison.send(self._port)
        except (TimeoutError, OSError) as error:
            ledger.lost("poison", by_kill=False, complaint=f"{poison.name}: {error!r}")
            return
        counted = {"yes": True, "maybe": None}[poison.counted]
        if answer is None:
            ledger.cut("poison", counted=counted)
        else:
            ledger.answered("poison", answer, counted=counted)
        is_refused = answer is not None and answer.status == 503 and self._act in REFUSING
        complaint = poison.complaint(answer)
        self._check(complaint is None or is_refused, f"{complaint}")

    async def _pipeline_garbage(self) -> None:
        """The connection is closed with a 400; the good request before it may be answered first."""
        ledger = self.life.ledger
        statuses = await faults.pipelines_garbage(self._port, self._questions.heavy.request)
        allowed: list[list[int]] = [[], [400], [200], [200, 400], [503], [503, 400]]
        self._check(statuses in allowed, f"garbage behind a good request is answered {statuses}")
        ledger.left("poison", counted=None)

    async def _overloader(self, answers: list[tuple[int, float]]) -> None:
        began = time.perf_counter()
        answer = await self._ask_alone(self._questions.heavy, "overload")
        if answer:
            answers.append((answer.status, time.perf_counter() - began))

    async def _leave(self, way: Callable[[int, bytes], Awaitable[object]]) -> None:
        ledger = self.life.ledger
        with suppress(Gone):  # refused before it could leave
            await way(self._port, self._questions.heavy.request)
        ledger.left("leaving")

    async def _drip(self, request: bytes, from_byte: int) -> None:
        ledger, has_head = self.life.ledger, END_OF_HEAD in request[:from_byte]
        is_cut = await faults.drips(
            self._port, request, from_byte=from_byte, every_s=0.5, patience_s=PATIENCE_S
        )
        where = "body" if has_head else "head"
        self._check(is_cut, f"a client that sends its {where} byte by byte is not hung up on")
        ledger.cut("slow", counted=True if has_head else None)

    async def _never_read(self, request: bytes) -> None:
        ledger = self.life.ledger
        answer = await faults.never_reads(self._port, request, patience_s=PATIENCE_S)
        if answer is None:
            ledger.cut("slow", counted=True)
            return
        ledger.answered("slow", answer)
        self._check(answer.status != 200, "a client that never reads its answer is not hung up on")

    # -- the server --------------------------------------------------------------------------------------

    def _start(self, **settings: str) -> None:
        server = viola(self._model, "auto")
        own = server.environment | SETTINGS | settings | {"TMPDIR": str(self._folder)}
        inherited = {name: value for name, value in os.environ.items() if name not in THREAD_PINS}
        log = LOGS / f"server-{len(self.lives) + 1}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                server.command,
                cwd=ROOT,
                env=inherited | {name: value.format(port=self._port) for name, value in own.items()},
                stdout=output,
                stderr=output,
            )
        self.lives.append(Life(process, log, settings))

    async def _ready(self) -> None:
        """Wait for it. Raises TimeoutError, and RuntimeError when the process ends instead."""
        life = self.life
        async with asyncio.timeout(READY_S):
            while True:
                code = life.process.poll()
                if code is not None:
                    raise RuntimeError(f"the server ended with code {code}; its log is {life.log}")
                with suppress(OSError, Gone):
                    if (await ask(self._port, get("/health/ready"))).status == 200:
                        break
                await asyncio.sleep(0.02)
        self._is_up = True

    async def _port_is_free(self) -> None:
        async with asyncio.timeout(STOP_S):
            while True:
                try:
                    await (await Connection.open(self._port)).close()
                except OSError:
                    return
                await asyncio.sleep(0.005)

    async def _stop(self, life: Life) -> None:
        self._is_up = False
        life.process.send_signal(signal.SIGTERM)
        await self._ended_well(life)

    async def _ended_well(self, life: Life) -> None:
        try:
            code = await asyncio.to_thread(life.process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._complain(f"the server did not end within {STOP_S:g} s of SIGTERM")
            return
        self._check(code == 0, f"the server ended with code {code} after SIGTERM")

    async def _two_are_there(self, *, without: int = 0) -> None:
        async with asyncio.timeout(READY_S):
            while len(set(workers(self.life.process.pid)) - {without}) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)

    async def _are_gone(self, pids: Sequence[int]) -> None:
        """Wait for processes to end; those that do not are ended."""
        alive = [*pids]
        for _ in range(100):
            alive = [pid for pid in pids if is_running(pid)]
            if not alive:
                return
            await asyncio.sleep(0.1)
        self._complain(f"{len(alive)} processes go on without their supervisor")
        for pid in alive:
            os.kill(pid, signal.SIGKILL)

    async def _settle(self) -> None:
        """Everybody waits until nothing is in flight; then the books must balance."""
        self._may_send.clear()
        async with asyncio.timeout(REST_S):
            while self._in_flight:  # noqa: ASYNC110 - a condition variable for each client would be no better
                await asyncio.sleep(0.02)
        found: list[str] = []
        for _ in range(100):  # the server may still be noticing who left
            page = (await ask(self._port, get("/metrics"))).body.decode()
            found = unbalanced(self.life.ledger, page) + still_queued(page)
            if not found:
                break
            await asyncio.sleep(0.1)
        for sentence in found:
            self._complain(f"after {self._act!r} {sentence}")
        await self._check_footprint()

    async def _check_footprint(self) -> None:
        life, of_slow_clients = self.life, sum(not task.done() for task in self._slow)
        for _ in range(30):  # there are connections that are just being closed
            memory_mb, open_files = footprint(life.process.pid)
            open_files -= of_slow_clients
            life.open_files = life.open_files or open_files
            more = open_files - life.open_files
            if more <= MORE_FILES:
                break
            await asyncio.sleep(0.1)
        self._check(more <= MORE_FILES, f"after {self._act!r} {more} more files are open than at first")
        first, before = next(iter(life.memory_mb.values()), memory_mb), life.memory_mb.get(self._act)
        bound = OVER_FIRST * first + OVER_MB if before is None else OVER_BEFORE * before + OVER_MB
        self._check(
            memory_mb < bound,
            f"after {self._act!r} the server holds {memory_mb:.0f} MB; the bound is {bound:.0f} MB",
        )
        life.memory_mb.setdefault(self._act, memory_mb)
        self.footprints.append((self._act, memory_mb, open_files))

    def _check(self, is_right: bool, complaint: str) -> None:
        if not is_right:
            self._complain(complaint)

    def _complain(self, complaint: str) -> None:
        if complaint not in self.complaints:
            say(f"! {complaint}")
            self.complaints.append(complaint)


# Acts and their shares of the time. The slow clients go on from their act until their end.
SCRIPT: tuple[tuple[Act, float], ...] = (
    (Soak._calm, 1),
    (Soak._slow_clients, 0),
    (Soak._poison, 2),
    (Soak._overload, 1),
    (Soak._deadlines, 1),
    (Soak._leaving_clients, 1),
    (Soak._long_upload, 1),
    (Soak._everything_at_once, 3),
    (Soak._everything_at_once, 3),
    (Soak._end_of_the_slow_clients, 0),
    (Soak._rolling_restart, 1),
    (Soak._kill, 1),
    (Soak._two_workers, 1),
    (Soak._rolling_restart, 1),
    (Soak._kill_of_the_supervisor, 1),
)
SHORT_SCRIPT: tuple[tuple[Act, float], ...] = (
    (Soak._calm, 1),
    (Soak._everything_at_once, 2),
    (Soak._rolling_restart, 1),
    (Soak._kill, 1),
)
REFUSING = {
    "overload",
    "leaving clients",
    "everything at once",
}  # acts in which 503 is right for good requests

WAYS_TO_LEAVE = (
    faults.leaves_after_the_head,
    faults.leaves_in_the_body,
    faults.leaves_before_the_answer,
    faults.resets_before_the_answer,
    faults.half_closes_in_the_body,
)


class _NotAccepted(Gone):
    """The server hung up before it said `100 Continue`."""


async def _ask_politely(connection: Connection, request: bytes) -> Answer:
    """The body is sent when it is asked for. Raises _NotAccepted, or Gone once it was asked for."""
    head, _, body = request.partition(END_OF_HEAD)
    try:
        await connection.send(head + b"\r\nExpect: 100-continue" + END_OF_HEAD)
        answer = await connection.answer(interim=True)
    except Gone as error:
        raise _NotAccepted from error
    with suppress(Gone):  # it may be answered before all of it is sent
        await connection.send(body)
    return await connection.answer() if answer.status == 100 else answer


async def _ask_at_once(connection: Connection, request: bytes) -> Answer:
    with suppress(Gone):  # it may be answered before all of it is sent
        await connection.send(request)
    return await connection.answer()


@asynccontextmanager
async def _crowd(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Tasks that go on until the end; what they raise is raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()


def workers(pid: int) -> list[int]:
    """The serving processes behind a port, without their parent and multiprocessing's own helper."""
    return [each for each in family(pid)[1:] if b"spawn_main" in _text(each, "cmdline")]


def is_running(pid: int) -> bool:
    """Neither gone nor dead and not yet buried by its parent."""
    state = _text(pid, "stat").rpartition(b") ")[2][:1]
    return state not in (b"", b"Z")


def footprint(pid: int) -> tuple[float, int]:
    """(resident MB, open files) of the process and its children."""
    memory_kb = files = 0
    for each in family(pid):
        lines = _text(each, "status").decode().splitlines()
        memory_kb += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        with suppress(OSError):
            files += len(list(Path(f"/proc/{each}/fd").iterdir()))
    return memory_kb / 1000, files


def _text(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has just ended
        return b""


def still_queued(page: str) -> list[str]:
    """At rest the queue is empty."""
    values = [line.split()[-1] for line in page.splitlines() if line.startswith("viola_queue_frames")]
    frames = sum(map(float, values))
    return [f"the queue still holds {frames:g} frames, though nobody waits"] if frames else []


def act_rows(soak: Soak) -> list[dict[str, Any]]:
    """One per performance of an act: the right answers in it (of all its performances), their latencies in
    milliseconds, and the server at rest after it."""
    return [
        {
            "act": act,
            "answers": len(soak.latencies_s[act]),
            "latencies_ms": percentiles_ms(soak.latencies_s[act]),
            "memory_mb": round(memory_mb),
            "open_files": open_files,
        }
        for act, memory_mb, open_files in soak.footprints
    ]


def percentiles_ms(latencies_s: Sequence[float]) -> list[int]:
    """p50, p95 and p99; none of fewer than two."""
    if len(latencies_s) < 2:
        return []
    p = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return [round(1000 * p[percent - 1]) for percent in (50, 95, 99)]


def act_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["act", "right answers", "p50 / p95 / p99 ms", "resident MB after it", "open files"]
    cells = [
        [
            row["act"],
            row["answers"],
            " / ".join(map(str, row["latencies_ms"])),
            row["memory_mb"],
            row["open_files"],
        ]
        for row in rows
    ]
    return markdown(header, cells)


def table(result: Result) -> str:
    """For README.md."""
    complaints = result["complaints"] or ["nothing was lost, nothing was wrong"]
    verdict = "\n".join(f"- {sentence}" for sentence in complaints)
    waits = markdown(
        ["in an overload", "p50 / p95 / p99 ms"],
        [
            ["admitted", " / ".join(map(str, result["admitted_ms"]))],
            ["refused", " / ".join(map(str, result["refused_ms"]))],
            ["/health, in all acts", " / ".join(map(str, result["health_ms"]))],
        ],
    )
    return "\n\n".join([ledger.table(result["rows"]), verdict, act_table(result["acts"]), waits])


async def played(
    model: Path,
    *,
    seconds: float,
    long_s: float = 600,
    seed: int = 0,
    script: Sequence[tuple[Act, float]] = SCRIPT,
) -> Soak:
    """seconds: of all acts together, servers' starts not counted; long_s: of sound in a long upload."""
    soak = Soak(questions(model, random.Random(seed), long_s=long_s), model, seconds, seed, script)
    await soak.run()
    return soak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults; servers' starts come on top")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "byola", help="a model folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    say("computing every embedding, each alone")
    soak = asyncio.run(played(arguments.model, seconds=60 * arguments.minutes, seed=arguments.seed))
    found = soak.verdict()
    path = write(
        "soak",
        ledger.rows(soak.ledger),
        minutes=arguments.minutes,
        complaints=found,
        acts=act_rows(soak),
        admitted_ms=percentiles_ms(soak.admitted_s),
        refused_ms=percentiles_ms(soak.refused_s),
        health_ms=percentiles_ms(soak.health_s),
    )
    say(f"\n{table(read('soak') or {})}\n\n{path} written")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
