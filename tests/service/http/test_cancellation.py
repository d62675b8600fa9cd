"""Deadlines and leaving clients, with a `receive` as a server gives it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.errors import BadRequest, DeadlineExceeded
from service.http import cancellation
from service.http.cancellation import CancelScope, deadline_s

Message = MutableMapping[str, Any]


def receive_after(*messages: tuple[float, str]) -> Callable[[], Awaitable[Message]]:
    """A `receive` whose messages come so many seconds after they are asked for."""
    coming = iter(messages)

    async def receive() -> Message:
        seconds, kind = next(coming, (60.0, "http.disconnect"))
        await asyncio.sleep(seconds)
        return {"type": kind}

    return receive


def asking_for(value: str | None) -> Request:
    headers = [] if value is None else [(b"x-deadline-s", value.encode())]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 60), ("60", 60), ("0.25", 0.25), (" 3 ", 3), ("1e1", 10)]
)
def test_the_deadline_is_the_clients_within_the_servers(header: str | None, seconds: float) -> None:
    assert deadline_s(asking_for(header), 60) == seconds


@pytest.mark.parametrize("header", ["0", "-1", "61", "inf", "nan", "soon", "", "1 s", "0x10"])
def test_a_deadline_that_is_none_is_refused_with_a_sentence(header: str) -> None:
    with pytest.raises(
        BadRequest, match=r"X-Deadline-S is '.*'; it must be a number of seconds above 0, and at most 60"
    ):
        deadline_s(asking_for(header), 60)


def test_work_that_is_done_in_time_is_left_alone() -> None:
    async def story() -> None:
        async with CancelScope(receive_after(), 5):
            await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


def test_work_past_its_deadline_is_stopped() -> None:
    async def story() -> None:
        with pytest.raises(DeadlineExceeded, match=r"0.02 s"):
            async with CancelScope(receive_after(), 0.02):
                await asyncio.sleep(5)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(story())


@pytest.mark.parametrize("watch_after_s", [0.0, 0.05])
def test_work_for_a_client_that_has_left_is_stopped(
    watch_after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "WATCH_AFTER_S", watch_after_s)

    async def story() -> None:
        async with asyncio.timeout(2):
            with pytest.raises(ClientDisconnect):
                async with CancelScope(receive_after((0.0, "http.request"), (0.02, "http.disconnect")), 5):
                    await asyncio.sleep(5)

    asyncio.run(story())


def test_an_error_inside_and_a_cancellation_from_outside_pass_through() -> None:
    async def story() -> None:
        with pytest.raises(TimeoutError, match="another"):
            async with CancelScope(receive_after(), 5):
                raise TimeoutError("another")

        async def work() -> None:
            async with CancelScope(receive_after(), 5):
                await asyncio.sleep(5)

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
