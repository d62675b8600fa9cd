"""What happens to the server, act by act, beside the good clients: a play and seconds in.

load        calm, overload, deadlines, long_upload                       everything_at_once: all of
bad ones    slow_clients (until their end), poison, leaving_clients      them but the slow clients
restarts    rolling_restart, kill, ends_while_it_starts, full_disk
workers     two_workers, then hung_worker, sighup, lost_folder, kill_of_the_supervisor
"""

import asyncio
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from benchmarks.harness.clients import END_OF_HEAD
from benchmarks.harness.connection import Gone
from benchmarks.harness.results import say
from benchmarks.harness.servers import family
from benchmarks.soak import bad_clients
from benchmarks.soak.ledger import LOST_BY_KILL
from benchmarks.soak.lives import LOGS, MAX_AUDIO_S, MAX_BODY_BYTES, Life, workers
from benchmarks.soak.play import Act, Play

OVERLOAD_CLIENTS = 150
SOON_S = 0.05  # less than a long upload takes
PATIENCE_S = 45.0  # with a server that should have hung up on a slow client
ENDS_S = 10.0  # a second, on a machine that has nothing else to do
GIVEN_UP, ALL_NEW = "the restart is given up", "all workers are new"  # the supervisor's words


async def calm(play: Play, seconds: float) -> None:
    await asyncio.sleep(seconds)


async def slow_clients(play: Play, seconds: float) -> None:
    """In the head, in the body, in taking the answer: each is hung up on, while the play goes on."""
    request = play.requests.heavy.request
    begin_of_body = request.index(END_OF_HEAD) + len(END_OF_HEAD)
    works = [
        *(_drip(play, request, 20 + number) for number in range(3)),
        *(_drip(play, request, begin_of_body + 1000 * number) for number in range(3)),
        *(_never_read(play, play.requests.frames.request) for _ in range(2)),
    ]
    play.slow += [asyncio.create_task(work) for work in works]
    await asyncio.sleep(seconds)


async def end_of_the_slow_clients(play: Play, seconds: float) -> None:
    await asyncio.gather(*play.slow)
    play.slow.clear()


async def poison(play: Play, seconds: float) -> None:
    """Each kind at least once, damaged files until the end."""
    until = time.perf_counter() + seconds
    for each in bad_clients.poisons(max_audio_s=MAX_AUDIO_S, max_body_bytes=MAX_BODY_BYTES):
        await _send_poison(play, each)
    await _pipeline_garbage(play)
    for first in count(0, 10):
        for each in bad_clients.damaged_files(range(first, first + 10)):
            await _send_poison(play, each)
        if time.perf_counter() > until:
            return


async def overload(play: Play, seconds: float) -> None:
    """Waves of more than the queue takes: who gets in is answered, the others are refused at once."""
    until = time.perf_counter() + seconds
    answers: list[tuple[int, float]] = []
    while not answers or time.perf_counter() < until:
        await asyncio.gather(*(_overloader(play, answers) for _ in range(OVERLOAD_CLIENTS)))
    admitted = [seconds for status, seconds in answers if status == 200]
    refused = [seconds for status, seconds in answers if status == 503]
    play.record.check(bool(admitted), "in an overload nobody was admitted")
    play.record.check(bool(refused), "an overload was not refused")
    if admitted and refused:
        is_at_once = statistics.median(refused) < statistics.median(admitted)
        play.record.check(is_at_once, "in an overload a refusal took longer than an answer")
    play.record.admitted_s += admitted
    play.record.refused_s += refused


async def deadlines(play: Play, seconds: float) -> None:
    """Long uploads that cannot be done in the time that their header gives them."""
    head, _, body = play.requests.long.request.partition(END_OF_HEAD)
    hasty = head + f"\r\nX-Deadline-S: {SOON_S}".encode() + END_OF_HEAD + body
    until = time.perf_counter() + seconds
    while True:
        answer = await play.clients.ask_alone(replace(play.requests.long, request=hasty), "deadline")
        if answer and answer.status != 503:
            seen = answer.status
            play.record.check(seen == 504, f"a long upload with a deadline of {SOON_S} s is answered {seen}")
        if time.perf_counter() > until:
            return


