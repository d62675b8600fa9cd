"""Functions in, their results back in the event loop: a few threads that work for it.

    event loop   run(f) ─► jobs ─┐                        ┌─► deliver: every result that is there by now
    threads                      └─► f() ─► ended, wake ──┘

What ThreadPoolExecutor and asyncio do together takes four futures and a wake-up of the loop for each call,
which costs about a third of what a short clip's decoding costs. Here it is one future, and one wake-up for
all results that come while the loop is busy. Of several idle threads the one that worked last gets the next
function: with all of them in turn a lone clip took a fifth longer, because its inference waited for a core.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class ThreadPool:
    """`start` it in the event loop whose functions it runs, `close` it at the end.

    on_drop: called with the number of functions that were dropped before they began, because their caller
    had gone.
    """

    def __init__(
        self, n_threads: int, *, name: str, on_drop: Callable[[int], None] = lambda count: None
    ) -> None:
        self._n_threads = n_threads
        self._name = name
        self._on_drop = on_drop
        self._jobs: deque[_Job[Any] | None] = deque()  # for which no thread is idle
        self._idle: list[_Inbox] = []  # of the threads that wait, the one that worked last at the end
        self._lock = threading.Lock()  # of these two
        self._ended: deque[_Job[Any]] = deque()
        self._is_wake_up_scheduled = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for _ in range(self._n_threads):
            self._start_thread()

    def close(self) -> None:
        """Every function that was handed in is run, then the threads end."""
        for _ in self._threads:
            self._hand_out(None)
        for thread in self._threads:
            thread.join()

    async def run(self, function: Callable[[], T]) -> T:
        """The function's result. A caller that is cancelled stays until a function that has begun has ended,
        because it may read what the caller will close; one that has not begun is dropped."""
        job = _Job(function, self._loop.create_future())
        self._hand_out(job)
        try:
            return await job.answer
        except asyncio.CancelledError:
            # The thread sets has_begun and then looks at is_unwanted; here it is the other way round, so
            # that one of the two always sees the other.
            job.is_unwanted = True
            while job.has_begun and not job.has_ended:
                job.end = self._loop.create_future()
                with contextlib.suppress(asyncio.CancelledError):  # once more, and it still reads
                    await job.end
            raise
        finally:
            del job  # it leads to the error, whose traceback leads here: the clip would stay in a cycle

    def _hand_out(self, job: "_Job[Any] | None") -> None:
        with self._lock:
            if self._idle:
                self._idle.pop().put(job)
            else:
                self._jobs.append(job)

    def _next(self, inbox: "_Inbox") -> "_Job[Any] | None":
        """In the thread whose inbox this is: waits for a job; None where there will be no more."""
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            self._idle.append(inbox)
        return inbox.get()

    def _clear(self, inbox: "_Inbox") -> None:
        """The thread of this inbox has ended; the jobs in it are for the others."""
        with self._lock:
            if inbox in self._idle:
                self._idle.remove(inbox)
        with contextlib.suppress(Empty):
            while True:
                self._hand_out(inbox.get_nowait())

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        """What a thread does. No exception of a function ends it; whatever else may is logged, and another
        thread takes its place."""
        inbox: _Inbox = SimpleQueue()
        job: _Job[Any] | None = None
        try:
            while (job := self._next(inbox)) is not None:
                job.do()
                self._hand_back(job)
                job = None  # while the thread waits it must not keep a clip alive
        except BaseException:
            log.critical(
                "the thread %s ended, another one begins", threading.current_thread().name, exc_info=True
            )
            if job is not None:
                job.error = RuntimeError("the thread ended")
                self._hand_back(job)
            self._threads.remove(threading.current_thread())
            self._clear(inbox)
            self._start_thread()

    def _hand_back(self, job: "_Job[Any]") -> None:
        self._ended.append(job)
        if not self._is_wake_up_scheduled:
            self._is_wake_up_scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_wake_up_scheduled = False  # first, so that whatever ends from here on wakes the loop again
        while self._ended:
            job = self._ended.popleft()
            job.settle()
            if job.was_dropped:
                self._on_drop(1)


class _Job(Generic[T]):
    """A function on its way through a thread, with its outcome."""

    __slots__ = (
        "answer", "end", "error", "function", "has_begun", "has_ended", "is_unwanted", "result", "was_dropped"
    )  # fmt: skip

    def __init__(self, function: Callable[[], T], answer: "asyncio.Future[T]") -> None:
        self.function = function
        self.answer = answer
        self.end: asyncio.Future[None] | None = None  # of a caller that was cancelled
        self.has_begun = self.is_unwanted = self.has_ended = self.was_dropped = False
        self.error: Exception | None = None

    def do(self) -> None:
        """In a thread."""
        self.has_begun = True
        if self.is_unwanted:
            self.was_dropped = True
            return
        try:
            self.result = self.function()
        except BaseException as error:
            # SystemExit and its kind must end neither the thread nor the loop.
            self.error = (
                error if isinstance(error, Exception) else RuntimeError(f"a function raised {error!r}")
            )
        finally:
            del self  # the traceback of an error leads here: the clip would stay in a cycle

    def settle(self) -> None:
        """In the event loop."""
        self.has_ended = True
        if self.end is not None and not self.end.done():
            self.end.set_result(None)
        if self.answer.done():
            return
        if self.error is None:
            self.answer.set_result(self.result)
        else:
            self.answer.set_exception(self.error)


# Where one thread finds its next job; None ends the thread.
_Inbox = SimpleQueue[_Job[Any] | None]
