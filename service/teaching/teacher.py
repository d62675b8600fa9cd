"""Sounds with labels in, a head that every process serves out: examples kept, fitted, published.

    clips ─► embedder ─► a vector for each passage of 5 s ─► silent? refused ─► store ─┐
                                                                                      ▼
    a head's examples, outdated ones embedded again where their clips were kept ─► fit ─► store ─► generation
                                                                                                      ▼
    before each request: has the generation changed? then the model's heads are read again, in every process

Whatever waits for the disk runs in a thread of its own, and so does the fitting, one head at a time and after
whatever else this process has to do: requests keep their threads.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.errors import (
    AudioSilent,
    BadRequest,
    HeadConflict,
    HeadOutdated,
    InternalError,
    Overloaded,
    StorageFailed,
    TeachingOff,
    UnknownHead,
    ViolaError,
)
from service.inference.card import Card
from service.inference.embedder import EmbeddedClip, Embedder, EmbedOptions, Timings
from service.inference.heads import Head, Hidden
from service.inference.model import Model
from service.inference.tags import SLACK_S, passages_of
from service.inference.thread_pool import ThreadPool
from service.inference.windows import Segment
from service.process.metrics import Metrics
from service.settings import Settings
from service.sound.audio import Source
from service.sound.level import SILENT
from service.teaching.fit import Lesson, fit
from service.teaching.head_file import head_file
from service.teaching.names import labels_of, unique
from service.teaching.report import Report, report_of
from service.teaching.store import (
    ID_DIGITS,
    Adding,
    Contents,
    Example,
    Limits,
    Store,
    encoder_of,
    labels_counted,
    now,
)

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
T = TypeVar("T")

MOST_WAITING = 4  # fits of this process
FIT_RETRY_S = 5.0
NICER = 10  # of 19: a thread that fits stands back from all others, where the system has it
CLIPS_AT_ONCE = 8  # that are embedded again
MAX_HEAD_BYTES = 64_000_000  # of a file that is imported: 1000 labels, and what tells what is known
FEWEST_TAGS = 100  # labels of a head that knows how sounds differ
MAX_FILE = 100  # characters of a file's name, as it is kept


@dataclass(frozen=True)
class Clip:
    """One that was sent. source: its encoded bytes, or a file of them; file: its name, or nothing."""

    source: Source
    file: str = ""


@dataclass(frozen=True)
class Added:
    """What became of a clip: its examples, or why there is none. silent: passages that were left out."""

    examples: tuple[Example, ...] = ()
    duration_s: float = 0.0
    silent: int = 0
    error: ViolaError | None = None


class Teacher:
    """One process's. Methods raise TeachingOff where the server has no folder for what is taught; what else,
    they say. `start` it in the event loop, `close` it at the end."""

    def __init__(self, settings: Settings, embedder: Embedder, metrics: Metrics) -> None:
        limits = Limits(
            settings.max_taught_heads,
            settings.max_taught_labels,
            settings.max_taught_examples,
            settings.max_data_bytes,
        )
        self._embedder = embedder
        self._metrics = metrics
        self._store = Store(settings.data_dir, limits) if settings.data_dir else None
        self._disk = ThreadPool(1, name="viola-teach")
        self._fitting = ThreadPool(1, name="viola-fit")
        self._fits: dict[tuple[str, str], asyncio.Task[Report]] = {}  # that have not begun
        self._n_fits = 0
        # Of each model: with which generation it was updated.
        self._seen: dict[str, tuple[weakref.ref[Model], object]] = {}
        self._one_update_at_a_time = threading.Lock()

    def check_on(self) -> None:
        """Raises TeachingOff."""
        self._existing_store()

    def start(self) -> None:
        if self._store is None:
            return
        try:
            self._store.check_writable()
        except ViolaError as error:  # what was taught before is served all the same
            log.error("VIOLA_DATA_DIR: %s", error)
        self._disk.start()
        self._fitting.start()

    def close(self) -> None:
        if self._store is not None:
            self._fitting.close()
            self._disk.close()

    # What is served

    def is_current(self, model: Model) -> bool:
        """Whether the model serves what was taught to it, now. Microseconds: it is asked before each
        request."""
        if self._store is None:
            return True
        seen = self._seen.get(model.card.name)
        generation = self._store.generation(model.card.name)
        return (seen is not None and seen[0]() is model and seen[1] == generation) or (
            generation is None and seen is None
        )

    async def update(self, model: Model) -> None:
        """The model serves from now on what was taught to it, by whichever process."""
        if not self.is_current(model):
            await self._on_disk(lambda: self._update(model))

    def taught(self, card: Card, own: Iterable[str]) -> Mapping[str, Head]:
        """In a thread: the heads that are served beside the model's `own`."""
        return self._store.taught(card, list(own)).heads if self._store else {}

    def _update(self, model: Model) -> None:
        store = self._existing_store()
        with self._one_update_at_a_time:
            generation = store.generation(model.card.name)  # before the heads are read, lest one is missed
            taught = store.taught(model.card, list(model.own_heads))
            model.unserved_heads = taught.refused
            model.heads = {**model.own_heads, **taught.heads}
            self._seen[model.card.name] = weakref.ref(model), generation
            self._metrics.heads_taught.labels(model.card.name).set(len(taught.heads))
            self._metrics.heads_refused.labels(model.card.name).set(len(taught.refused))
        for name, reason in taught.refused.items():
            log.warning("the head %s of %s is not served: %s", name, model.card.name, reason)

    # Heads

    async def put(self, model: Model, head: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Make a head, or change its options; told as by `describe`. Raises HeadConflict, TeachingLimit."""
        store = self._existing_store()
        _check_free(model, head)
        await self._on_disk(lambda: store.put(model.card.name, head, changes))
        return await self.describe(model, head)

    async def remove(self, model: Model, head: str) -> None:
        """Raises UnknownHead and HeadConflict."""
        store = self._existing_store()
        _check_free(model, head)
        await self._on_disk(lambda: store.remove(model.card.name, head))
        await self.update(model)

    async def describe_all(self, model: Model) -> tuple[list[dict[str, Any]], dict[str, ViolaError]]:
        """All heads that are taught, whether they are served yet or not; and by name those of which the disk
        has damaged what is needed to tell."""
        store = self._existing_store()
        heads: list[dict[str, Any]] = []
        damaged: dict[str, ViolaError] = {}
        for head in await self._on_disk(lambda: store.heads(model.card.name)):
            try:
                heads.append(await self.describe(model, head))
            except UnknownHead:  # it was removed meanwhile
                continue
            except StorageFailed as error:
                damaged[head] = error
        return heads, damaged

    async def describe(self, model: Model, head: str) -> dict[str, Any]:
        """A head's options, its labels with their examples, whether it is served, and what its fit said.
        Raises UnknownHead."""
        store = self._existing_store()
        name, encoder = model.card.name, encoder_of(model.card)

        def described() -> dict[str, Any]:
            state, examples, damaged = store.examples(name, head)
            report = store.report(name, head)
            counts = labels_counted(examples)
            served = model.heads.get(head)
            labels = served.labels if served and state.is_imported else tuple(counts)
            return {
                "model": name,
                "head": head,
                "task": state.options.task,
                "none_of_these": state.options.none_of_these,
                "keep_clips": state.options.keep_clips,
                "created": state.created,
                "imported": state.is_imported,
                "labels": [{"label": label, "examples": counts.get(label, 0)} for label in labels],
                "examples": len(examples),
                "examples_of_none": sum(not one.labels for one in examples),
                "outdated": sum(one.encoder != encoder for one in examples),
                "damaged": damaged,
                "served": head in model.heads and head not in model.own_heads,
                "not_served_because": model.unserved_heads.get(head),
                "fitted": report is not None and report["edits"] == state.edits,
                "report": _without_edits(report),
            }

        await self.update(model)
        return await self._on_disk(described)

    # Examples

    async def add(
        self, model: Model, head: str, label: str | None, clips: Sequence[Clip], timings: Timings
    ) -> list[Added]:
        """Of each clip its examples, or its error; the head is made where there is none. label: None of an
        example of none of these; of a multilabel head several, with commas. Raises BadRequest,
        HeadConflict, TeachingLimit, Overloaded."""
        store = self._existing_store()
        _check_free(model, head)
        if label is not None:
            labels_of(label, several=False)  # before a head is made for it
        options = (await self._on_disk(lambda: store.put(model.card.name, head, {}))).options
        labels = () if label is None else labels_of(label, several=options.task == "multilabel")
        embedded = await self._embed(model, [clip.source for clip in clips], timings)

        def added() -> list[Added]:
            with store.adding(model.card.name, head) as adding:
                keep = partial(_kept, adding, model.card, labels, options.keep_clips)
                return [
                    keep(clip, result) if isinstance(result, EmbeddedClip) else Added(error=result)
                    for clip, result in zip(clips, embedded, strict=True)
                ]

        if not any(isinstance(result, EmbeddedClip) for result in embedded):
            return [Added(error=result) for result in embedded if isinstance(result, ViolaError)]
        results = await self._on_disk(added)
        self._metrics.taught_examples.inc(sum(len(result.examples) for result in results))
        return results

    async def examples(self, model: Model, head: str) -> tuple[list[Example], set[str]]:
        """From the oldest on; and the ids of those whose clips were kept. Raises UnknownHead."""
        store, name = self._existing_store(), model.card.name

        def listed() -> tuple[list[Example], set[str]]:
            _, examples, _ = store.examples(name, head)
            return examples, {one.id for one in examples if store.has_clip(name, head, one)}

        return await self._on_disk(listed)

    async def clip(self, model: Model, head: str, example: str) -> bytes:
        """Raises UnknownHead, UnknownExample."""
        store = self._existing_store()
        return await self._on_disk(lambda: store.clip(model.card.name, head, example))

    async def forget(
        self, model: Model, head: str, *, example: str | None = None, label: str | None = None
    ) -> list[str]:
        """Remove one example, or all with a label (None: those of none of these); their ids. The head is
        served as it is until the next fit. Raises UnknownHead, UnknownExample."""
        store = self._existing_store()
        return await self._on_disk(lambda: store.forget(model.card.name, head, example=example, label=label))

    # Fitting

    async def fit(self, model: Model, head: str) -> Report:
        """Fit the head to its examples, serve it, and say how good it is. Fits that wait for the same head
        are one. Raises UnknownHead, BadRequest where there is nothing to tell apart, HeadOutdated,
        HeadConflict, Overloaded."""
        self._existing_store()
        key = model.card.name, head
        if key not in self._fits:
            if self._n_fits >= MOST_WAITING:
                raise Overloaded(
                    f"{MOST_WAITING} heads are being fitted already, try again later",
                    retry_after_s=FIT_RETRY_S,
                )
            self._n_fits += 1
            task = self._fits[key] = asyncio.create_task(self._fit(model, head))
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(self._fits[key])  # others may wait for it when this caller leaves

    def _ended(self, key: tuple[str, str], task: "asyncio.Task[Report]") -> None:
        self._n_fits -= 1
        if self._fits.get(key) is task:
            del self._fits[key]
        if not task.cancelled():
            task.exception()  # seen, also where everybody who waited has left

    async def _fit(self, model: Model, head: str) -> Report:
        store, name = self._existing_store(), model.card.name
        _check_free(model, head)
        encoder = encoder_of(model.card)
        self._fits.pop((name, head), None)  # whoever comes from now on may have newer examples

        def read() -> Contents:
            return store.contents(name, head, encoder=encoder, embedding_size=model.card.embedding_size)

        contents = await self._on_disk(read)
        if contents.outdated and await self._embed_again(model, head, contents.outdated):
            contents = await self._on_disk(read)
        if contents.state.is_imported:
            raise HeadConflict(f"the head `{head}` was imported: there are no examples to fit it to")
        background = await self._on_disk(model.background) if contents.state.options.none_of_these else None
        lesson, examples = lesson_of(contents, background, axes_of_tags(model))

        def fitted() -> tuple[bytes, Report]:
            stand_back()
            started = time.perf_counter()
            result = fit(lesson)
            report = report_of(lesson, result, examples)
            seconds = time.perf_counter() - started
            self._metrics.fit_duration.observe(seconds)
            report |= {"outdated": len(contents.outdated), "damaged": contents.damaged}
            report["seconds"] = round(seconds, 3)
            edits = contents.state.edits
            return head_file(result, lesson.labels, report, encoder=encoder, edits=edits), report

        content, report = await self._fitting.run(fitted)
        is_newest = await self._on_disk(
            lambda: store.publish(name, head, content, report, edits=contents.state.edits)
        )
        await self.update(model)
        if not is_newest:
            log.info("the head %s of %s was fitted anew, or removed, meanwhile", head, name)
        return report

    async def _embed_again(self, model: Model, head: str, outdated: Sequence[Example]) -> bool:
        """Those whose clips were kept, by the model as it is now; whether there were any."""
        store, name = self._existing_store(), model.card.name
        by_clip: dict[str, list[Example]] = {}
        for example in outdated:
            by_clip.setdefault(example.clip, []).append(example)

        def clip_of(examples: list[Example]) -> bytes | None:
            return store.clip(name, head, examples[0].id) if store.has_clip(name, head, examples[0]) else None

        kept = [
            (clip, examples)
            for examples in by_clip.values()
            if (clip := await self._on_disk(lambda examples=examples: clip_of(examples))) is not None  # type: ignore[misc]
        ]
        for start in range(0, len(kept), CLIPS_AT_ONCE):
            some = kept[start : start + CLIPS_AT_ONCE]
            results = await self._embed(model, [clip for clip, _ in some], Timings())
            for (_, examples), result in zip(some, results, strict=True):
                if not isinstance(result, EmbeddedClip):
                    log.warning("a kept clip of %s cannot be embedded again: %s", head, result)
                    continue
                passages = _passages(model.card, result)
                again = [one for one in examples if one.id.rpartition("-")[2] in passages]
                vectors = np.stack([passages[one.id.rpartition("-")[2]].vector for one in again])
                renewed = [replace(one, encoder=encoder_of(model.card)) for one in again]

                def keep(renewed: Any = renewed, vectors: Array = vectors) -> None:
                    with store.adding(name, head) as adding:
                        adding.add(renewed, vectors, None)  # the clip is there

                await self._on_disk(keep)
        return bool(kept)

    # Its file

    async def file(self, model: Model, head: str) -> bytes:
        """What a model folder takes as heads/<head>.safetensors. Raises UnknownHead, HeadConflict."""
        store = self._existing_store()
        return await self._on_disk(lambda: store.file(model.card.name, head))

    async def take_in(self, model: Model, head: str, content: bytes) -> dict[str, Any]:
        """Serve such a file; told as by `describe`. Raises HeadConflict, TeachingLimit."""
        store = self._existing_store()
        _check_free(model, head)
        await self._on_disk(lambda: store.take_in(model.card.name, head, content, model.card))
        return await self.describe(model, head)

    # Inside

    def _existing_store(self) -> Store:
        if self._store is None:
            raise TeachingOff(
                "nothing can be taught to this server: it has no folder to keep it in; start it with "
                "VIOLA_DATA_DIR=/a/folder"
            )
        return self._store

    async def _on_disk(self, function: Callable[[], T]) -> T:
        return await self._disk.run(function)

    async def _embed(
        self, model: Model, sources: Sequence[Source], timings: Timings
    ) -> list[EmbeddedClip | ViolaError]:
        length_s, _ = passages_of(model.card)
        options = EmbedOptions(window_s=length_s, hop_s=length_s, levels=True)
        return await self._embedder.embed_all(model, sources, options, timings)


def _kept(
    adding: Adding, card: Card, labels: tuple[str, ...], keep_clips: bool, clip: Clip, embedded: EmbeddedClip
) -> Added:
    """In a thread. What is wrong with this clip is its own error; that the disk is full, too."""
    assert embedded.levels is not None, "it was embedded with them"
    sha = _hash_of(clip.source)[:ID_DIGITS]
    passages = _passages(card, embedded)
    heard = [
        (number, passage)
        for number, passage in passages.items()
        if embedded.levels.peak(passage.start_s, passage.end_s) >= SILENT
    ]
    told = Added(duration_s=embedded.duration_s, silent=len(passages) - len(heard))
    if not heard:
        silent = AudioSilent(
            "nothing can be heard: it never gets louder than -70 dB of full scale; record it again, nearer "
            "or with another microphone"
        )
        return replace(told, error=silent)
    examples = tuple(
        Example(
            id=f"{sha}-{number}",
            labels=labels,
            file=_file_name(clip.file),
            start_s=round(passage.start_s, 3),
            end_s=round(passage.end_s, 3),
            added=now(),
            encoder=encoder_of(card),
            clip=sha,
        )
        for number, passage in heard
    )
    vectors = np.stack([passage.vector for _, passage in heard])
    try:
        if not np.isfinite(vectors).all():
            raise InternalError("its embedding is not finite")
        adding.add(examples, vectors, _bytes_of(clip.source) if keep_clips else None)
    except ViolaError as error:
        return replace(told, error=error)
    return replace(told, examples=examples)


def lesson_of(
    contents: Contents, background: Array | None, axes: Array | None = None
) -> tuple[Lesson, list[Example]]:
    """What is learnt from, and the example of each of its vectors. Raises BadRequest where there is
    nothing to tell apart, HeadOutdated where all examples are another encoder's."""
    with_labels = [i for i, one in enumerate(contents.examples) if one.labels]
    without = [i for i, one in enumerate(contents.examples) if not one.labels]
    examples = [contents.examples[i] for i in with_labels]
    labels = unique(label for one in examples for label in one.labels)
    if not labels and contents.outdated:
        raise HeadOutdated(
            f"all {len(contents.outdated)} examples were embedded by another version of the model, and their "
            "clips were not kept: send them again"
        )
    if not labels:
        raise BadRequest("there are no examples yet: POST some, with a label")
    if len(labels) == 1 and background is None and not without:
        raise BadRequest(
            f"`{labels[0]}` is the only label, and there is nothing to tell it from: add examples of another "
            "one, examples of none of these (none=true), or let none_of_these be true of a model that has a "
            "background.safetensors"
        )
    targets = np.array([[label in one.labels for label in labels] for one in examples])
    clips = np.unique([one.clip for one in examples], return_inverse=True)[1].astype(np.int64)
    lesson = Lesson(
        labels,
        contents.state.options.task,
        contents.vectors[with_labels],
        targets,
        clips,
        contents.vectors[without],
        background,
        axes,
    )
    return lesson, examples


def axes_of_tags(model: Model) -> Array | None:
    """(K, D): along which the model's head of many tags looks at an embedding; None without such a head."""
    for head in model.own_heads.values():
        if head.task != "multilabel" or len(head.labels) < FEWEST_TAGS or head.layer_norm_eps is not None:
            continue
        if isinstance(head.hidden, Hidden):
            return head.hidden.weight
        if head.hidden is None:
            return np.asarray(head.weight / head.scaler_std, dtype=np.float32)
    return None


def _check_free(model: Model, head: str) -> None:
    if head in model.own_heads:
        raise HeadConflict(
            f"the head `{head}` is one of the folder of the model `{model.card.name}`, which no request "
            "changes: choose another name"
        )


def _passages(card: Card, clip: EmbeddedClip) -> dict[str, Segment]:
    """By their numbers, a long clip's passages of 5 s, one after the other; a short one is whole. A last one
    that is shorter than half of that is left out."""
    length_s, _ = passages_of(card)
    if clip.duration_s <= length_s + SLACK_S:
        return {"000": Segment(0.0, clip.duration_s, clip.embedding.vector)}
    long_enough = [one for one in clip.embedding.segments if one.end_s - one.start_s >= length_s / 2]
    return {f"{number:03d}": passage for number, passage in enumerate(long_enough)}


def _bytes_of(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    assert not isinstance(source, os.PathLike), "requests send bytes"
    file: BinaryIO = source
    file.seek(0)
    return file.read()


def _hash_of(source: Source) -> str:
    """SHA-256, without holding a long file in memory."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    assert not isinstance(source, os.PathLike), "requests send bytes"
    source.seek(0)
    return hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]


def _file_name(name: str) -> str:
    """Its last part, without what would break a line."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(character for character in last if character.isprintable())[:MAX_FILE]


def _without_edits(report: Report | None) -> Report | None:
    return {name: value for name, value in report.items() if name != "edits"} if report else None


def stand_back() -> None:
    """This thread computes after all others of the machine, where the system can tell threads apart."""
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):  # no Linux: a thread has no id of a process there
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICER)
