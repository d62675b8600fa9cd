"""From a signal to the end: what happens at once, and what after the delay."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.http.drain import DrainingProtocol, draining


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """The signals that the handlers which were there before were called with."""
    ended: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: ended.append(number))
    yield ended
    for number, handler in before.items():
        signal.signal(number, handler)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - uvicorn has no event to wait for
        await asyncio.sleep(0.01)


def signalled(*signals: int, delay_s: float, ended: list[int]) -> tuple[list[int], float]:
    """(what had ended at once, seconds until all of them had)"""

    async def go() -> tuple[list[int], float]:
        begun: list[int] = []
        with draining(lambda: begun.append(1), delay_s=delay_s):
            started = time.monotonic()
            for number in signals:
                os.kill(os.getpid(), number)
            await asyncio.sleep(0)
            assert len(begun) == len(signals)
            at_once = list(ended)
            await until(lambda: len(ended) == len(signals))
            return at_once, time.monotonic() - started

    return asyncio.run(go())


def test_a_sigterm_is_handed_on_after_the_delay(ended: list[int]) -> None:
    at_once, seconds = signalled(signal.SIGTERM, delay_s=0.2, ended=ended)
    assert at_once == []
    assert seconds >= 0.2


def test_without_delay_it_is_handed_on_at_once(ended: list[int]) -> None:
    assert signalled(signal.SIGTERM, delay_s=0, ended=ended)[0] == [signal.SIGTERM]


def test_ctrl_c_does_not_wait(ended: list[int]) -> None:
    assert signalled(signal.SIGINT, delay_s=60, ended=ended)[0] == [signal.SIGINT]


def test_a_second_signal_does_not_wait(ended: list[int]) -> None:
    at_once, _ = signalled(signal.SIGTERM, signal.SIGTERM, delay_s=0.2, ended=ended)
    assert at_once == [signal.SIGTERM]


def test_the_handlers_that_were_there_come_back(ended: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def go() -> None:
        with draining(lambda: None, delay_s=1):
            assert signal.getsignal(signal.SIGTERM) is not before

    asyncio.run(go())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_connection_taken_just_before_the_port_closes_is_answered() -> None:
    """Its request comes when the server is already shutting down."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body"})

    async def go() -> bytes:
        config = uvicorn.Config(
            app, port=0, http=DrainingProtocol, lifespan="off", log_config=None, timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve())  # without its handlers of signals
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: bool(server.server_state.connections))
        server.should_exit = True
        await until(lambda: not server.servers[0].is_serving())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await serving
        return answer

    answer = asyncio.run(go())
    assert answer.startswith(b"HTTP/1.1 204")