async def leaving_clients(play: Play, seconds: float) -> None:
    """After the head, in the body, before the answer, by a reset, by closing one side; twenty at a time."""
    until = time.perf_counter() + seconds
    while True:
        await asyncio.gather(*(_leave(play, way) for way in 4 * WAYS_TO_LEAVE))
        if time.perf_counter() > until:
            return


async def long_upload(play: Play, seconds: float) -> None:
    """Minutes of sound beside the short clips, and the frames of half a minute beside them."""
    until = time.perf_counter() + seconds
    while True:
        await asyncio.gather(
            play.clients.ask_alone(play.requests.long, "long"),
            play.clients.ask_alone(play.requests.frames, "frames"),
        )
        if time.perf_counter() > until:
            return


async def everything_at_once(play: Play, seconds: float) -> None:
    await asyncio.gather(
        poison(play, seconds),
        overload(play, seconds),
        deadlines(play, seconds),
        leaving_clients(play, seconds),
        long_upload(play, seconds),
    )


async def rolling_restart(play: Play, seconds: float) -> None:
    """SIGTERM; the next server takes the port as soon as it is free. Nothing accepted is lost."""
    play.clients.expect_100 = True
    await asyncio.sleep(seconds / 2)
    old = play.lives.last
    play.lives.is_up = False
    old.process.send_signal(signal.SIGTERM)
    await play.lives.port_is_free()
    play.lives.start(**old.settings)
    await asyncio.gather(play.lives.ended_well(old), play.lives.ready())
    await asyncio.sleep(seconds / 2)
    play.clients.expect_100 = False


async def kill(play: Play, seconds: float) -> None:
    """SIGKILL, with uploads in temporary files among the load, and a new start."""
    play.clients.expect_100 = True
    uploads = [asyncio.create_task(play.clients.ask_alone(play.requests.long, "long")) for _ in range(2)]
    await asyncio.sleep(seconds / 2)
    with _killing(play) as life:
        life.process.kill()
        life.process.wait()
        play.lives.start()
        await asyncio.gather(play.lives.ready(), *uploads)
    await asyncio.sleep(seconds / 2)


async def two_workers(play: Play, seconds: float) -> None:
    """A server of two processes behind the port; one of them is killed."""
    await _restarted(play, VIOLA_WORKERS="2")
    play.clients.expect_100 = True
    await play.lives.two_workers_are_there()
    play.clients.may_send.set()
    await asyncio.sleep(seconds / 2)
    with _killing(play) as life:
        killed = workers(life.process.pid)[0]
        os.kill(killed, signal.SIGKILL)
        await play.lives.two_workers_are_there(without=killed)
        await play.lives.ready()
    await asyncio.sleep(seconds / 2)


async def hung_worker(play: Play, seconds: float) -> None:
    """One of two stops, then it is killed, as by a machine that has no memory left. Nobody waits for it."""
    play.clients.expect_100 = True
    await asyncio.sleep(seconds / 2)
    hung = workers(play.lives.last.process.pid)[0]
    os.kill(hung, signal.SIGSTOP)
    await asyncio.sleep(1)
    with _killing(play):
        os.kill(hung, signal.SIGKILL)
        await play.lives.two_workers_are_there(without=hung)
        await play.lives.ready()
    await asyncio.sleep(seconds / 2)


