"""The batcher with a fake `run_batch` in a real event loop: no audio, no network, no HTTP."""

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import Overloaded, ViolaError
from service.inference.batcher import Batcher, _Call


class Job(NamedTuple):
    """An item: its result is `name` in capitals, unless it is poison."""

    name: str
    cost: int = 1
    group: str = "g"


class Recorder:
    """A `run_batch` that notes its batches, and waits inside the first one until `gate` is opened."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.jobs: list[list[Job]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, jobs: list[Job]) -> list[str]:
        self.batches.append([job.name for job in jobs])
        self.jobs.append(jobs)
        self.entered.set()
        self.gate.wait(5)
        if any("poison" in job.name for job in jobs):
            raise ValueError("cannot work on poison")
        if any("exit" in job.name for job in jobs):
            raise SystemExit(3)
        return [job.name.upper() for job in jobs]


def batcher_for(run_batch: Callable[[list[Job]], list[str]], **changes: Any) -> Batcher[Job, str]:
    budgets = {"max_batch_cost": 100, "max_batch_items": 8, "max_queue_cost": 1000} | changes
    return Batcher(run_batch, cost_of=lambda job: job.cost, group_of=lambda job: job.group, **budgets)


def with_batcher(story: Callable[[Batcher[Job, str], Recorder], Awaitable[None]], **changes: Any) -> Recorder:
    """Tell `story` with a running batcher, and drain it."""
    recorder = Recorder()

    async def tell() -> None:
        batcher = batcher_for(recorder, **changes)
        batcher.start()
        await story(batcher, recorder)
        recorder.gate.set()
        await asyncio.wait_for(batcher.drain(), 5)

    asyncio.run(tell())
    return recorder


async def hold_the_worker(batcher: Batcher[Job, str], recorder: Recorder) -> "asyncio.Task[list[str]]":
    """Occupy the worker with a batch of its own, so that what comes next has to wait."""
    recorder.gate.clear()
    task = asyncio.create_task(batcher.submit([Job("first", group="hold")]))
    await asyncio.to_thread(recorder.entered.wait, 5)
    return task


async def enqueue(batcher: Batcher[Job, str], *requests: list[Job]) -> "list[asyncio.Task[list[str]]]":
    tasks = [asyncio.create_task(batcher.submit(request)) for request in requests]
    await asyncio.sleep(0)  # one turn of the loop: every task is in the queue
    return tasks


def test_a_lone_request_is_answered_at_once_and_in_order() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        assert await batcher.submit([Job("a"), Job("b"), Job("c")]) == ["A", "B", "C"]

    assert with_batcher(story).batches == [["a", "b", "c"]]


def test_what_waits_while_the_worker_is_busy_becomes_one_batch() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        first = await hold_the_worker(batcher, recorder)
        tasks = await enqueue(batcher, [Job("a")], [Job("b")], [Job("c")])
        recorder.gate.set()
        assert await asyncio.gather(*tasks) == [["A"], ["B"], ["C"]]
        await first

    assert with_batcher(story).batches == [["first"], ["a", "b", "c"]]


def test_only_items_of_one_group_share_a_batch() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        tasks = await enqueue(batcher, [Job("a1", group="a")], [Job("b1", group="b")], [Job("a2", group="a")])
        recorder.gate.set()
        await asyncio.gather(*tasks)

    assert with_batcher(story).batches == [["first"], ["a1", "a2"], ["b1"]]


def test_a_batch_keeps_its_budgets_of_cost_and_of_items() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        jobs = [Job("60", 60), Job("40", 40), Job("1", 1), *[Job(f"n{i}") for i in range(9)]]
        tasks = await enqueue(batcher, *[[job] for job in jobs])
        recorder.gate.set()
        await asyncio.gather(*tasks)

    batches = with_batcher(story).batches[1:]
    assert batches == [["60", "40"], ["1", *[f"n{i}" for i in range(7)]], ["n7", "n8"]]


def test_an_item_larger_than_the_budget_goes_alone() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        assert await batcher.submit([Job("huge", 500), Job("tiny")]) == ["HUGE", "TINY"]

    assert with_batcher(story).batches == [["huge"], ["tiny"]]


def test_what_was_admitted_once_comes_again_and_again_however_full_the_queue_is() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        always = batcher.admit_always(3)
        first = await hold_the_worker(batcher, recorder)
        with pytest.raises(Overloaded):
            batcher.admit(10)
        assert batcher.admitted_cost == 1  # it takes no room before it has something to do
        with always:
            running = asyncio.create_task(always.run([Job("a")]))
            await asyncio.sleep(0)
            assert batcher.admitted_cost == 4
            recorder.gate.set()
            assert await running == ["A"]
        assert await first == ["FIRST"]
        with always:
            assert await always.run([Job("b")]) == ["B"]
        assert batcher.admitted_cost == 0

    with_batcher(story, max_queue_cost=5)


def test_requests_of_one_group_take_turns() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        tasks = await enqueue(batcher, [Job(f"a{i}") for i in range(4)], [Job("b0"), Job("b1")], [Job("c0")])
        recorder.gate.set()
        await asyncio.gather(*tasks)

    batches = with_batcher(story, max_batch_items=3).batches
    assert batches == [["first"], ["a0", "b0", "c0"], ["a1", "b1", "a2"], ["a3"]]


def test_the_many_windows_of_a_long_clip_let_short_clips_pass() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        long = [Job(f"w{i}", 10, "long") for i in range(5)]
        tasks = await enqueue(batcher, long, [Job("s0", 1, "short")], [Job("s1", 1, "short")])
        recorder.gate.set()
        await asyncio.gather(*tasks)

    # A quarter of a batch at a time: another may come meanwhile.
    assert with_batcher(story).batches == [["first"], ["w0", "w1"], ["s0", "s1"], ["w2", "w3"], ["w4"]]


def test_a_window_that_is_more_than_a_quarter_of_a_batch_goes_alone() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        tasks = await enqueue(batcher, [Job(f"w{i}", 20, "long") for i in range(3)], [Job("s", 1, "short")])
        recorder.gate.set()
        await asyncio.gather(*tasks)

    assert with_batcher(story).batches == [["first"], ["w0"], ["s"], ["w1"], ["w2"]]


def test_a_newcomer_goes_before_the_next_window_of_a_long_clip() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        first = await hold_the_worker(batcher, recorder)
        (long,) = await enqueue(batcher, [Job(f"w{i}", 100, group="window") for i in range(4)])
        recorder.entered.clear()
        recorder.gate.set()
        while len(recorder.batches) < 2:
            await asyncio.sleep(0)
            recorder.gate.clear()
        (short,) = await enqueue(batcher, [Job("short")])  # while w0 is run, w1 has waited longer
        recorder.gate.set()
        await asyncio.gather(first, long, short)

    batches = with_batcher(story, max_batch_cost=100).batches
    assert batches.index(["short"]) == batches.index(["w0"]) + 1


def test_newcomers_do_not_keep_a_long_clip_waiting_for_ever() -> None:
    batcher = batcher_for(Recorder(), max_batch_cost=100)

    async def take() -> list[str]:
        taken: list[str] = []
        long = batcher.admit(1)
        batcher.enqueue(long, _Call([Job(f"w{i}", 100, group="window") for i in range(3)]))
        taken += [each.item.name for each in batcher._next_batch()]
        for number in range(9):  # there is always one that was never served
            batcher.enqueue(batcher.admit(1), _Call([Job(f"s{number}", 100)]))
            taken += [each.item.name for each in batcher._next_batch()]
        return taken

    assert asyncio.run(take()) == ["w0", "s0", "s1", "s2", "w1", "s3", "s4", "s5", "s6", "w2"]


def test_a_stream_at_full_speed_takes_turns_with_clips() -> None:
    """It comes with its next piece as soon as the one before is done, while eight clips wait."""

    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        first = await hold_the_worker(batcher, recorder)
        always = batcher.admit_always(50)

        async def stream() -> None:
            for number in range(8):
                with always:
                    await always.run([Job(f"piece{number}", 50, "piece")])

        streaming = asyncio.create_task(stream())
        clips = await enqueue(batcher, *([Job(f"clip{number}", 100, "clip")] for number in range(8)))
        recorder.gate.set()
        await asyncio.gather(first, streaming, *clips)

    batches = with_batcher(story, max_batch_cost=100).batches[1:]
    order = [name.rstrip("0123456789") for (name,) in batches]
    assert order.count("clip") == order.count("piece") == 8
    # The clips were there first, and are new: they let one piece of four pass, and none waits longer.
    n_before_last_clip = order[: len(order) - order[::-1].index("clip")].count("piece")
    assert 1 <= n_before_last_clip <= 4
    assert order.index("piece") <= 4


def test_clips_that_never_end_do_not_starve_a_stream() -> None:
    """Three clients send a clip as soon as the one before is answered; a piece waits for those that are there
    when it comes, and is overtaken three times at most."""
    batcher = batcher_for(Recorder(), max_batch_cost=100)

    async def take() -> list[str]:
        taken: list[str] = []
        always = batcher.admit_always(100)
        for _ in range(3):
            batcher.enqueue(batcher.admit(1), _Call([Job("clip", 100)]))
        for _ in range(20):
            if not always.waiting:
                batcher.enqueue(always, _Call([Job("piece", 100, group="piece")]))
            (job,) = batcher._next_batch()
            taken.append(job.item.name)
            if taken[-1] == "clip":
                batcher.enqueue(batcher.admit(1), _Call([Job("clip", 100)]))
        return taken

    taken = asyncio.run(take())
    waits = [len([*gap]) for name, gap in itertools.groupby(taken) if name == "clip"]
    assert taken.count("piece") >= 3
    assert max(waits) <= 3 + 3


def test_two_requests_that_share_no_group_do_not_alternate_in_batches_of_one() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        a, b = ([Job(f"{name}{i}", 5, name) for i in range(8)] for name in "ab")
        tasks = await enqueue(batcher, a, b)
        recorder.gate.set()
        await asyncio.gather(*tasks)

    sizes = [len(batch) for batch in with_batcher(story).batches]
    assert sizes == [1, 5, 5, 3, 3]  # 5 items of 5 are a quarter of the budget of 100


def test_a_batch_is_held_for_those_who_are_coming_and_no_longer() -> None:
    coming = {"b"}

    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        (a,) = await enqueue(batcher, [Job("a")])
        await asyncio.sleep(0.05)
        assert recorder.batches == []
        (b,) = await enqueue(batcher, [Job("b")])
        coming.clear()
        batcher.reconsider()
        async with asyncio.timeout(2):  # far below hold_s
            assert await asyncio.gather(a, b) == [["A"], ["B"]]
            assert await batcher.submit([Job("c")]) == ["C"]  # a lone request waits for nobody

    recorder = with_batcher(story, hold_s=60.0, is_more_coming=lambda: bool(coming))
    assert recorder.batches == [["a", "b"], ["c"]]


def test_a_hold_ends_after_its_time_or_with_a_full_batch() -> None:
    async def in_vain(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        async with asyncio.timeout(2):
            await batcher.submit([Job("a")])

    async def full(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        async with asyncio.timeout(2):
            await asyncio.gather(*await enqueue(batcher, [Job("a")], [Job("b")]))

    assert with_batcher(in_vain, hold_s=0.02, is_more_coming=lambda: True).batches == [["a"]]
    held = with_batcher(full, hold_s=60.0, is_more_coming=lambda: True, max_batch_items=2)
    assert held.batches == [["a", "b"]]


def test_the_items_of_one_request_are_batched_by_their_groups() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        jobs = [Job(f"{'ab'[i % 2]}{i}", group="ab"[i % 2]) for i in range(8)]
        assert await batcher.submit(jobs) == [job.name.upper() for job in jobs]

    assert with_batcher(story).batches == [["a0", "a2", "a4", "a6"], ["b1", "b3", "b5", "b7"]]


def test_while_others_wait_the_groups_of_a_request_take_turns_too() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        mixed = [Job("a0", group="a"), Job("a1", group="a"), Job("b0", group="b")]
        tasks = await enqueue(batcher, mixed, [Job("c0", group="c")], [Job("b1", group="b")])
        recorder.gate.set()
        await asyncio.gather(*tasks)

    assert with_batcher(story).batches == [["first"], ["a0", "a1"], ["c0"], ["b1", "b0"]]


def test_a_request_is_admitted_whole_or_not_at_all() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)  # costs 1
        fits, too_much = await enqueue(batcher, [Job("a", 6)], [Job("b", 2), Job("c", 2)])
        with pytest.raises(Overloaded):
            await too_much
        (exact,) = await enqueue(batcher, [Job("d", 3)])
        recorder.gate.set()
        assert [await fits, await exact] == [["A"], ["D"]]

    recorder = with_batcher(story, max_queue_cost=10)
    assert sorted(name for batch in recorder.batches for name in batch) == ["a", "d", "first"]


def test_an_admitted_request_is_never_refused_later() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        with batcher.admit(4) as admission:
            with batcher.admit(6), pytest.raises(Overloaded), batcher.admit(1):
                pass
            for n in range(5):
                assert await admission.run([Job(f"{n}", 4)]) == [f"{n}"]
        assert batcher.admitted_cost == 0

    with_batcher(story, max_queue_cost=10)


def test_a_request_larger_than_the_queue_is_admitted_when_nobody_else_is() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        assert await batcher.submit([Job("giant", 50)]) == ["GIANT"]

    with_batcher(story, max_queue_cost=10)


def test_overloaded_says_when_to_come_back_from_queue_and_throughput() -> None:
    batcher = batcher_for(Recorder())
    assert batcher.retry_after_s() == 1  # nothing measured yet
    batcher._measure(cost=200, seconds=2.0)
    with batcher.admit(450):
        assert batcher.retry_after_s() == 5  # 450 at 100 a second, rounded up


def test_a_request_that_would_wait_too_long_is_refused() -> None:
    batcher = batcher_for(Recorder(), max_queue_s=3.0)
    with batcher.admit(900):
        pass  # nothing is measured yet: only the cost counts
    batcher._measure(cost=200, seconds=2.0)
    with batcher.admit(900), pytest.raises(Overloaded):  # alone it may take as long as it takes
        batcher.admit(1)
    with batcher.admit(200):
        batcher.check_room(100)
        with pytest.raises(Overloaded):
            batcher.check_room(101)


def test_an_idle_batcher_lets_a_thread_run_its_item_itself() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        assert await asyncio.to_thread(batcher.run_inline, [Job("a")]) == ["A"]
        assert batcher.stuck_s == 0

    assert with_batcher(story).batches == [["a"]]


def test_where_others_are_served_a_thread_leaves_its_item_to_the_worker() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        first = await hold_the_worker(batcher, recorder)
        assert await asyncio.to_thread(batcher.run_inline, [Job("a")]) is None
        recorder.gate.set()
        await first

    assert with_batcher(story).batches == [["first"]]


def test_the_worker_waits_for_the_thread_that_runs_an_item_itself() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        recorder.gate.clear()
        here = asyncio.create_task(asyncio.to_thread(batcher.run_inline, [Job("a")]))
        await asyncio.to_thread(recorder.entered.wait, 5)
        with batcher.admit(1) as admission:
            there = asyncio.create_task(admission.run([Job("b")]))
            await asyncio.sleep(0.05)
            assert recorder.batches == [["a"]]
            assert batcher.stuck_s > 0.04
            recorder.gate.set()
            assert await asyncio.gather(here, there) == [["A"], ["B"]]
        assert admission.waited_s > 0.04  # that was no inference

    assert with_batcher(story).batches == [["a"], ["b"]]


def test_an_item_that_fails_in_its_thread_is_the_workers_to_fail() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        assert await asyncio.to_thread(batcher.run_inline, [Job("poison")]) is None
        with pytest.raises(ValueError, match="poison"):
            await batcher.submit([Job("poison")])
        assert await batcher.submit([Job("b")]) == ["B"]

    assert with_batcher(story).batches == [["poison"], ["poison"], ["b"]]


def test_items_whose_caller_has_gone_are_dropped_before_the_batch_forms() -> None:
    dropped: list[int] = []

    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        gone, stays = await enqueue(batcher, [Job("gone1"), Job("gone2")], [Job("stays")])
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        recorder.gate.set()
        assert await stays == ["STAYS"]

    assert with_batcher(story, on_drop=dropped.append).batches == [["first"], ["stays"]]
    assert dropped == [2]


def test_what_missed_its_deadline_is_not_worked_on() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await batcher.submit([Job("late")])
        recorder.gate.set()
        assert await batcher.submit([Job("next")]) == ["NEXT"]

    assert with_batcher(story).batches == [["first"], ["next"]]


@pytest.mark.filterwarnings("ignore")
def test_a_poison_item_fails_alone() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        good, bad, mixed = await enqueue(
            batcher, [Job("good")], [Job("poison")], [Job("fine"), Job("poison too"), Job("also fine")]
        )
        recorder.gate.set()
        assert await good == ["GOOD"]
        for task in (bad, mixed):
            with pytest.raises(ValueError, match="cannot work on poison"):
                await task

    with_batcher(story)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_raises_is_halved_until_the_culprit_is_alone() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        names = ["a", "b", "c", "d", "e", "poison", "g", "h"]
        tasks = await enqueue(batcher, *[[Job(name)] for name in names])
        recorder.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, ValueError) for answer in answers] == [name == "poison" for name in names]

    batches = with_batcher(story).batches[2:]
    assert batches == [["a", "b", "c", "d"], ["e", "poison", "g", "h"], ["e", "poison"], ["e"], ["poison"],
                       ["g", "h"]]  # fmt: skip


def test_an_error_of_the_batcher_itself_is_told_to_those_who_wait_and_it_goes_on() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        take, batcher._next_batch = batcher._next_batch, lambda: 1 / 0  # type: ignore[method-assign,assignment]
        tasks = await enqueue(batcher, [Job("a")], [Job("b"), Job("c")])
        recorder.gate.set()
        for task in tasks:
            with pytest.raises(ZeroDivisionError):
                await task
        batcher._next_batch = take  # type: ignore[method-assign]
        assert batcher.is_working
        assert await batcher.submit([Job("d")]) == ["D"]

    with_batcher(story)


@pytest.mark.parametrize("step", ["_drop_stale", "_deliver", "_measure"])
def test_an_error_of_the_batcher_is_told_to_those_who_left_the_queue_too(step: str) -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        tasks = await enqueue(batcher, [Job("a"), Job("b", group="b")], [Job("c")])
        works = getattr(batcher, step)
        setattr(batcher, step, lambda *_: 1 / 0)
        batcher.note_stale()
        recorder.gate.set()
        for task in tasks:
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(task, 2)
        setattr(batcher, step, works)
        assert await batcher.submit([Job("d")]) == ["D"]

    with_batcher(story)


def test_an_error_while_a_batch_is_taken_leaves_no_admission_without_an_answer() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        first = await hold_the_worker(batcher, recorder)
        with batcher.admit(2) as early, batcher.admit(2) as late:
            tasks = [
                asyncio.ensure_future(admission.run([Job("a"), Job("b")])) for admission in (early, late)
            ]
            await asyncio.sleep(0)
            first_of, late.first_of = late.first_of, lambda group: 1 / 0  # type: ignore[method-assign,assignment,return-value]
            recorder.gate.set()
            await first
            for task in tasks:
                with pytest.raises(ZeroDivisionError):
                    await asyncio.wait_for(task, 2)
            late.first_of = first_of  # type: ignore[method-assign]
            for admission in (early, late):  # as the other clips of a batch do
                assert await asyncio.wait_for(admission.run([Job("c")]), 2) == ["C"]

    with_batcher(story)


def test_an_error_that_is_no_items_fault_is_the_answer_to_all_without_another_try(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []

    def refuse(jobs: list[Job]) -> list[str]:
        calls.append(len(jobs))
        raise Overloaded("the model failed", retry_after_s=7)

    async def story() -> None:
        batcher = batcher_for(refuse)
        batcher.start()
        answers = await asyncio.gather(
            *await enqueue(batcher, *[[Job("a")] for _ in range(8)]), return_exceptions=True
        )
        assert [(str(each), getattr(each, "retry_after_s", 0)) for each in answers] == (
            [("the model failed", 7)] * 8
        )
        assert all(isinstance(each, ViolaError) for each in answers)
        assert len({id(each) for each in answers}) == 8  # whoever adds to a sentence adds to its own
        await batcher.drain()

    asyncio.run(story())
    assert calls == [8]
    assert not caplog.records


def test_an_item_that_fails_leaves_nothing_for_the_garbage_collector() -> None:
    class Heavy(list[int]):
        """Something that shall not stay in memory."""

    def fail(jobs: list[Any]) -> list[str]:
        raise ValueError("no")

    async def story() -> None:
        batcher: Batcher[Any, str] = Batcher(
            fail,
            cost_of=lambda job: 1,
            group_of=lambda job: 1,
            max_batch_cost=9,
            max_batch_items=9,
            max_queue_cost=9,
        )
        batcher.start()
        left = []
        for _ in range(3):
            item = Heavy()
            left.append(weakref.ref(item))
            with pytest.raises(ValueError, match="no"):
                await batcher.submit([item])
            del item
        await batcher.drain()
        assert [ref() for ref in left] == [None] * 3

    gc.disable()
    try:
        asyncio.run(story())
    finally:
        gc.enable()


def test_the_time_in_one_batch_is_told_while_it_lasts() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        assert batcher.stuck_s == 0
        first = await hold_the_worker(batcher, recorder)
        await asyncio.sleep(0.02)
        assert 0.015 < batcher.stuck_s < 5
        recorder.gate.set()
        await first
        assert batcher.stuck_s == 0

    with_batcher(story)


@pytest.mark.parametrize("name", ["poison", "exit"])
def test_the_worker_survives_every_exception(name: str) -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        for _ in range(3):
            with pytest.raises((ValueError, RuntimeError)):
                await batcher.submit([Job(name)])
        assert await batcher.submit([Job("a")]) == ["A"]

    with_batcher(story)


def test_a_wrong_number_of_results_is_an_error_not_a_shift() -> None:
    async def story() -> None:
        batcher = batcher_for(lambda jobs: [])
        batcher.start()
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await batcher.submit([Job("a")])
        await batcher.drain()

    asyncio.run(story())


def test_draining_finishes_what_was_admitted_and_admits_nobody_else() -> None:
    async def story() -> None:
        recorder = Recorder()
        batcher = batcher_for(recorder)
        batcher.start()
        first = await hold_the_worker(batcher, recorder)
        (waiting,) = await enqueue(batcher, [Job("a")])
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit([Job("late")])
        assert not draining.done()
        recorder.gate.set()
        await draining
        assert [await first, await waiting] == [["FIRST"], ["A"]]

    asyncio.run(story())


def test_an_admission_tells_how_long_it_waited_and_ran() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        await hold_the_worker(batcher, recorder)
        with batcher.admit(1) as admission:
            task = asyncio.create_task(admission.run([Job("a")]))
            await asyncio.sleep(0.02)
            recorder.gate.set()
            await task
            assert admission.waited_s > 0.015
            assert admission.ran_s > 0

    with_batcher(story)


def test_every_call_tells_how_long_it_waited() -> None:
    waits: list[float] = []

    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        with batcher.admit(2) as admission:
            await asyncio.gather(admission.run([Job("a")]), admission.run([Job("b"), Job("c")]))
            assert admission.waited_s == pytest.approx(sum(waits))

    with_batcher(story, on_wait=waits.append)
    assert len(waits) == 2


def test_a_wait_fills_a_batch_and_ends_when_it_is_full() -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        tasks = []
        for name in "ab":
            tasks += await enqueue(batcher, [Job(name)])
        async with asyncio.timeout(2):  # far below max_wait_s: the second request fills the batch
            await asyncio.gather(*tasks)

    assert with_batcher(story, max_wait_s=60.0, max_batch_items=2).batches == [["a", "b"]]


jobs = st.builds(
    Job, st.sampled_from(["ok", "poison"]), st.integers(1, 120), st.sampled_from(["a", "b", "c"])
)


@settings(max_examples=40, deadline=None)
@given(requests=st.lists(st.lists(jobs, min_size=1, max_size=5), min_size=1, max_size=12))
def test_whatever_comes_everyone_is_answered_for_themselves(requests: list[list[Job]]) -> None:
    async def story(batcher: Batcher[Job, str], recorder: Recorder) -> None:
        tasks = await enqueue(batcher, *requests)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for request, answer in zip(requests, answers, strict=True):
            if any(job.name == "poison" for job in request):
                assert isinstance(answer, ValueError)
            else:
                assert answer == ["OK"] * len(request)
        assert batcher.admitted_cost == 0

    recorder = with_batcher(story, max_queue_cost=10_000)
    for batch in recorder.jobs:
        assert len({job.group for job in batch}) == 1
        assert len(batch) <= 8
        assert len(batch) == 1 or sum(job.cost for job in batch) <= 100
