"""A script of acts in, each performed while good clients send, then everybody rests; out: what was seen.

After each act all wait until nothing is in flight, and the clients' ledger, the server's metrics, its queue,
its memory and its open files must fit together.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.connection import Gone, ask, get
from benchmarks.harness.results import say
from benchmarks.soak.good_clients import GoodClients
from benchmarks.soak.good_requests import GoodRequests, good_requests
from benchmarks.soak.ledger import still_queued, unbalanced
from benchmarks.soak.lives import LOGS, OF_WORKERS, Lives, footprint
from benchmarks.soak.record import AtRest, Record

CLIENTS = 8
REST_S = 240.0  # patience with what is in flight, for machines that are busy

# Bounds of the resident size: over what it was at first, and over what it was after the same act before.
OVER_FIRST, OVER_BEFORE, OVER_MB = 2.0, 1.15, 30.0
MORE_FILES = 8


@dataclass(frozen=True)
class Act:
    """perform: takes about so many seconds; its name is the act's
    share: of the seconds of all acts
    may_refuse: whether 503 is a right answer to a good request in it"""

    perform: "Callable[[Play, float], Coroutine[Any, Any, None]]"
    share: float
    may_refuse: bool = False

    @property
    def name(self) -> str:
        return self.perform.__name__.replace("_", " ")


async def played(
    model: Path, script: Sequence[Act], *, seconds: float, long_s: float = 600, seed: int = 0
) -> "Play":
    """seconds: of all acts together, servers' starts not counted; long_s: of sound in a long upload."""
    requests = good_requests(model, random.Random(seed), long_s=long_s)
    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOGS) as temporary, tempfile.TemporaryDirectory(dir=LOGS) as models:
        own = shutil.copytree(model, Path(models) / model.name)
        play = Play(own, Path(temporary), requests, random.Random(seed))
        try:
            await play.perform(script, seconds)
        except* (TimeoutError, RuntimeError, Gone, OSError) as group:
            for error in group.exceptions:
                play.record.complain(f"the play ends in {play.record.act!r}: {error!r}")
        finally:
            play.lives.kill_all()
        left = left_behind(Path(temporary))
        play.record.check(not left, f"the servers left temporary files behind: {left}")
    return play


class Play:
    """slow: clients who go on while other acts are performed."""

    def __init__(self, model: Path, temporary: Path, requests: GoodRequests, chance: random.Random) -> None:
        self.record = Record()
        self.lives = Lives(model, temporary, self.record)
        self.requests = requests
        self.clients = GoodClients(self.lives, self.record, requests, chance)
        self.slow: list[asyncio.Task[None]] = []
        self.chance = chance

    async def perform(self, script: Sequence[Act], seconds: float) -> None:
        self.lives.start()
        await self.lives.ready()
        record, total = self.record, sum(act.share for act in script)
        async with _crowd(self.clients.watch_health(), *(self.clients.client() for _ in range(CLIENTS))):
            for act in script:
                record.act, record.may_refuse = act.name, act.may_refuse
                self.clients.may_send.set()
                began = time.perf_counter()
                await act.perform(self, seconds * act.share / total)
                await self.rest()
                answers = len(record.latencies_s[act.name])
                say(f"{act.name}: {time.perf_counter() - began:.1f} s, {answers} right answers")
            await self.lives.stop()

    async def rest(self) -> None:
        """Everybody waits until nothing is in flight; then the books must balance."""
        await self.silence()
        found: list[str] = []
        for _ in range(100):  # the server may still be noticing who left
            page = (await ask(self.lives.port, get("/metrics"))).body.decode()
            found = unbalanced(self.lives.last.ledger, page) + still_queued(page)
            if not found:
                break
            await asyncio.sleep(0.1)
        for sentence in found:
            self.record.complain(f"after {self.record.act!r} {sentence}")
        await self._check_footprint()

    async def silence(self) -> None:
        """Nobody sends, and all that were sent are answered."""
        self.clients.may_send.clear()
        async with asyncio.timeout(REST_S):
            while self.clients.in_flight:  # noqa: ASYNC110 - a condition for each client would be no better
                await asyncio.sleep(0.02)

    async def _check_footprint(self) -> None:
        act, life = self.record.act, self.lives.last
        of_slow_clients = sum(not task.done() for task in self.slow)
        for _ in range(30):  # there are connections that are just being closed
            memory_mb, open_files = footprint(life.process.pid)
            open_files -= of_slow_clients
            life.open_files = life.open_files or open_files
            more = open_files - life.open_files
            if more <= MORE_FILES:
                break
            await asyncio.sleep(0.1)
        self.record.check(more <= MORE_FILES, f"after {act!r} {more} more files are open than at first")
        first, before = next(iter(life.memory_mb.values()), memory_mb), life.memory_mb.get(act)
        bound = OVER_FIRST * first + OVER_MB if before is None else OVER_BEFORE * before + OVER_MB
        self.record.check(
            memory_mb < bound,
            f"after {act!r} the server holds {memory_mb:.0f} MB; the bound is {bound:.0f} MB",
        )
        life.memory_mb.setdefault(act, memory_mb)
        self.record.at_rest.append(AtRest(act, memory_mb, open_files))


def left_behind(temporary: Path) -> list[str]:
    return sorted(path.name for path in temporary.iterdir() if not path.match(OF_WORKERS))


@asynccontextmanager
async def _crowd(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Tasks that go on until the end; what they raise is raised."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()
