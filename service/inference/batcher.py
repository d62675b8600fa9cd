"""Single pieces of work from many callers in, batches to one worker thread, each caller's results out.

    admission.run([a1 a2 a3]) ─┐   queue of admissions       worker thread
    admission.run([b1])       ─┼─► a: a1 a2 a3  ─ batch ─►  run_batch([a1, b1])
    admission.run([c1])       ─┘   b: b1                    run_batch([c1])       c1 is of another group
                                   c: c1                    run_batch([a2, a3])   a was served, c went first

It knows nothing of audio, networks or HTTP: it is given a function that works on a batch, and two that tell
an item's cost and group. One asyncio task owns the queue and there is no timer: whenever the worker is free
it takes what waits, so that a lone caller waits for nobody and batches form while the worker is busy. It may
be told to hold a batch for those who have arrived and are not in the queue yet (`hold_s`), or for a fixed
time (`max_wait_s`). A thread whose item is the only one runs it itself (`run_inline`), which saves two hops
from thread to thread; a lock keeps it and the worker from running at the same time.

The worker cannot fail silently: a batch that raises is split until the culprit is alone, an error of this
file's own ends the requests that were handed in and not the task, and `stuck_s` tells how long the worker has
been in one batch.
"""

import asyncio
import copy
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

from service.errors import Overloaded, ViolaError
from service.inference.thread_pool import ThreadPool

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Of the newest value in an exponential moving average: the mean of about the last ten.
EMA_WEIGHT = 0.1

# How full a batch may become, as a part of its budget, once a request puts a second item into it. Whoever
# comes next waits for this batch, and a quarter of it is a window of a long clip: more would not be faster.
LATER_ROUNDS_BUDGET = 0.25

# Batches in a row that new requests may have before one that waits longer and was served before: with the
# one that stands before it in the queue it has a fifth of all batches at least.
MAX_OVERTAKES = 3