async def sighup(play: Play, seconds: float) -> None:
    """New workers beside the old ones, which stay where the new ones' model is torn. Nothing is lost."""
    lives, life = play.lives, play.lives.last
    old = set(workers(life.process.pid))
    with lives.torn_model():
        life.process.send_signal(signal.SIGHUP)
        await lives.log_says(GIVEN_UP, times=lives.said(GIVEN_UP) + 1)
    await asyncio.sleep(seconds / 2)
    left = set(workers(life.process.pid))
    play.record.check(old <= left, "SIGHUP with a torn model ended healthy workers")
    life.process.send_signal(signal.SIGHUP)
    await lives.log_says(ALL_NEW, times=lives.said(ALL_NEW) + 1)
    play.record.check(not old & set(workers(life.process.pid)), "SIGHUP left an old worker")
    await asyncio.sleep(seconds / 2)


async def lost_folder(play: Play, seconds: float) -> None:
    """Somebody deletes the folder that the workers share. Nothing is lost but counts."""
    await asyncio.sleep(seconds / 2)
    with play.lives.lost_folders():
        await play.lives.log_says(ALL_NEW, times=play.lives.said(ALL_NEW) + 1)
        await play.silence()
    play.clients.may_send.set()
    await asyncio.sleep(seconds / 2)


async def full_disk(play: Play, seconds: float) -> None:
    """Two workers, and no room for temporary files: long uploads are refused, and no worker dies."""
    with _small_disk() as disk:
        if disk is None:
            return
        await _restarted(play, VIOLA_WORKERS="2", TMPDIR=str(disk))
        await play.lives.two_workers_are_there()
        before = set(workers(play.lives.last.process.pid))
        with suppress(OSError), (disk / "fill").open("wb", buffering=0) as fill:
            while fill.write(bytes(4096)):
                pass
        play.clients.may_send.set()
        await asyncio.gather(asyncio.sleep(seconds), play.clients.ask_alone(play.requests.long, "long"))
        after = set(workers(play.lives.last.process.pid))
        play.record.check(before == after, "a full disk ended workers")
        (disk / "fill").unlink()
        await _restarted(play)


async def ends_while_it_starts(play: Play, seconds: float) -> None:
    """SIGTERM at any moment before a server serves."""
    until = time.perf_counter() + seconds
    while True:
        process = play.lives.starting()
        await asyncio.sleep(play.chance.uniform(0, 3))
        process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.to_thread(process.wait, ENDS_S)
            play.record.check(code in (0, -signal.SIGTERM), f"a server that was starting ended with {code}")
        except subprocess.TimeoutExpired:
            process.kill()
            play.record.complain(f"a server that was starting did not end within {ENDS_S:g} s of SIGTERM")
        if time.perf_counter() > until:
            return


async def kill_of_the_supervisor(play: Play, seconds: float) -> None:
    """Its workers end with it, so that the next server gets the port."""
    play.clients.expect_100 = True
    await asyncio.sleep(seconds / 2)
    with _killing(play) as life:
        processes = family(life.process.pid)
        life.process.kill()
        life.process.wait()
        await play.lives.are_gone(processes)
        play.lives.start()
        await play.lives.ready()
    await asyncio.sleep(seconds / 2)


# The slow clients go on from their act until their end.
SCRIPT = (
    Act(calm, share=1),
    Act(slow_clients, share=0),
    Act(poison, share=2),
    Act(overload, share=1, may_refuse=True),
    Act(deadlines, share=1),
    Act(leaving_clients, share=1, may_refuse=True),
    Act(long_upload, share=1),
    Act(everything_at_once, share=3, may_refuse=True),
    Act(everything_at_once, share=3, may_refuse=True),
    Act(end_of_the_slow_clients, share=0),
    Act(rolling_restart, share=1),
    Act(kill, share=1),
    Act(two_workers, share=1),
    Act(hung_worker, share=1),
    Act(sighup, share=1),
    Act(lost_folder, share=1),
    Act(rolling_restart, share=1),
    Act(kill_of_the_supervisor, share=1),
    Act(full_disk, share=1, may_refuse=True),
    Act(ends_while_it_starts, share=1),
)
SHORT_SCRIPT = (
    Act(calm, share=1),
    Act(everything_at_once, share=2, may_refuse=True),
    Act(rolling_restart, share=1),
    Act(kill, share=1),
)

