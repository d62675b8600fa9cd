"""Single faults against a real server process: what a bad client gets, and what it cannot take away.

The same together and under load is `python -m benchmarks.soak`.
"""

import asyncio
import base64
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness import sounds
from benchmarks.harness.clients import END_OF_HEAD, HOST
from benchmarks.harness.connection import Answer, Connection, Gone, ask, get, post
from benchmarks.harness.servers import ROOT, Running, running, viola
from benchmarks.harness.sounds import FIXTURES
from benchmarks.soak import bad_clients

MODEL = ROOT / "models" / "byola"
MAX_AUDIO_S, MAX_BODY_BYTES = 60, 1_000_000
DEADLINE_S = 60


def settings(**changes: object) -> dict[str, str]:
    limits = {
        "MAX_AUDIO_S": MAX_AUDIO_S,
        "MAX_BODY_BYTES": MAX_BODY_BYTES,
        "DEADLINE_S": DEADLINE_S,
        "UPLOAD_TIMEOUT_S": 1,
        "DRAIN_S": 0,
    }
    return {f"VIOLA_{name}": str(value) for name, value in (limits | changes).items()}


@contextmanager
def serving(environment: Mapping[str, str] | None = None, **changes: object) -> Iterator[Running]:
    server = viola(MODEL, "auto", max_queue_s="30")
    own = server.environment | settings(**changes) | dict(environment or {})
    with running(replace(server, name=f"faults of {os.getpid()}", environment=own)) as up:
        yield up


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as up:
        yield up


def answers_to(port: int, *requests: bytes) -> list[Answer]:
    """Of requests that are sent at the same time, each on a connection of its own."""

    async def ask_all() -> list[Answer]:
        return await asyncio.gather(*(ask(port, request) for request in requests))

    return asyncio.run(ask_all())


def counts(port: int) -> Counter[str]:
    """From /metrics: the requests of clients by status, and `dropped` and `queued`."""
    (answer,) = answers_to(port, get("/metrics"))
    found = Counter[str]()
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            if sample.name == "viola_requests_total" and sample.labels["route"] == "/embed":
                found[sample.labels["code"]] += round(sample.value)
            elif sample.name == "viola_dropped_total":
                found["dropped"] += round(sample.value)
            elif sample.name == "viola_queue_frames":
                found["queued"] += round(sample.value)
    return found


