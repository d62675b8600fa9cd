"""Good requests in, every answer noted in the ledger out: clients that go on through all acts, and the watch.

A client sends a few requests on a connection, then opens the next. The watch asks for the server's health.
"""

import asyncio
import random
import time
from contextlib import suppress

from benchmarks.harness.clients import END_OF_HEAD
from benchmarks.harness.connection import Answer, Connection, Gone, ask, get
from benchmarks.soak.good_requests import GoodRequest, GoodRequests
from benchmarks.soak.lives import Life, Lives
from benchmarks.soak.record import Record

PAUSE_S = 0.02  # at most, between an answer and the next request
COME_BACK_S = 0.25  # where nobody listened
HEALTH_EVERY_S, HEALTH_S = 0.2, 20.0


class GoodClients:
    """may_send: cleared while everybody waits
    in_flight: requests that wait for their answers
    expect_100: all wait for `100 Continue` before they send a body, so that a body is sent only where the
    request is accepted"""

    def __init__(self, lives: Lives, record: Record, requests: GoodRequests, chance: random.Random) -> None:
        self.may_send = asyncio.Event()
        self.in_flight = 0
        self.expect_100 = False
        self._lives = lives
        self._record = record
        self._requests = requests
        self._chance = chance

    async def client(self) -> None:
        """One of them, for ever."""
        while True:
            await self.may_send.wait()
            life = self._lives.last
            try:
                connection = await Connection.open(self._lives.port)
            except OSError:
                self._nobody_listens("good")
                await asyncio.sleep(COME_BACK_S)
                continue
            try:
                while self.may_send.is_set():
                    request = self._chance.choice(self._requests.many)
                    answer = await self._ask(connection, life, request, kind="good")
                    await asyncio.sleep(self._chance.uniform(0, PAUSE_S))
                    is_closed = answer is None or answer.headers.get("connection") == "close"
                    if is_closed or self._chance.random() < 0.2:
                        break
            finally:
                await connection.close()

    async def ask_alone(self, request: GoodRequest, kind: str) -> Answer | None:
        """On a connection of its own; None where there is no answer. kind: of client, in the ledger."""
        life = self._lives.last
        try:
            connection = await Connection.open(self._lives.port)
        except OSError:
            self._nobody_listens(kind)
            return None
        try:
            return await self._ask(connection, life, request, kind=kind)
        finally:
            await connection.close()

    async def watch_health(self) -> None:
        """Live and ready must be 200 whenever a server is up."""
        lives, record = self._lives, self._record
        while True:
            for path in ("/health/live", "/health/ready"):
                was_up, began = lives.is_up, time.perf_counter()
                try:
                    seen = str((await ask(lives.port, get(path), timeout_s=HEALTH_S)).status)
                except (Gone, OSError, TimeoutError) as error:
                    seen = repr(error)
                if was_up and lives.is_up:
                    record.health_s.append(time.perf_counter() - began)
                    record.check(seen == "200", f"{path} says {seen} while a server is up, in {record.act!r}")
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _ask(
        self, connection: Connection, life: Life, request: GoodRequest, *, kind: str
    ) -> Answer | None:
        """The answer, noted; None where there is none."""
        began, act = time.perf_counter(), self._record.act
        waits_for_100 = self.expect_100 or self._chance.random() < 0.3
        self.in_flight += 1
        try:
            answer = await (_ask_politely if waits_for_100 else _ask_at_once)(connection, request.request)
        except (Gone, TimeoutError) as error:
            if isinstance(error, _NotAccepted) and not self._lives.is_up:
                life.ledger.not_accepted(kind)
            else:
                by_kill = self._lives.is_being_killed
                life.ledger.lost(kind, by_kill=by_kill, complaint=f"{error!r} in {act!r}")
            return None
        finally:
            self.in_flight -= 1
        self._note(life, kind, request, answer)
        if answer.status == 200:
            self._record.latencies_s[act].append(time.perf_counter() - began)
        return answer

    def _note(self, life: Life, kind: str, request: GoodRequest, answer: Answer) -> None:
        complaint = request.complaint(answer) if answer.status == 200 else None
        if complaint:
            life.ledger.wrong(kind, complaint)
        else:
            life.ledger.answered(kind, answer)
        allowed = {200, 503} if self._record.may_refuse else {200}
        self._record.check(
            answer.status in allowed or kind == "deadline" or (kind, answer.status) == ("long", 504),
            f"a {kind} request is answered {answer.status} in {self._record.act!r}: {answer.body[:200]!r}",
        )

    def _nobody_listens(self, kind: str) -> None:
        self._lives.last.ledger.not_accepted(kind)
        self._record.check(
            not self._lives.is_up, f"{kind}: nobody listens on the port, in {self._record.act!r}"
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