WAYS_TO_LEAVE = (
    bad_clients.leaves_after_the_head,
    bad_clients.leaves_in_the_body,
    bad_clients.leaves_before_the_answer,
    bad_clients.resets_before_the_answer,
    bad_clients.half_closes_in_the_body,
)


async def _restarted(play: Play, **settings: str) -> None:
    """Another server, while nobody sends."""
    await play.rest()
    await play.lives.stop()
    play.lives.start(**settings)
    await play.lives.ready()


@contextmanager
def _small_disk() -> Iterator[Path | None]:
    """A disk of its own for temporary files; None where there is nobody who may make one."""
    with tempfile.TemporaryDirectory(dir=LOGS) as folder:
        mounting = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
        try:
            subprocess.run(mounting, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            say("no disk is filled: only root may make one")
            yield None
            return
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def _killing(play: Play) -> Iterator[Life]:
    """The life that is killed. Of its clients those may be lost that wait now, and no others."""
    life, in_flight = play.lives.last, play.clients.in_flight
    play.lives.is_up, play.lives.is_being_killed = False, True
    yield life
    play.lives.is_being_killed = play.clients.expect_100 = False
    lost = life.ledger.outcomes(LOST_BY_KILL)
    play.record.check(lost <= in_flight, f"{lost} were lost by a kill when {in_flight} waited")


async def _send_poison(play: Play, poison: bad_clients.Poison) -> None:
    ledger = play.lives.last.ledger
    try:
        answer = await poison.send(play.lives.port)
    except (TimeoutError, OSError) as error:
        ledger.lost("poison", by_kill=False, complaint=f"{poison.name}: {error!r}")
        return
    counted = {"yes": True, "maybe": None}[poison.counted]
    if answer is None:
        ledger.cut("poison", counted=counted)
    else:
        ledger.answered("poison", answer, counted=counted)
    is_refused = answer is not None and answer.status == 503 and play.record.may_refuse
    complaint = poison.complaint(answer)
    play.record.check(complaint is None or is_refused, f"{complaint}")


async def _pipeline_garbage(play: Play) -> None:
    """The connection is closed with a 400; the good request before it may be answered first."""
    ledger = play.lives.last.ledger
    statuses = await bad_clients.pipelines_garbage(play.lives.port, play.requests.heavy.request)
    allowed: list[list[int]] = [[], [400], [200], [200, 400], [503], [503, 400]]
    play.record.check(statuses in allowed, f"garbage behind a good request is answered {statuses}")
    ledger.left("poison", counted=None)


async def _overloader(play: Play, answers: list[tuple[int, float]]) -> None:
    began = time.perf_counter()
    answer = await play.clients.ask_alone(play.requests.heavy, "overload")
    if answer:
        answers.append((answer.status, time.perf_counter() - began))


async def _leave(play: Play, way: Callable[[int, bytes], Awaitable[object]]) -> None:
    ledger = play.lives.last.ledger
    with suppress(Gone):  # refused before it could leave
        await way(play.lives.port, play.requests.heavy.request)
    ledger.left("leaving")


async def _drip(play: Play, request: bytes, from_byte: int) -> None:
    ledger, has_head = play.lives.last.ledger, END_OF_HEAD in request[:from_byte]
    is_cut = await bad_clients.drips(
        play.lives.port, request, from_byte=from_byte, every_s=0.5, patience_s=PATIENCE_S
    )
    where = "body" if has_head else "head"
    play.record.check(is_cut, f"a client that sends its {where} byte by byte is not hung up on")
    ledger.cut("slow", counted=True if has_head else None)


async def _never_read(play: Play, request: bytes) -> None:
    ledger = play.lives.last.ledger
    answer = await bad_clients.never_reads(play.lives.port, request, patience_s=PATIENCE_S)
    if answer is None:
        ledger.cut("slow", counted=True)
        return
    ledger.answered("slow", answer)
    play.record.check(answer.status != 200, "a client that never reads its answer is not hung up on")
