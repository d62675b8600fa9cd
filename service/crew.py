"""Functions in, their results back in the event loop: a few threads that work for it.

    event loop   run(f) ─► jobs ─┐                        ┌─► deliver: every result that is there by now
    threads                      └─► f() ─► ended, wake ──┘

What ThreadPoolExecutor and asyncio do together takes four futures and a wake-up of the loop for each call,
which costs about a third of what a short clip's decoding costs. Here it is one future, and one wake-up for
all results that come while the loop is busy.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Crew:
    """`start` it in the event loop whose functions it runs, `close` it at the end.

    on_drop: told how many functions were dropped before they began, because their caller had gone.
    """

    def __init__(
        self, n_threads: int, *, name: str, on_drop: Callable[[int], None] = lambda count: None
    ) -> None:
        self._n_threads = n_threads
        self._name = name
        self._on_drop = on_drop
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._ended: deque[_Job[Any]] = deque()
        self._is_woken = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for _ in range(self._n_threads):
            self._start_thread()

    def close(self) -> None:
        """Every function that was handed in is run, then the threads end."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    async def run(self, function: Callable[[], T]) -> T:
        """The function's result. A caller that is cancelled stays until a function that has begun has ended,
        because it may read what the caller will close; one that has not begun is dropped."""
        job = _Job(function, self._loop.create_future())
        self._jobs.put(job)
        try:
            return await job.answer
        except asyncio.CancelledError:
            # The thread sets has_begun and then looks at is_unwanted; here it is the other way round, so
            # that one of the two always sees the other.
            job.is_unwanted = True
            if not job.has_begun:
                self._on_drop(1)
            elif not job.has_ended:
                job.answer = self._loop.create_future()
                with contextlib.suppress(Exception):
                    await job.answer
            raise

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        """What a thread does. No exception of a function ends it; whatever else may is logged, and another
        thread takes its place."""
        try:
            while (job := self._jobs.get()) is not None:
                job.do()
                self._hand_back(job)
                del job  # while the thread waits it shall hold no clip
        except BaseException:
            log.critical(
                "the thread %s ended, another one begins", threading.current_thread().name, exc_info=True
            )
            self._threads.remove(threading.current_thread())
            self._start_thread()

    def _hand_back(self, job: "_Job[Any]") -> None:
        self._ended.append(job)
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # first, so that whatever ends from here on wakes the loop again
        while self._ended:
            self._ended.popleft().settle()


class _Job(Generic[T]):
    """A function on its way through a thread, with its outcome."""

    __slots__ = ("answer", "error", "function", "has_begun", "has_ended", "is_unwanted", "result")

    def __init__(self, function: Callable[[], T], answer: "asyncio.Future[T]") -> None:
        self.function = function
        self.answer = answer
        self.has_begun = self.is_unwanted = self.has_ended = False
        self.error: Exception | None = None

    def do(self) -> None:
        """In a thread."""
        self.has_begun = True
        if self.is_unwanted:
            self.error = RuntimeError("it was dropped before it began")
            return
        try:
            self.result = self.function()
        except Exception as error:
            self.error = error
        except BaseException as error:  # SystemExit and its kind must end neither the thread nor the loop
            self.error = RuntimeError(f"a function raised {error!r}")

    def settle(self) -> None:
        """In the event loop."""
        self.has_ended = True
        if self.answer.done():
            return
        if self.error is None:
            self.answer.set_result(self.result)
        else:
            self.answer.set_exception(self.error)
