"""Several workers in, each kept serving: started, watched, replaced and ended, and waited for by nobody.

    starting ──first beat──► serving ──told to end──► gone
       │ none in START_S        │ none in HANG_S         │ not within end_s
       └────────► killed ◄──────┴────────────────────────┘

    a worker dies   the next one starts at once, or after 1, 2, 4 … 60 s if those before it died young
    SIGHUP          a new worker beside each old one, in turn; the old one is told to end when the new one is
                    ready. If that cannot be, the old ones stay.
    SIGTERM         the port is closed, all are told to end

A beat is a worker's message once a second (serving.py): why it is not ready, or nothing. One loop reads them,
looks who has ended, and hears signals; nothing in it blocks, whatever a worker does.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from service.process import signals
from service.process.serving import work
from service.process.workers import MetricsFolder

log = logging.getLogger(__name__)

START_S = 600.0  # TensorRT builds its engines within some minutes
HANG_S = 30.0  # a busy machine may swap, or a worker be in one long call
HANG_AT_THE_END_S = 10.0
YOUNG_S = 60.0
MAX_PAUSE_S = 60.0
LOOK_S = 0.5
AGAIN_S = 30.0  # until what failed because of the disk or a model is tried again

_spawn = multiprocessing.get_context("spawn")


class Worker:
    """One process, as the supervisor sees it. Raises OSError where it cannot be started.

    not_ready: what it said last, "" once it is ready; None until its first beat
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        self._beats, its_end = _spawn.Pipe(duplex=False)
        with its_end:
            self.process = _spawn.Process(target=work, args=(config, sockets, its_end), daemon=True)
            try:
                self.process.start()
            except OSError:
                self._beats.close()
                raise
        self.born = self._heard = time.monotonic()
        self.not_ready: str | None = None
        self._must_end_by = math.inf

    @property
    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    @property
    def sources(self) -> tuple[int, Connection]:
        """What becomes readable when there is something to look at."""
        return self.process.sentinel, self._beats

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.born

    def listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while self._beats.poll():
                self.not_ready = self._beats.recv_bytes().decode(errors="replace")
                self._heard = time.monotonic()

    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    def tell_to_end(self, number: int, *, within_s: float) -> None:
        self._must_end_by = min(self._must_end_by, time.monotonic() + within_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def fault(self, *, start_s: float, hang_s: float) -> str | None:
        """Why it must be killed."""
        silent_s = time.monotonic() - self._heard
        if time.monotonic() > self._must_end_by:
            return "does not end"
        if self.not_ready is None:
            return f"has not started within {start_s:g} s" if silent_s > start_s else None
        return f"hangs: nothing was heard of it for {silent_s:.0f} s" if silent_s > hang_s else None

    def kill(self) -> None:
        self.process.kill()
        self._heard = self._must_end_by = math.inf  # once is enough

    def forget(self) -> None:
        """It has ended."""
        self._beats.close()
        self.process.close()

    def last_words(self) -> str:
        """How it ended, and what it said before."""
        code = self.process.exitcode
        assert code is not None
        how = f"exit code {code}" if code >= 0 else _killed_by(-code)
        if self.not_ready is None:
            return f"{how}, before it was ready; the lines above may tell why"
        return f"{how}; it was not ready: {self.not_ready}" if self.not_ready else how


@dataclass
class Place:
    """Where one worker is to be at all times. successor: takes the worker's place when it is ready.

    died_young: how many, one after the other; start_at: when the next one may start
    """

    worker: Worker | None = None
    successor: Worker | None = None
    died_young: int = 0
    start_at: float = 0.0

    def lose(self, age_s: float) -> float:
        """The worker lived so long. Returns after how many seconds the next one may start."""
        self.worker = None
        self.died_young = self.died_young + 1 if age_s < YOUNG_S else 0
        pause_s = min(2.0 ** (self.died_young - 1), MAX_PAUSE_S) if self.died_young else 0.0
        self.start_at = time.monotonic() + pause_s
        return pause_s


class Supervisor:
    """config: how many, and of what; end_s: in which a worker has ended that was told to. Hears signals from
    here on, so that it must be made in the main thread."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        *,
        end_s: float,
        start_s: float = START_S,
        hang_s: float = HANG_S,
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._end_s, self._start_s, self._hang_s = end_s, start_s, hang_s
        self._places = [Place() for _ in range(config.workers)]
        self._leaving: list[Worker] = []
        self._restarting: list[Place] = []
        self._is_restarting = self._is_ending = self._has_served = self._has_failed = False
        self._folder_made_at = self._restart_again_at = self._look_for_folder_at = 0.0
        self._signals = _heard_at_a_socket()

    def run(self, folder: MetricsFolder) -> int:
        """Until a signal comes. folder: where the workers count. Returns the exit code."""
        log.info("the supervisor %d starts %d workers", os.getpid(), len(self._places))
        while not self._is_ending or any(self._workers()):
            if not self._is_ending:
                self._keep(folder)
                self._fill_the_places()
                self._go_on_restarting()
            wait([self._signals, *(each for worker in self._workers() for each in worker.sources)], LOOK_S)
            self._obey()
            for worker in self._workers():
                worker.listen()
                self._has_served |= worker.not_ready is not None
            self._bury_the_dead()
            self._kill_the_faulty()
        log.info("the supervisor %d ends", os.getpid())
        return STARTUP_FAILURE if self._has_failed else 0

    def _workers(self) -> Iterator[Worker]:
        for place in self._places:
            yield from (worker for worker in (place.worker, place.successor) if worker)
        yield from [*self._leaving]

    def _obey(self) -> None:
        """The signals that have come."""
        with contextlib.suppress(BlockingIOError):
            for number in self._signals.recv(64):
                if number == signals.SIGHUP and not signals.has_lost_its_terminal():
                    log.info("SIGHUP: a new worker takes the place of each, one after the other")
                    self._restart()
                else:
                    self._end(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def _end(self, number: int) -> None:
        """All of them, which a second signal spares the wait for further requests."""
        log.info("%s: the workers end", signal.Signals(number).name)
        self._is_ending = True
        for worker in self._workers():
            worker.tell_to_end(number, within_s=self._end_s)
        # As long as the port was open here, connections would be taken that nobody answers.
        for sock in self._sockets:
            sock.close()

    def _bury_the_dead(self) -> None:
        for worker in [*self._leaving]:
            if worker.has_ended():
                self._leaving.remove(worker)
                worker.forget()
        for place in self._places:
            if place.successor and place.successor.has_ended():
                lost, place.successor = place.successor, None
                self._give_up_restarting(f"the new worker {lost.pid} has died: {lost.last_words()}")
                if place.worker:
                    lost.forget()
                else:
                    self._lose(place, lost)
            if place.worker and place.worker.has_ended():
                self._lose(place, place.worker)

    def _lose(self, place: Place, lost: Worker) -> None:
        pause_s = place.lose(lost.age_s)
        if self._is_ending:
            pass
        elif lost.process.exitcode == STARTUP_FAILURE and not self._has_served:
            log.error("the worker %d could not start, and none has served yet: the server ends", lost.pid)
            self._has_failed = True
            self._end(signal.SIGTERM)
        else:
            log.error(
                "the worker %d has died after %.1f s: %s. The next one starts %s",
                lost.pid,
                lost.age_s,
                lost.last_words(),
                f"in {pause_s:g} s: {place.died_young} died young" if pause_s else "now",
            )
        lost.forget()

    def _kill_the_faulty(self) -> None:
        hang_s = min(self._hang_s, HANG_AT_THE_END_S) if self._is_ending else self._hang_s
        for worker in self._workers():
            if fault := worker.fault(start_s=self._start_s, hang_s=hang_s):
                log.error("the worker %d %s; it is killed", worker.pid, fault)
                worker.kill()

    def _fill_the_places(self) -> None:
        for place in self._places:
            if place.worker or place.successor or time.monotonic() < place.start_at:
                continue
            try:
                place.worker = Worker(self._config, self._sockets)
            except OSError as error:
                pause_s = place.lose(0.0)
                log.error("no worker can be started, the next try is in %g s: %s", pause_s, error)

    def _restart(self) -> None:
        """All places, beginning with one whose new worker is already there."""
        self._is_restarting = True
        self._restarting = sorted(self._places, key=lambda place: place.successor is None)

    def _go_on_restarting(self) -> None:
        """One place at a time, so that there is never more than one worker too many."""
        if self._leaving or not self._is_restarting:
            return
        if not self._restarting:
            log.info("all workers are new")
            self._is_restarting = False
            return
        place = self._restarting[0]
        if place.successor is None:
            try:
                place.successor = Worker(self._config, self._sockets)
            except OSError as error:
                self._give_up_restarting(f"no worker can be started: {error}")
        elif place.successor.not_ready and place.worker:
            self._dismiss(place.successor)
            refused, place.successor = place.successor, None
            self._give_up_restarting(f"the new worker {refused.pid} is not ready: {refused.not_ready}")
        elif place.successor.not_ready is not None:
            if place.worker:
                self._dismiss(place.worker)
            place.worker, place.successor = place.successor, None
            self._restarting.pop(0)

    def _dismiss(self, worker: Worker) -> None:
        worker.tell_to_end(signal.SIGTERM, within_s=self._end_s)
        self._leaving.append(worker)

    def _give_up_restarting(self, reason: str) -> None:
        if not self._is_ending:
            log.error("the restart is given up, the old workers serve on: %s", reason)
        self._is_restarting, self._restarting = False, []

    def _keep(self, folder: MetricsFolder) -> None:
        """Workers who have counted in one that was deleted are replaced."""
        now = time.monotonic()
        if now < self._look_for_folder_at:
            return
        if folder.is_there():
            folder.touch()
        else:
            try:
                folder.make_again()
            except OSError as error:
                log.error("the workers' folder was deleted and cannot be made again yet: %s", error)
                self._look_for_folder_at = now + AGAIN_S
                return
            log.error("the workers' folder was deleted: it is made again, and they are replaced")
            self._folder_made_at, self._restart_again_at = time.monotonic(), 0.0
        is_old = any(worker.born < self._folder_made_at for worker in self._workers())
        if is_old and not self._is_restarting and now >= self._restart_again_at:
            self._restart_again_at = now + AGAIN_S
            self._restart()


def _heard_at_a_socket() -> socket.socket:
    """Where the numbers of the signals that come can be read from now on, a byte each."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    signal.set_wakeup_fd(there.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, *filter(None, [signals.SIGHUP])):
        signal.signal(number, lambda number, frame: None)
    return here


def _killed_by(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
