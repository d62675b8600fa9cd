"""Single pieces of work from many callers in, batches to one worker thread, each caller's results out.

    place.run([a1 a2 a3]) ─┐   line of places            worker thread
    place.run([b1])       ─┼─► a: a1 a2 a3   ─ take ─►  run_batch([a1, b1])
    place.run([c1])       ─┘   b: b1                    run_batch([c1])       c1 is of another group
                               c: c1                    run_batch([a2, a3])   a had its turn, c went first

It knows nothing of audio, networks or HTTP: it is given a function that works on a batch, and two that tell
an item's cost and group. One asyncio task owns the line and there is no timer: whenever the worker is free it
takes what waits, so that a lone caller waits for nobody and batches form while the worker is busy. It may be
told to hold a batch for those who have arrived and are not in the line yet (`hold_s`), or for a fixed time
(`max_wait_s`). A thread that has an item nobody else competes with runs it itself (`run_here`), which saves
two hops from thread to thread; it and the worker take turns by a lock.

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

from service.crew import Crew
from service.errors import Overloaded, ViolaError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Weight of the newest in what is measured: the mean of about the last ten.
NEWEST = 0.1

# What further rounds, in which requests take a second item and more, may fill of a batch. Whoever comes next
# waits for this batch: a quarter of it is a window of a long clip, which gains nothing from company.
TURN = 0.25

# Batches of newcomers in a row that may go before somebody who was served before and waits longer: with the
# one that stood before him in the line he has a fifth of the turns at least.
PASSED = 3


class Batcher(Generic[Item, Result]):
    """Batches of items of one group, taken in turns from those who wait.

    run_batch: items of one group → as many results, in the worker thread. When it raises, the batch is
        halved until the bad item is alone; a ViolaError is no item's fault, and the answer to all of them.
    cost_of: what an item takes of the budgets, 1 or more.
    group_of: only items of the same group share a batch.
    max_batch_cost, max_batch_items: budget of a batch; an item that is larger goes alone.
    max_queue_cost: budget of all that is admitted; beyond it `admit` raises Overloaded.
    max_queue_s: the same in seconds of work, at the throughput of the last batches.
    max_wait_s: how long a free worker waits for a batch to fill, whoever may come.
    hold_s: how long it waits at most while `is_more_coming`; whoever changes that calls `reconsider`.
    on_wait: told the seconds that each share (what one call of `run` brings) waited for its first batch.
    on_drop: told how many items were thrown away because their caller had gone.
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
        self._line: deque[Place[Item, Result]] = deque()  # those with waiting items, longest unserved first
        self._unanswered: dict[_Share[Item, Result], Place[Item, Result]] = {}  # in the line or in a batch
        self._cost_per_s: float | None = None
        self._passed = 0  # batches in a row that went before the first in the line
        self._closing = False
        self._somebody_left = False
        self._is_holding = False
        self._work_waits = asyncio.Event()
        self._hold_is_over = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._worker = Crew(1, name="viola-model")
        self._turn = threading.Lock()  # whose holder may run a batch
        self._batch_started: float | None = None
        self._started_here: float | None = None
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
        """Seconds that the worker has been in the batch it is in now; 0 when it is free."""
        begun = [at for at in (self._batch_started, self._started_here) if at is not None]
        return time.perf_counter() - min(begun) if begun else 0.0

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

    def admit(self, cost: int) -> "Place[Item, Result]":
        """A place for one request, whose items in flight together cost at most `cost`; it is held while its
        `with` block lasts. Raises Overloaded.

        All or nothing: a request that got its place is never refused later, however often it calls `run`. One
        that is larger than the whole queue gets in when nobody else is there.
        """
        self.check_room(cost)
        return Place(self, cost)

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
        with self.admit(sum(map(self._cost_of, items))) as place:
            return await place.run(items)

    def retry_after_s(self) -> int:
        """Whole seconds until what is admitted now will be done, at the throughput of the last batches."""
        return max(1, math.ceil(self.admitted_cost / self._cost_per_s)) if self._cost_per_s else 1

    def run_here(self, items: list[Item]) -> list[Result] | None:
        """In the caller's thread, at once: the results of items of one group; None where somebody waits or is
        being worked for, where every batch is to wait, or where they fail: then `Place.run` is the way, which
        knows what to do."""
        if self._line or self._closing or self._max_wait_s or not self._turn.acquire(blocking=False):
            return None
        self._started_here = time.perf_counter()
        try:
            results = list(self._run_batch(items))
            return results if len(results) == len(items) else None
        except BaseException:
            log.warning("a batch of %d failed, the worker tries it again", len(items), exc_info=True)
            return None
        finally:
            self._started_here = None
            self._turn.release()

    def enter(self, place: "Place[Item, Result]", share: "_Share[Item, Result]") -> None:
        """Put a share's items behind those of the same place, and the place into the line."""
        self._unanswered[share] = place
        if not place.waiting:
            self._line.append(place)
        for index, item in enumerate(share.items):
            group = place.waiting.setdefault(self._group_of(item), deque())
            group.append(_Waiting(item, self._cost_of(item), share, index))
        self._work_waits.set()
        self.reconsider()

    def reconsider(self) -> None:
        """End the hold of a batch that has nothing more to wait for."""
        if self._is_holding and (self._fills_a_batch() or not (self._max_wait_s or self._is_more_coming())):
            self._hold_is_over.set()

    def forget(self, share: "_Share[Item, Result]") -> None:
        """Nobody waits for its answer any more."""
        del self._unanswered[share]

    def somebody_left(self) -> None:
        """Some of what waits is not wanted any more: it is dropped before the next batch."""
        self._somebody_left = True

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
                await self._run(self._take())  # held by no name: while nobody comes, no item stays here
            except Exception as error:
                log.exception("the batcher failed; whoever waits is told, and it goes on")
                self._end_all(error)

    async def _run(self, batch: "list[_Waiting[Item, Result]]") -> None:
        if not batch:
            return
        items = [each.item for each in batch]
        self._batch_started = started = time.perf_counter()
        try:
            started, outcomes = await self._worker.run(lambda: self._in_turn(items))
        except Exception as error:  # not of run_batch: `_try` lets none through
            outcomes = [error] * len(items)
        finally:
            self._batch_started = None
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

    def _end_all(self, error: Exception) -> None:
        """Everybody who waits gets the error, also those who are in no line just now."""
        now = time.perf_counter()
        for share, place in self._unanswered.items():
            share.settle(0, error, started=now, ended=now)
            place.waiting.clear()
        self._line.clear()
        self._work_waits.clear()

    def _fills_a_batch(self) -> bool:
        waiting = [each for place in self._line for group in place.waiting.values() for each in group]
        return (
            sum(each.cost for each in waiting) >= self._max_batch_cost
            or len(waiting) >= self._max_batch_items
        )

    def _take(self) -> "list[_Waiting[Item, Result]]":
        """The next batch: a group of whoever is first (see `_first_group`), one item of each place in turn.

        Places that have none of this group keep their position, those that were served go to the back.
        Further rounds fill no more than TURN of the batch, so that the many windows of a long clip do not
        hold up a short one that comes meanwhile, and two requests of many items that share no group do not
        alternate in batches of one.
        """
        if self._somebody_left:
            self._forget_those_who_left()
        batch: list[_Waiting[Item, Result]] = []
        cost, budget = 0, float(self._max_batch_cost)
        turn, served, passed_over = self._line, deque[Place[Item, Result]](), deque[Place[Item, Result]]()
        group = self._first_group()
        while turn:
            place = turn.popleft()
            head = place.first_of(group)
            if head is None:
                passed_over.append(place)
            elif batch and (cost + head.cost > budget or len(batch) == self._max_batch_items):
                turn.appendleft(place)
                break
            else:
                batch.append(place.take(group))
                place.is_new = False
                cost += head.cost
                if place.waiting:
                    served.append(place)
            if not turn:
                turn, served = served, turn
                budget = self._max_batch_cost * TURN
        self._line = passed_over + turn + served
        if not self._line:
            self._work_waits.clear()
        return batch

    def _first_group(self) -> Hashable:
        """Of the place that is served next: of those that were never served the one that waits longest, so
        that a short clip waits for the window that is being run and not for another one of the same upload;
        but PASSED batches in a row at most pass by whoever waits longest of all. None where nobody waits.
        """
        if not self._line:
            return None
        first = self._line[0]
        if not first.is_new and self._passed < PASSED:
            first = next((place for place in self._line if place.is_new), first)
        self._passed = 0 if first is self._line[0] else self._passed + 1
        return next(iter(first.waiting))

    def _forget_those_who_left(self) -> None:
        """Drop the items that nobody waits for: the caller was cancelled, or an earlier item of it failed."""
        self._somebody_left = False
        dropped = 0
        for place in self._line:
            dropped += place.forget_the_answered()
        self._line = deque(place for place in self._line if place.waiting)
        if dropped:
            self._on_drop(dropped)

    def _deliver(
        self, batch: "list[_Waiting[Item, Result]]", outcomes: "list[Result | Exception]", started: float
    ) -> None:
        ended = time.perf_counter()
        self._measure(sum(each.cost for each in batch), ended - started)
        for each, outcome in zip(batch, outcomes, strict=True):
            each.share.settle(each.index, outcome, started=started, ended=ended)
            if isinstance(outcome, Exception):
                self._somebody_left = True

    def _measure(self, cost: int, seconds: float) -> None:
        newest = cost / max(seconds, 1e-6)
        self._cost_per_s = (
            newest if self._cost_per_s is None else NEWEST * newest + (1 - NEWEST) * self._cost_per_s
        )

    def _in_turn(self, items: list[Item]) -> "tuple[float, list[Result | Exception]]":
        """When its turn came, and the outcomes."""
        with self._turn:
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


