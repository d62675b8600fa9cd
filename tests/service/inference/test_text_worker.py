"""Texts of many callers through one thread: turns, room, callers who leave, prompts that are kept."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from service.errors import Overloaded, TextTooLong
from service.inference import text_worker
from service.inference.model import Model
from service.inference.text import TextEncoder
from service.inference.text_worker import TextWorker
from service.process.metrics import Metrics
from tests.service.text_towers import vector_of, write_text_toy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(write_text_toy(tmp_path_factory.mktemp("models") / "toy"), device="cpu")


@pytest.fixture
def encoder(model: Model) -> TextEncoder:
    assert model.text is not None
    model.text.cache.clear()
    return model.text


@asynccontextmanager
async def working(max_wait_s: float = 5) -> AsyncIterator[TextWorker]:
    worker = TextWorker(max_wait_s, Metrics())
    worker.start()
    try:
        yield worker
    finally:
        worker.close()


class Held:
    """An encoder that waits in its first run until it is let go, and counts its runs."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.begun, self.go, self.runs = threading.Event(), threading.Event(), 0
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def embed(self, texts: Any) -> Any:
        self.runs += 1
        self.begun.set()
        assert self.go.wait(10)
        return self._encoder.embed(texts)


def test_texts_keep_their_order_whatever_their_lengths(model: Model, encoder: TextEncoder) -> None:
    texts = [("dog rain " * (i % 5) + "cat")[: 8 * (1 + i % 7)].strip() for i in range(100)]

    async def embed() -> Any:
        async with working() as worker:
            return await worker.embed(model, encoder, texts, texts)

    made = asyncio.run(embed())
    np.testing.assert_allclose(made.vectors, list(map(vector_of, texts)), atol=1e-6)
    assert made.n_tokens == [len(encoder.tokens(each, "it")) for each in texts]
    assert made.ran_s > 0


def test_a_text_that_is_too_long_is_called_by_its_name(model: Model, encoder: TextEncoder) -> None:
    async def embed() -> None:
        async with working() as worker:
            await worker.embed(model, encoder, ["dog", "a " * 50], ["first", "second"])

    with pytest.raises(TextTooLong, match="second has 52 tokens"):
        asyncio.run(embed())


def test_where_too_many_texts_wait_another_request_is_told_to_come_back(
    model: Model, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_worker, "MAX_WAITING_BYTES", 10)
    held: Any = Held(encoder)

    async def embed() -> None:
        async with working() as worker:
            long = ["dog cat rain roof"]  # alone it may bring more
            first = asyncio.create_task(worker.embed(model, held, long, long))
            await asyncio.to_thread(held.begun.wait, 10)
            with pytest.raises(Overloaded, match="too many texts wait"):
                await worker.embed(model, held, ["dog"], ["it"])
            held.go.set()
            await first
            await worker.embed(model, held, ["dog"], ["it"])

    asyncio.run(embed())


def test_whoever_would_wait_too_long_at_the_pace_of_late_is_told_when_to_come_back(
    model: Model, encoder: TextEncoder
) -> None:
    held: Any = Held(encoder)

    async def embed() -> None:
        async with working(max_wait_s=5) as worker:
            worker._s_per_byte = 3.0
            first = asyncio.create_task(worker.embed(model, held, ["dog"], ["it"]))
            await asyncio.to_thread(held.begun.wait, 10)
            with pytest.raises(Overloaded) as refused:
                await worker.embed(model, held, ["cat"], ["it"])
            assert refused.value.retry_after_s == 9
            held.go.set()
            await first
            assert worker._s_per_byte < 3

    asyncio.run(embed())


def test_a_caller_who_leaves_is_heard_of_no_more_and_the_loop_is_free_meanwhile(
    model: Model, encoder: TextEncoder
) -> None:
    held: Any = Held(encoder)
    texts = ["a " * 9] * 100  # several runs

    async def embed() -> None:
        async with working() as worker:
            leaving = asyncio.create_task(worker.embed(model, held, texts, texts))
            await asyncio.to_thread(held.begun.wait, 10)
            await asyncio.sleep(0.01)  # which the loop can do, though the thread is busy
            leaving.cancel()
            held.go.set()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await worker.embed(model, held, ["dog"], ["it"])

    asyncio.run(embed())
    assert held.runs == 2


def test_prompts_are_of_unit_length_and_run_once(model: Model, encoder: TextEncoder) -> None:
    counted: Any = Held(encoder)
    counted.go.set()

    async def embed() -> list[Any]:
        async with working() as worker:
            first = await worker.prompts(model, counted, ["dog", "cat"], ["", ""])
            again = await worker.prompts(model, counted, ["cat", "dog"], ["", ""])
            more = await worker.prompts(model, counted, ["dog", "rain"], ["", ""])
            return [first.vectors, again.vectors, more.vectors, again.ran_s]

    first, again, more, ran_s = asyncio.run(embed())
    expected = vector_of("dog") / np.linalg.norm(vector_of("dog"))
    np.testing.assert_allclose(first[0], expected, atol=1e-6)
    np.testing.assert_array_equal(again, first[::-1])
    np.testing.assert_array_equal(more[0], first[0])
    assert counted.runs == 2
    assert ran_s == 0


def test_of_prompts_the_latest_are_kept(
    model: Model, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_worker, "KEPT", 2)

    async def embed() -> None:
        async with working() as worker:
            for prompts in (["dog", "cat"], ["dog"], ["rain"]):
                await worker.prompts(model, encoder, prompts, prompts)
            made = await worker.prompts(model, encoder, ["dog", "cat", "rain", "roof"], [""] * 4)
            assert len(made.vectors) == 4

    asyncio.run(embed())
    assert len(encoder.cache) == 2