class Batcher(Generic[Item, Result]):
    """Batches of items of one group, taken from all who wait by turns.

    run_batch: items of one group → as many results, in the worker thread. When it raises, the batch is
        halved until the bad item is alone; a ViolaError is no item's fault, and the answer to all of them.
    cost_of: what an item takes of the budgets, 1 or more.
    group_of: only items of the same group share a batch.
    max_batch_cost, max_batch_items: budget of a batch; an item that is larger goes alone.
    max_queue_cost: budget of all that is admitted; beyond it `admit` raises Overloaded.
    max_queue_s: the same in seconds of work, at the throughput of the last batches.
    max_wait_s: how long a free worker waits for a batch to fill, whoever may come.
    hold_s: how long it waits at most while `is_more_coming`; when that changes, call `reconsider`.
    on_wait: called with the seconds that the items of one call of `run` waited for their first batch.
    on_drop: called with the number of items that were dropped because their caller had gone.
    """

    def __init__(
        self,
        run_batch: Callable[[list[Item]], Sequence[Result]],
        *,
        cost_of: Callable[[Item], int],
        group_of: Callable[[Item], Hashable],
        max_batch_cost: int,
        max_batch_items: int,
        max_queue_cost: int,
        max_queue_s: float = math.inf,
        max_wait_s: float = 0.0,
        hold_s: float = 0.0,
        is_more_coming: Callable[[], bool] = lambda: False,
        on_wait: Callable[[float], None] = lambda seconds: None,
        on_drop: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._run_batch = run_batch
        self._cost_of = cost_of
        self._group_of = group_of
        self._max_batch_cost = max_batch_cost
        self._max_batch_items = max_batch_items
        self._max_queue_cost = max_queue_cost
        self._max_queue_s = max_queue_s
        self._max_wait_s = max_wait_s
        self._hold_s = hold_s
        self._is_more_coming = is_more_coming
        self._on_drop = on_drop
        self.on_wait = on_wait

        self.admitted_cost = 0
        self._admitted = 0
        # Those with waiting items; the one that was not served for longest comes first.
        self._queue: deque[Admission[Item, Result]] = deque()
        self._pending: dict[_Call[Item, Result], Admission[Item, Result]] = {}  # queued or in a batch
        self._cost_per_s: float | None = None
        self._alone_per_s: float | None = None
        self._overtakes = 0  # batches in a row that went before the first in the queue
        self._closing = False
        self._has_stale = False
        self._is_holding = False
        self._work_waits = asyncio.Event()
        self._hold_is_over = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._worker = ThreadPool(1, name="viola-model")
        self._run_lock = threading.Lock()  # whoever holds it may run a batch
        # When the worker was given its batch, and when a thread began to run its item itself.
        self._running_since: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work. Must be called in the event loop that will call everything else."""
        self._worker.start()
        self._task = asyncio.get_running_loop().create_task(self._work(), name="batcher")

    @property
    def is_working(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def stuck_s(self) -> float:
        """Seconds since the batch that is being run began; 0 when there is none."""
        now = time.perf_counter()
        return now - min(self._running_since, default=now)

    @property
    def limit_cost(self) -> float:
        """What may be admitted at the same time, by both budgets."""
        limit_s = self._max_queue_s * self._cost_per_s if self._cost_per_s else math.inf
        return min(self._max_queue_cost, limit_s)

    async def drain(self) -> None:
        """Admit nobody else, finish what was admitted, stop."""
        self._closing = True
        await self._idle.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._worker.close()

    def admit(self, cost: int) -> "Admission[Item, Result]":
        """An admission for one request, whose items in flight together cost at most `cost`; it lasts as
        long as its `with` block. Raises Overloaded.

        All or nothing: a request that was admitted is never refused later, however often it calls `run`. One
        that is larger than the whole queue gets in when nobody else is there.
        """
        self.check_room(cost)
        return Admission(self, cost)

    def admit_always(self, cost: int) -> "Admission[Item, Result]":
        """As `admit`, without a look at the budget: for work that was admitted once and comes again and
        again. It takes room only inside its `with`, which may be entered many times."""
        return Admission(self, cost)

    def check_room(self, cost: int = 1) -> None:
        """Raises Overloaded where `admit` would: for asking before the work that tells the cost."""
        if self._closing:
            raise Overloaded("the server is shutting down", retry_after_s=1)
        if not self._admitted:
            return
        if self.admitted_cost + cost > self.limit_cost:
            raise Overloaded("the queue is full, try again later", retry_after_s=self.retry_after_s())

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """Results of `items`, in order, admitted as one request. Raises Overloaded, or an item's error."""
        with self.admit(sum(map(self._cost_of, items))) as admission:
            return await admission.run(items)

    @property
    def cost_per_s(self) -> float | None:
        """The throughput of the last batches, before the first of them that of what ran alone; None before
        both."""
        return self._cost_per_s or self._alone_per_s

    def retry_after_s(self) -> int:
        """Whole seconds until what is admitted now will be done, at the throughput of the last batches."""
        return max(1, math.ceil(self.admitted_cost / self.cost_per_s)) if self.cost_per_s else 1

    def run_inline(self, items: list[Item]) -> list[Result] | None:
        """The results of items of one group, run at once in the caller's thread. None where others wait or
        are being served, where every batch is to wait, or where the run fails: `Admission.run` then does it,
        and finds the item that fails."""
        if self._queue or self._closing or self._max_wait_s or not self._run_lock.acquire(blocking=False):
            return None
        started = time.perf_counter()
        self._running_since.append(started)
        try:
            results = list(self._run_batch(items))
            if len(results) != len(items):
                return None
            # Less than batches reach: the queue is not measured by it.
            cost = sum(map(self._cost_of, items))
            self._alone_per_s = _averaged(self._alone_per_s, cost, time.perf_counter() - started)
            self.on_wait(0.0)
            return results
        except BaseException:
            log.warning("a batch of %d failed, the worker tries it again", len(items), exc_info=True)
            return None
        finally:
            self._running_since.remove(started)
            self._run_lock.release()

    def enqueue(self, admission: "Admission[Item, Result]", call: "_Call[Item, Result]") -> None:
        """Put a call's items behind those of the same admission, and the admission into the queue."""
        self._pending[call] = admission
        if not admission.waiting:
            self._queue.append(admission)
        for index, item in enumerate(call.items):
            group = admission.waiting.setdefault(self._group_of(item), deque())
            group.append(_QueuedItem(item, self._cost_of(item), call, index))
        self._work_waits.set()
        self.reconsider()

    def reconsider(self) -> None:
        """End the hold of a batch that has nothing more to wait for."""
        if self._is_holding and (self._fills_a_batch() or not (self._max_wait_s or self._is_more_coming())):
            self._hold_is_over.set()

    def forget(self, call: "_Call[Item, Result]") -> None:
        """Nobody waits for its results any more."""
        del self._pending[call]

    def note_stale(self) -> None:
        """Some of the queued items are not wanted any more: they are dropped before the next batch."""
        self._has_stale = True

    def join(self, cost: int) -> None:
        self._admitted += 1
        self.admitted_cost += cost
        self._idle.clear()

    def leave(self, cost: int) -> None:
        self._admitted -= 1
        self.admitted_cost -= cost
        if not self._admitted:
            self._idle.set()

    async def _work(self) -> None:
        while True:
            await self._work_waits.wait()
            try:
                await self._wait_for_more()
                await self._run(self._next_batch())  # in no variable, which would keep the items alive
            except Exception as error:
                log.exception("the batcher failed; whoever waits is told, and it goes on")
                self._fail_all(error)

    async def _run(self, batch: "list[_QueuedItem[Item, Result]]") -> None:
        if not batch:
            return
        items = [each.item for each in batch]
        started = handed_in = time.perf_counter()
        self._running_since.append(handed_in)
        try:
            started, outcomes = await self._worker.run(lambda: self._run_locked(items))
        except Exception as error:  # not of run_batch: `_try` lets none through
            outcomes = [error] * len(items)
        finally:
            self._running_since.remove(handed_in)
        self._deliver(batch, outcomes, started)

    async def _wait_for_more(self) -> None:
        wait_s = self._max_wait_s or (self._hold_s if self._is_more_coming() else 0.0)
        if not wait_s or self._fills_a_batch():
            return
        self._is_holding = True
        self._hold_is_over.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._hold_is_over.wait()
        except TimeoutError:
            pass
        finally:
            self._is_holding = False

    def _fail_all(self, error: Exception) -> None:
        """Everybody who waits gets the error, also those whose items are not in the queue just now."""
        now = time.perf_counter()
        for call, admission in self._pending.items():
            call.settle(0, error, started=now, ended=now)
            admission.waiting.clear()
        self._queue.clear()
        self._work_waits.clear()

    def _fills_a_batch(self) -> bool:
        waiting = [
            each for admission in self._queue for group in admission.waiting.values() for each in group
        ]
        return (
            sum(each.cost for each in waiting) >= self._max_batch_cost
            or len(waiting) >= self._max_batch_items
        )

    def _next_batch(self) -> "list[_QueuedItem[Item, Result]]":
        """The next batch: items of the first one's group (`_first_group`), one of each admission per round.

        Admissions that have none of this group keep their position, those that were served go to the back.
        Later rounds fill it no further than LATER_ROUNDS_BUDGET, so that the many windows of a long clip do
        not hold up a short one that comes meanwhile, and two requests of many items that share no group do
        not alternate in batches of one.
        """
        if self._has_stale:
            self._drop_stale()
        batch: list[_QueuedItem[Item, Result]] = []
        cost, budget = 0, float(self._max_batch_cost)
        this_round = self._queue
        next_round: deque[Admission[Item, Result]] = deque()
        passed_over: deque[Admission[Item, Result]] = deque()
        group = self._first_group()
        while this_round:
            admission = this_round.popleft()
            head = admission.first_of(group)
            if head is None:
                passed_over.append(admission)
            elif batch and (cost + head.cost > budget or len(batch) == self._max_batch_items):
                this_round.appendleft(admission)
                break
            else:
                batch.append(admission.take(group))
                admission.is_new = False
                cost += head.cost
                if admission.waiting:
                    next_round.append(admission)
            if not this_round:
                this_round, next_round = next_round, this_round
                budget = self._max_batch_cost * LATER_ROUNDS_BUDGET
        self._queue = passed_over + this_round + next_round
        if not self._queue:
            self._work_waits.clear()
        return batch

    def _first_group(self) -> Hashable:
        """Of the admission that is served next: of those never served the one that waits longest, so that
        a short clip waits for the window that is being run and not for another one of the same upload.
        Whoever waits longest of all is overtaken by MAX_OVERTAKES batches in a row at most. None where nobody
        waits.
        """
        if not self._queue:
            return None
        first = self._queue[0]
        if not first.is_new and self._overtakes < MAX_OVERTAKES:
            first = next((admission for admission in self._queue if admission.is_new), first)
        self._overtakes = 0 if first is self._queue[0] else self._overtakes + 1
        return next(iter(first.waiting))

    def _drop_stale(self) -> None:
        """Drop the items that nobody waits for: the caller was cancelled, or an earlier item of it failed."""
        self._has_stale = False
        dropped = 0
        for admission in self._queue:
            dropped += admission.drop_stale()
        self._queue = deque(admission for admission in self._queue if admission.waiting)
        if dropped:
            self._on_drop(dropped)

    def _deliver(
        self, batch: "list[_QueuedItem[Item, Result]]", outcomes: "list[Result | Exception]", started: float
    ) -> None:
        ended = time.perf_counter()
        self._measure(sum(each.cost for each in batch), ended - started)
        for each, outcome in zip(batch, outcomes, strict=True):
            each.call.settle(each.index, outcome, started=started, ended=ended)
            if isinstance(outcome, Exception):
                self._has_stale = True

    def _measure(self, cost: int, seconds: float) -> None:
        self._cost_per_s = _averaged(self._cost_per_s, cost, seconds)

    def _run_locked(self, items: list[Item]) -> "tuple[float, list[Result | Exception]]":
        """In the worker thread: when it had the lock, and the outcomes."""
        with self._run_lock:
            return time.perf_counter(), self._try(items)

    def _try(self, items: list[Item]) -> "list[Result | Exception]":
        """One outcome per item, whatever happens: no exception leaves the worker thread."""
        try:
            results = self._run_batch(items)
            if len(results) != len(items):
                raise RuntimeError(f"run_batch gave {len(results)} results for {len(items)} items")
            return list(results)
        except ViolaError as error:
            return [copy.copy(error) for _ in items]  # each its own: whoever answers may add to its sentence
        except BaseException as error:
            if len(items) > 1:
                log.warning("a batch of %d failed, its halves are tried", len(items), exc_info=True)
                half = len(items) // 2
                return self._try(items[:half]) + self._try(items[half:])
            # SystemExit and its kind must not end the loop of whoever waits for the answer.
            return [error if isinstance(error, Exception) else RuntimeError(f"run_batch raised {error!r}")]


class Admission(Generic[Item, Result]):
    """What one admitted request holds. `waited_s` and `ran_s` grow with every call of `run`."""

    def __init__(self, batcher: Batcher[Item, Result], cost: int) -> None:
        self.waiting: dict[Hashable, deque[_QueuedItem[Item, Result]]] = {}  # by group, none of them empty
        self.is_new = True  # until its first item is taken
        self.waited_s = 0.0  # from each call of `run` until its first item is run
        self.ran_s = 0.0  # from there until its last result, other requests' batches in between included
        self._batcher = batcher
        self._cost = cost

    def __enter__(self) -> "Admission[Item, Result]":
        self._batcher.join(self._cost)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batcher.leave(self._cost)

    async def run(self, items: Sequence[Item]) -> list[Result]:
        """Results of `items`, in order. Raises what run_batch raised for the first item that failed."""
        if not items:
            return []
        call = _Call[Item, Result](items)
        self._batcher.enqueue(self, call)
        try:
            results = await call.future
            waited_s = call.started - call.entered
            self.waited_s += waited_s
            self.ran_s += call.ended - call.started
        except asyncio.CancelledError:
            self._batcher.note_stale()
            raise
        finally:
            self._batcher.forget(call)
            del call  # it leads to the error, whose traceback leads here: its items would stay in a cycle
        self._batcher.on_wait(waited_s)
        return results

    def first_of(self, group: Hashable) -> "_QueuedItem[Item, Result] | None":
        return self.waiting[group][0] if group in self.waiting else None

    def take(self, group: Hashable) -> "_QueuedItem[Item, Result]":
        """Remove the first item of a group; the admission's other groups come before the rest of this one."""
        items = self.waiting.pop(group)
        item = items.popleft()
        if items:
            self.waiting[group] = items
        return item

    def drop_stale(self) -> int:
        """Remove the items whose call has its answer; returns how many of them nobody wanted any more."""
        all_items = [each for items in self.waiting.values() for each in items]
        if any(each.call.future.done() for each in all_items):
            kept = {
                group: deque(each for each in items if not each.call.future.done())
                for group, items in self.waiting.items()
            }
            self.waiting = {group: items for group, items in kept.items() if items}
        return sum(each.call.future.cancelled() for each in all_items)


class _Call(Generic[Item, Result]):
    """The items of one call of `run`, and the future of all their results."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self.entered = time.perf_counter()
        self.started = math.inf
        self.ended = 0.0
        self._results: dict[int, Result] = {}

    def settle(self, index: int, outcome: Result | Exception, *, started: float, ended: float) -> None:
        """Keep one item's outcome; the future is set with the last result or the first error."""
        if self.future.done():
            return
        self.started, self.ended = min(self.started, started), ended
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
            self.future.exception()  # it counts as seen, even where the caller has just left
            return
        self._results[index] = outcome
        if len(self._results) == len(self.items):
            self.future.set_result([self._results[index] for index in range(len(self.items))])


def _averaged(average: float | None, cost: int, seconds: float) -> float:
    """The throughput of a run, and of those before it with less and less weight."""
    newest = cost / max(seconds, 1e-6)
    return newest if average is None else EMA_WEIGHT * newest + (1 - EMA_WEIGHT) * average


class _QueuedItem(Generic[Item, Result]):
    """One item in the queue."""

    __slots__ = ("call", "cost", "index", "item")

    def __init__(self, item: Item, cost: int, call: _Call[Item, Result], index: int) -> None:
        self.item = item
        self.cost = cost
        self.call = call
        self.index = index