class Place(Generic[Item, Result]):
    """What one admitted request holds. `waited_s` and `ran_s` grow with every share that is done."""

    def __init__(self, batcher: Batcher[Item, Result], cost: int) -> None:
        self.waiting: dict[Hashable, deque[_Waiting[Item, Result]]] = {}  # by group, none of them empty
        self.is_new = True  # until its first item is taken
        self.waited_s = 0.0  # from handing a share in until its first item is taken
        self.ran_s = 0.0  # from there until its last result, other requests' turns between them included
        self._batcher = batcher
        self._cost = cost

    def __enter__(self) -> "Place[Item, Result]":
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
        share = _Share[Item, Result](items)
        self._batcher.enter(self, share)
        try:
            results = await share.answer
            waited_s = share.started - share.entered
            self.waited_s += waited_s
            self.ran_s += share.ended - share.started
        except asyncio.CancelledError:
            self._batcher.somebody_left()
            raise
        finally:
            self._batcher.forget(share)
            del share  # it leads to the error, whose traceback leads here: its items would stay in a cycle
        self._batcher.on_wait(waited_s)
        return results

    def first_of(self, group: Hashable) -> "_Waiting[Item, Result] | None":
        return self.waiting[group][0] if group in self.waiting else None

    def take(self, group: Hashable) -> "_Waiting[Item, Result]":
        """Remove the first item of a group; the place's other groups come before the rest of this one."""
        items = self.waiting.pop(group)
        item = items.popleft()
        if items:
            self.waiting[group] = items
        return item

    def forget_the_answered(self) -> int:
        """Remove the items whose share has its answer; returns how many of them nobody wanted any more."""
        all_items = [each for items in self.waiting.values() for each in items]
        if any(each.share.answer.done() for each in all_items):
            kept = {
                group: deque(each for each in items if not each.share.answer.done())
                for group, items in self.waiting.items()
            }
            self.waiting = {group: items for group, items in kept.items() if items}
        return sum(each.share.answer.cancelled() for each in all_items)


class _Share(Generic[Item, Result]):
    """Items that were handed in together, and the answer that waits for all of them."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.answer: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self.entered = time.perf_counter()
        self.started = math.inf
        self.ended = 0.0
        self._results: dict[int, Result] = {}

    def settle(self, index: int, outcome: Result | Exception, *, started: float, ended: float) -> None:
        """Keep one item's outcome; the answer is given with the last result or the first error."""
        if self.answer.done():
            return
        self.started, self.ended = min(self.started, started), ended
        if isinstance(outcome, Exception):
            self.answer.set_exception(outcome)
            self.answer.exception()  # it counts as seen, even where the caller has just left
            return
        self._results[index] = outcome
        if len(self._results) == len(self.items):
            self.answer.set_result([self._results[index] for index in range(len(self.items))])


class _Waiting(Generic[Item, Result]):
    """One item in the line."""

    __slots__ = ("cost", "index", "item", "share")

    def __init__(self, item: Item, cost: int, share: _Share[Item, Result], index: int) -> None:
        self.item = item
        self.cost = cost
        self.share = share
        self.index = index
