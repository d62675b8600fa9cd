"""Texts from many callers in, their vectors out: one thread of their own, beside those of the sounds.

    embed    texts ─► room? ─► tokens, some texts at a time ─► groups of RUN_TOKENS ─► vectors (n, D)
    prompts  labels in their template ─► kept from before? ──── no ──► embed ─► unit length ─► kept

Between two steps other callers' texts have their turn, and a caller who left is heard of no more. The vectors
of prompts are kept, the latest KEPT of each model: whoever asks for the same labels again does not wait for
them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.errors import Overloaded
from service.inference.batcher import EMA_WEIGHT
from service.inference.model import Model
from service.inference.projection import unit_length
from service.inference.text import TextEncoder, Tokens, groups_of
from service.inference.thread_pool import ThreadPool
from service.process.metrics import Metrics

Array = NDArray[np.float32]

KEPT = 2048  # prompts a model: 4 MB where a vector has 512 numbers
STEP_TEXTS = 16  # taken apart into tokens at a time
MAX_WAITING_BYTES = 100_000  # of texts that wait or are worked on; a caller who is alone may bring more


@dataclass
class TextVectors:
    """vectors: (n, D); n_tokens: of each text, the tokenizer's own marks included; waited_s, ran_s: for the
    thread, and in it."""

    vectors: Array
    n_tokens: list[int] = field(default_factory=list)
    waited_s: float = 0.0
    ran_s: float = 0.0


class TextWorker:
    """`start` it in the event loop, `close` it at the end. max_wait_s: who would wait longer, at the pace
    measured last, is told to come back."""

    def __init__(self, max_wait_s: float, metrics: Metrics) -> None:
        self._max_wait_s = max_wait_s
        self._metrics = metrics
        self._threads = ThreadPool(1, name="viola-text", on_drop=metrics.dropped.inc)
        self._waiting_bytes = 0
        self._s_per_byte = 0.0  # the mean of about the last ten requests

    def start(self) -> None:
        self._threads.start()

    def close(self) -> None:
        self._threads.close()

    async def embed(
        self, model: Model, encoder: TextEncoder, texts: Sequence[str], names: Sequence[str]
    ) -> TextVectors:
        """texts: of the model whose encoder it is; names: of each, for sentences. Raises Overloaded,
        TextTooLong or BadRequest."""
        n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
        self._check_room(n_bytes)
        self._waiting_bytes += n_bytes
        started = time.perf_counter()
        try:
            tokens: list[Tokens] = []
            for start in range(0, len(texts), STEP_TEXTS):
                step = slice(start, start + STEP_TEXTS)
                tokens += await self._threads.run(partial(_tokens, encoder, texts[step], names[step]))
            made = TextVectors(np.empty((len(texts), encoder.embedding_size), np.float32))
            for group in groups_of(tokens):
                rows, ran_s = await self._threads.run(partial(_run, encoder, [tokens[i] for i in group]))
                self._metrics.text_duration.labels(model.card.name).observe(ran_s)
                made.vectors[group] = rows
                made.ran_s += ran_s
        finally:
            self._waiting_bytes -= n_bytes
        newest = made.ran_s / max(1, n_bytes)
        self._s_per_byte += (EMA_WEIGHT if self._s_per_byte else 1.0) * (newest - self._s_per_byte)
        made.n_tokens = list(map(len, tokens))
        made.waited_s = max(0.0, time.perf_counter() - started - made.ran_s)
        return made

    async def prompts(
        self, model: Model, encoder: TextEncoder, prompts: Sequence[str], names: Sequence[str]
    ) -> TextVectors:
        """As `embed`, but of unit length, and from before where they were asked for before; `n_tokens` are
        not told."""
        known, new = {}, {}
        for prompt, name in zip(prompts, names, strict=True):
            if prompt in encoder.cache:
                encoder.cache.move_to_end(prompt)
                known[prompt] = encoder.cache[prompt]
            else:
                new[prompt] = name
        made = TextVectors(np.empty((0, encoder.embedding_size), np.float32))
        if new:
            made = await self.embed(model, encoder, list(new), list(new.values()))
            known |= zip(new, unit_length(made.vectors), strict=True)
            _keep(encoder, {prompt: known[prompt] for prompt in new})
        vectors = np.stack([known[prompt] for prompt in prompts])
        return TextVectors(vectors, waited_s=made.waited_s, ran_s=made.ran_s)

    def _check_room(self, n_bytes: int) -> None:
        """Raises Overloaded."""
        wait_s = self._waiting_bytes * self._s_per_byte
        is_full = self._waiting_bytes + n_bytes > MAX_WAITING_BYTES or wait_s > self._max_wait_s
        if self._waiting_bytes and is_full:
            raise Overloaded(
                "too many texts wait to be embedded, try again later", retry_after_s=max(1.0, wait_s)
            )


def _tokens(encoder: TextEncoder, texts: Sequence[str], names: Sequence[str]) -> list[Tokens]:
    return list(map(encoder.tokens, texts, names))


def _run(encoder: TextEncoder, texts: Sequence[Tokens]) -> tuple[Array, float]:
    """In the thread: (B, D), and the seconds that it took."""
    started = time.perf_counter()
    return encoder.embed(texts), time.perf_counter() - started


def _keep(encoder: TextEncoder, vectors: dict[str, Array]) -> None:
    encoder.cache.update((prompt, vector.copy()) for prompt, vector in vectors.items())
    while len(encoder.cache) > KEPT:
        encoder.cache.popitem(last=False)