def until(is_true: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def fixture(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def word() -> bytes:
    return post("/embed?encoding=base64", sounds.word(), content_type="audio/wav")


def vector(answer: Answer) -> np.ndarray:
    assert answer.status == 200, answer.body[:300]
    return np.frombuffer(base64.b64decode(answer.json["embedding"]), "<f4")


POISONS: dict[str, Callable[[], Iterable[bad_clients.Poison]]] = {
    "sound": lambda: bad_clients.of_sound(MAX_AUDIO_S),
    "forms": bad_clients.of_forms,
    "parameters": bad_clients.of_parameters,
    "lengths": lambda: bad_clients.of_lengths(MAX_BODY_BYTES),
    "types": bad_clients.of_types,
    "routes": bad_clients.of_routes,
    "http": bad_clients.of_http,
    "damaged files": lambda: bad_clients.damaged_files(range(40)),
}


@pytest.mark.parametrize("kind", POISONS)
def test_poison_is_refused_with_a_sentence_and_the_next_request_is_answered(
    kind: str, server: Running
) -> None:
    async def complaints() -> list[str]:
        poisons = list(POISONS[kind]())
        assert poisons
        answers = [await poison.send(server.port) for poison in poisons]
        return [
            complaint
            for poison, answer in zip(poisons, answers, strict=True)
            if (complaint := poison.complaint(answer))
        ]

    assert asyncio.run(complaints()) == []
    assert answers_to(server.port, word())[0].status == 200


def test_a_refusal_reaches_a_client_that_sends_all_of_its_body_first(server: Running) -> None:
    body = bytes(8 * MAX_BODY_BYTES)
    (answer,) = answers_to(server.port, post("/embed", body, content_type="audio/wav"))
    assert (answer.status, answer.error) == (413, "body_too_large")


def test_requests_sent_ahead_are_answered_in_order(server: Running) -> None:
    names = ("keyword_yes_16k_mono_pcm16.wav", "speech_16k_mono.flac", "click_10ms_16k_mono.wav")
    requests = [post("/embed?encoding=base64", fixture(name), content_type="audio/wav") for name in names]

    async def durations() -> list[float]:
        connection = await Connection.open(server.port)
        await connection.send(b"".join(requests))
        found = [(await connection.answer()).json["duration_s"] for _ in requests]
        await connection.close()
        return found

    assert asyncio.run(durations()) == [1.0, 5.0, 0.01]


def test_garbage_behind_a_request_ends_the_connection(server: Running) -> None:
    statuses = asyncio.run(bad_clients.pipelines_garbage(server.port, word()))
    assert statuses in ([], [400], [200], [200, 400])
    assert answers_to(server.port, word())[0].status == 200


def test_a_body_that_comes_byte_by_byte_is_answered_408(server: Running) -> None:
    request = word()
    begin = request.index(END_OF_HEAD) + len(END_OF_HEAD)

    async def answer() -> Answer:
        connection = await Connection.open(server.port)
        await connection.send(request[:begin])
        for index in range(begin, begin + 15):
            with suppress(Gone):
                await connection.send(request[index : index + 1])
            await asyncio.sleep(0.1)
        try:
            return await connection.answer(timeout_s=30)
        finally:
            await connection.close()

    assert asyncio.run(answer()).status == 408


def test_a_body_that_ends_early_ends_the_connection(server: Running) -> None:
    assert asyncio.run(bad_clients.half_closes_in_the_body(server.port, word()))


def test_the_deadline_of_the_header_is_answered_504(server: Running) -> None:
    late = post("/embed", fixture("birds_30s_16k_mono.opus"), content_type="audio/ogg", x_deadline_s="0.001")
    in_time = post("/embed", sounds.word(), content_type="audio/wav", x_deadline_s=str(DEADLINE_S))
    answers = answers_to(server.port, late, in_time)
    assert [answer.status for answer in answers] == [504, 200]
    assert answers[0].error == "deadline_exceeded"


def test_who_asks_for_frames_and_who_does_not_are_both_answered(server: Running) -> None:
    """Windows of both are of one length and share batches."""
    birds = fixture("birds_30s_16k_mono.opus")
    plain = post("/embed?encoding=base64", birds, content_type="audio/ogg")
    (alone,) = map(vector, answers_to(server.port, plain))
    with_frames = post("/embed?encoding=base64&frames=true", birds, content_type="audio/ogg")
    together = [vector(answer) for answer in answers_to(server.port, *(4 * [plain, with_frames]))]
    for each in together:
        np.testing.assert_allclose(each, alone, atol=1e-4 * np.abs(alone).max(), rtol=0)


def test_an_embedding_is_the_same_among_poison(server: Running) -> None:
    (alone,) = map(vector, answers_to(server.port, word()))
    bad = [post("/embed", each, content_type="audio/wav") for _, each in invalid()]
    answers = answers_to(server.port, *(4 * [word(), *bad]))
    good = [answer for answer in answers if answer.status == 200]
    assert len(good) == 4
    for each in map(vector, good):
        np.testing.assert_allclose(each, alone, atol=1e-4 * np.abs(alone).max(), rtol=0)
    assert {answer.status for answer in answers} == {200, 422}


def test_the_work_of_clients_that_left_is_dropped_and_counted(server: Running) -> None:
    """Thirty clips of half a minute wait when their clients leave; most were never begun."""
    before = counts(server.port)
    request = post("/embed", fixture("birds_30s_16k_mono.opus"), content_type="audio/ogg")

    async def ask_and_leave() -> None:
        connection = await Connection.open(server.port)
        await connection.send(request)
        await asyncio.sleep(0.3)
        await connection.close()

    async def all_leave() -> None:
        await asyncio.gather(*(ask_and_leave() for _ in range(30)))

    asyncio.run(all_leave())

    def since() -> Counter[str]:
        return counts(server.port) - before

    assert until(lambda: since()["200"] + since()["499"] == 30)
    after = since()
    assert after["499"] > 0
    assert after["dropped"] > 0
    assert until(lambda: counts(server.port)["queued"] == 0)


def test_an_overload_is_refused_with_a_time_to_come_back() -> None:
    """The queue takes four clips of five seconds, and sixty come."""
    speech = post("/embed?encoding=base64", fixture("speech_16k_mono.flac"), content_type="audio/flac")
    with serving(MAX_QUEUE_FRAMES=2000) as up:
        answers = answers_to(up.port, *(60 * [speech]))
        seen = counts(up.port)
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 503}
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.error for answer in refused} == {"overloaded"}
    assert min(int(answer.headers["retry-after"]) for answer in refused) >= 1
    assert (seen["200"], seen["503"], seen["queued"]) == (statuses[200], statuses[503], 0)


def test_a_kill_leaves_neither_temporary_files_nor_the_port_behind(tmp_path: Path) -> None:
    """In the middle of an upload that is too long for the memory."""

    async def kill_in_the_upload(up: Running) -> None:
        connection = await Connection.open(up.port)
        half = post("/embed", bytes(20_000_000), content_type="audio/wav", content_length="40000000")
        await connection.send(half)
        os.kill(up.pid, signal.SIGKILL)
        with pytest.raises(Gone):
            await connection.answer()
        await connection.close()

    with serving({"TMPDIR": str(tmp_path)}, MAX_BODY_BYTES=100_000_000) as up:
        asyncio.run(kill_in_the_upload(up))
    assert list(tmp_path.iterdir()) == []
    with socket.create_server((HOST, up.port)):
        pass


def invalid() -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted((FIXTURES / "invalid").iterdir())]
