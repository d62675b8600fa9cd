"""Functions through a pool of real threads in a real event loop."""

import asyncio
import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable

import pytest

from service.inference.thread_pool import ThreadPool, _Job


def with_crew(story: Callable[[ThreadPool], Awaitable[None]], n_threads: int = 2) -> int:
    """Tell `story` with a running pool; returns how many functions it dropped."""
    dropped: list[int] = []

    async def tell() -> None:
        pool = ThreadPool(n_threads, name="pool", on_drop=dropped.append)
        pool.start()
        await asyncio.wait_for(story(pool), 10)
        pool.close()

    asyncio.run(tell())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pool")]
    return sum(dropped)


def test_results_come_back_to_whoever_asked() -> None:
    async def story(pool: ThreadPool) -> None:
        squares = await asyncio.gather(*(pool.run(lambda i=i: i * i) for i in range(500)))  # type: ignore[misc]
        assert squares == [i * i for i in range(500)]

    assert with_crew(story) == 0


def test_functions_run_side_by_side_in_other_threads() -> None:
    async def story(pool: ThreadPool) -> None:
        both = threading.Barrier(2)  # a single thread would wait here for ever
        names = await asyncio.gather(*(pool.run(lambda: (both.wait(5), threading.current_thread().name)[1])
                                       for _ in range(2)))  # fmt: skip
        assert sorted(names) == ["pool-0", "pool-1"]

    with_crew(story)


def test_the_thread_that_worked_last_goes_on() -> None:
    async def story(pool: ThreadPool) -> None:
        def name() -> str:
            return threading.current_thread().name

        def wait_for_all() -> str:
            everybody.wait(5)
            return name()

        everybody = threading.Barrier(4)
        names = await asyncio.gather(*(pool.run(wait_for_all) for _ in range(4)))
        assert sorted(names) == ["pool-0", "pool-1", "pool-2", "pool-3"]
        wait_until_all_are_idle(pool)
        last = await pool.run(name)
        for _ in range(20):
            wait_until_all_are_idle(pool)
            assert await pool.run(name) == last

    with_crew(story, n_threads=4)


def wait_until_all_are_idle(pool: ThreadPool) -> None:
    while len(pool._idle) < pool._n_threads:
        time.sleep(0.001)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_reaches_the_caller_and_ends_no_thread(error: BaseException) -> None:
    async def story(pool: ThreadPool) -> None:
        def fail() -> None:
            raise error

        for _ in range(3):
            with pytest.raises((ValueError, RuntimeError)):
                await pool.run(fail)
        assert await pool.run(lambda: "well") == "well"

    with_crew(story, n_threads=1)


def test_a_function_whose_caller_has_gone_is_dropped_before_it_begins() -> None:
    ran: list[str] = []

    async def story(pool: ThreadPool) -> None:
        gate = threading.Event()
        busy = asyncio.ensure_future(pool.run(lambda: gate.wait(5)))
        gone = asyncio.ensure_future(pool.run(lambda: ran.append("gone")))
        stays = asyncio.ensure_future(pool.run(lambda: ran.append("stays")))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.set()
        await asyncio.gather(busy, stays)

    assert with_crew(story, n_threads=1) == 1
    assert ran == ["stays"]


def test_a_caller_that_is_cancelled_stays_until_its_function_has_ended() -> None:
    async def story(pool: ThreadPool) -> None:
        ended: list[float] = []
        begun = threading.Event()

        def work() -> None:
            begun.set()
            time.sleep(0.1)
            ended.append(1)

        task = asyncio.ensure_future(pool.run(work))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended

    assert with_crew(story) == 0


def test_a_caller_that_is_cancelled_twice_still_stays_until_its_function_has_ended() -> None:
    async def story(pool: ThreadPool) -> None:
        begun, gate, ended = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            gate.wait(5)
            ended.set()

        task = asyncio.ensure_future(pool.run(work))
        await asyncio.to_thread(begun.wait, 5)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    assert with_crew(story) == 0


def test_a_drop_that_only_the_thread_notices_is_counted_too() -> None:
    async def story(pool: ThreadPool) -> None:
        job = _Job(lambda: None, asyncio.get_running_loop().create_future())
        job.is_unwanted = job.answer.cancel()  # just now, and its caller has seen that it had begun
        pool._hand_out(job)
        assert await pool.run(lambda: "well") == "well"

    assert with_crew(story, n_threads=1) == 1


class Clip:
    """Something that shall not stay in memory."""

    def fail(self) -> None:
        raise ValueError("no")

    def wait(self, gate: threading.Event) -> None:
        gate.wait(5)


def test_a_function_that_fails_leaves_nothing_for_the_garbage_collector() -> None:
    async def story(pool: ThreadPool) -> None:
        left = []
        for _ in range(5):
            clip = Clip()
            left.append(weakref.ref(clip))
            with pytest.raises(ValueError, match="no"):
                await pool.run(clip.fail)
            del clip
        await pool.run(lambda: None)  # by now the thread has laid down what it has had in hand
        assert [ref() for ref in left] == [None] * 5

    gc.disable()
    try:
        with_crew(story, n_threads=1)
    finally:
        gc.enable()


def test_a_thread_that_is_ended_from_outside_is_replaced() -> None:
    async def story(pool: ThreadPool) -> None:
        first = pool._threads[0]
        assert first.ident
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(first.ident), ctypes.py_object(SystemExit))
        # Whatever it is woken with meets the exception, and may be lost with it.
        asyncio.ensure_future(pool.run(lambda: None)).add_done_callback(lambda task: task.exception())
        await asyncio.to_thread(first.join, 5)
        assert not first.is_alive()
        assert await pool.run(lambda: "well") == "well"

    with_crew(story, n_threads=1)


def test_closing_runs_what_was_handed_in() -> None:
    ran: list[int] = []

    async def story(pool: ThreadPool) -> None:
        tasks = [asyncio.ensure_future(pool.run(lambda i=i: ran.append(i))) for i in range(20)]  # type: ignore[misc]
        await asyncio.sleep(0)
        pool.close()
        await asyncio.gather(*tasks)
        pool._threads.clear()

    with_crew(story)
    assert sorted(ran) == list(range(20))
