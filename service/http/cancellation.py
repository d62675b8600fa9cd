"""A request's work in; stopped at its deadline, or when its client leaves."""

import asyncio
from types import TracebackType

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.errors import BadRequest, DeadlineExceeded, shortened

HEADER = "X-Deadline-S"

# From then on a task watches whether the client is still there. Most requests are answered earlier, and a
# task for each of them would take as long as decoding a short clip.
WATCH_AFTER_S = 0.1


def deadline_s(request: Request, longest_s: float) -> float:
    """Seconds that the request may take from the end of its upload: the client's, if the header names some,
    else `longest_s`. Raises BadRequest."""
    asked = request.headers.get(HEADER)
    if asked is None:
        return longest_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= longest_s:  # NaN is refused here too
        raise BadRequest(
            f"{HEADER} is {shortened(asked)!r}; it must be a number of seconds above 0, and at "
            f"most {longest_s:g}"
        )
    return seconds


class CancelScope:
    """`async with CancelScope(receive, deadline_s):` – cancels the work inside at the deadline, or when the
    client leaves, and raises DeadlineExceeded or starlette's ClientDisconnect. The request's body must have
    been read: the next message can only be the disconnect."""

    def __init__(self, receive: Receive, deadline_s: float) -> None:
        self._receive = receive
        self._deadline_s = deadline_s
        self._timeout = asyncio.timeout(deadline_s)
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._later = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin_to_watch)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._later.cancel()
        if self._watcher:
            self._watcher.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            if self._has_left:
                raise ClientDisconnect from late
            raise DeadlineExceeded(
                f"the request was not done within {self._deadline_s:g} s; send less sound, or try again later"
            ) from late

    def _begin_to_watch(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._timeout.expired():  # else the deadline was first
            self._has_left = True
            self._timeout.reschedule(0)  # a moment long past
