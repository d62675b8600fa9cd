"""Sounds with labels in, the requests that teach them out: for `Client`, and for `AsyncClient`, step by step.

A step is a request; what it is answered comes back into the function that asked for it. Nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

from viola_client.errors import SoundError, ViolaError, error_of
from viola_client.requests import MODELS, Request, query_of
from viola_client.sounds import Body, Sound, name_of

T = TypeVar("T")
Answer = dict[str, Any]
Steps = Generator[Request[Answer], Answer, T]


@dataclass(frozen=True)
class Lesson:
    """taught: how many sounds were taken; refused: the others, by name and with the reason. report: how good
    the head is on sounds that were left out, as POST .../fit answers; None where it was not fitted."""

    head: str
    taught: int
    refused: tuple[tuple[str, ViolaError], ...]
    report: Answer | None

    @property
    def words(self) -> list[str]:
        """The report in sentences."""
        return list(self.report["words"]) if self.report else []


@dataclass(frozen=True)
class Done(Generic[T]):
    """The steps have ended."""

    result: T


def teach_steps(
    head: str, label: str | None, sounds: Sound | Iterable[Sound], *, model: str | None, fit: bool
) -> Steps[Lesson]:
    """label: None for sounds that are none of the labels."""
    route = yield from _route(head, model)
    query = query_of(label=label, none=True if label is None else None)
    taught = 0
    refused: list[tuple[str, ViolaError]] = []
    for sound in one_or_many(sounds):
        try:
            answer = yield Request(f"{route}/examples", dict, query, Body(sound))
        except SoundError as error:
            refused.append((name_of(sound), error))
            continue
        (result,) = answer["results"]
        if "error" in result:
            refused.append((name_of(sound), error_of(422, result)))
        else:
            taught += 1
    report = (yield Request(f"{route}/fit", dict, verb="POST")) if fit else None
    return Lesson(head, taught, tuple(refused), report)


def one_or_many(sounds: Sound | Iterable[Sound]) -> Iterable[Sound]:
    """A file that is open can be iterated over, line by line, and is one sound all the same."""
    is_one = isinstance(sounds, (str, PathLike, bytes, bytearray, memoryview, tuple)) or hasattr(
        sounds, "read"
    )
    return [cast("Sound", sounds)] if is_one else cast("Iterable[Sound]", sounds)


def heads_steps(model: str | None) -> Steps[Answer]:
    """All that a model was taught."""
    route = yield from _route(None, model)
    return (yield Request(route, dict))


def forget_steps(head: str, *, label: str | None, example: str | None, model: str | None) -> Steps[list[str]]:
    """One example, all of a label, or the head with all of them; the ids of the examples."""
    route = yield from _route(head, model)
    if example is not None:
        route += f"/examples/{quote(example, safe='')}"
    elif label is not None:
        route += "/examples"
    query = query_of(label=label) if example is None else {}
    answer = yield Request(route, dict, query, verb="DELETE")
    return list(answer["removed"])


def advance(steps: Steps[T], outcome: Answer | ViolaError | None) -> Request[Answer] | Done[T]:
    """The next request, after the answer to the last one, or its error; None: the first. Raises what the
    steps raise."""
    try:
        if isinstance(outcome, ViolaError):
            return steps.throw(outcome)
        return next(steps) if outcome is None else steps.send(outcome)
    except StopIteration as end:
        return Done(end.value)


def _route(head: str | None, model: str | None) -> Steps[str]:
    """Of a model's heads, or of one of them; the server's default model without a name."""
    name = model if model is not None else (yield MODELS)["default"]
    heads = f"models/{quote(name, safe='')}/heads"
    return heads if head is None else f"{heads}/{quote(head, safe='')}"
