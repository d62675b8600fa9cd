"""An assistant's questions in, what is heard in a sound and when out: a server of the Model Context Protocol.

    assistant ─ stdio ─► python -m viola_client mcp ─ HTTP ─► viola
                         reads the file, or fetches the URL

Needs the extra `mcp`. Tools: what_is_heard, when_is_it_heard, what_can_be_heard. What goes wrong is told to
the assistant as a sentence that it can act on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from viola_client.client import Client
from viola_client.errors import ViolaError

MAX_BYTES = 200_000_000  # of what a URL gives: the server's own limit
FETCH_TIMEOUT_S = 60.0
MOST_EVENTS = 200  # in one answer, the rest is counted: an assistant reads every word
MOST_LABELS = 20  # in a sentence on what there is

INSTRUCTIONS = (
    "Tells what is heard in recordings (which kinds of sounds, from when to when) with a sound classifier; "
    "it does not transcribe speech."
)

Parameters = ParamSpec("Parameters")
T = TypeVar("T")

Where = Annotated[
    str, Field(description="Path of an audio or video file on this machine, or an http(s) URL.")
]
ModelName = Annotated[str | None, Field(description="The server's default model where it is left out.")]
HeadName = Annotated[
    str | None,
    Field(description="Which set of labels, as what_can_be_heard names it; the first by default."),
]


@dataclass(frozen=True)
class HeardLabel:
    """score: in 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class WhatIsHeard:
    """labels: best first; none where the sound is like none of them. known: how much it is like what the
    labels were learnt from, 0 to 1, where that is known."""

    duration_s: float
    labels: list[HeardLabel]
    known: float | None
    model: str
    head: str


@dataclass(frozen=True)
class Happening:
    """From start_s to end_s, in seconds from the beginning; score: its highest meanwhile."""

    label: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class WhenIsItHeard:
    """happenings: in order of time, the first of them where there are many; more: how many are left out."""

    duration_s: float
    happenings: list[Happening]
    more: int
    model: str
    head: str


@dataclass(frozen=True)
class SetOfLabels:
    """What one head of a model tells apart."""

    model: str
    head: str
    labels: list[str]


@dataclass(frozen=True)
class WhatCanBeHeard:
    sets: list[SetOfLabels]


def assistant_server(viola: Client, *, folder: Path | None = None) -> MCPServer[Any]:
    """viola: of the server that is asked, which may be used by several threads. folder: the only one whose
    files may be read; None: all that the user may read."""
    server: MCPServer[Any] = MCPServer("viola", instructions=INSTRUCTIONS, log_level="WARNING")

    def sound_of(where: str) -> Path | bytes:
        return _fetched(where) if "://" in where[:8] else _file(where, folder)

    @server.tool()
    @_told
    def what_is_heard(
        sound: Where,
        top_k: Annotated[int, Field(ge=1, le=50, description="At most so many labels.")] = 5,
        model: ModelName = None,
        head: HeadName = None,
    ) -> WhatIsHeard:
        """What is heard in a recording: its labels with their scores, best first."""
        found = viola.classify(sound_of(sound), model=model, head=head, top_k=top_k)
        labels = [HeardLabel(tag.label, tag.score) for tag in found.tags]
        return WhatIsHeard(found.duration_s, labels, found.known, found.model, found.head)

    @server.tool()
    @_told
    def when_is_it_heard(
        sound: Where,
        label: Annotated[
            str | None,
            Field(description="What to look for, as what_can_be_heard writes it; everything if left out."),
        ] = None,
        begin: Annotated[
            float | None,
            Field(
                gt=0,
                le=1,
                description="Score from which on it counts; a lower one finds more, and errs more.",
            ),
        ] = None,
        model: ModelName = None,
        head: HeadName = None,
    ) -> WhenIsItHeard:
        """When something happens in a recording: from when to when it is heard, in seconds."""
        wanted = None if label is None else _label(label, _head(viola.models(), model, head).labels)
        found = viola.classify(sound_of(sound), model=model, head=head, segments=True, begin=begin)
        events = [each for each in found.segments if wanted in (None, each.label)]
        happenings = [Happening(e.label, e.start_s, e.end_s, e.score) for e in events]
        happenings.sort(key=lambda each: each.start_s)
        shown, more = happenings[:MOST_EVENTS], max(0, len(happenings) - MOST_EVENTS)
        return WhenIsItHeard(found.duration_s, shown, more, found.model, found.head)

    @server.tool()
    @_told
    def what_can_be_heard(model: ModelName = None) -> WhatCanBeHeard:
        """The labels that the server knows, by the model's heads."""
        return WhatCanBeHeard(_sets(viola.models(), model))

    return server


def _told(tool: Callable[Parameters, T]) -> Callable[Parameters, T]:
    """What a person or the server can mend is told to the assistant; the rest is a crash."""

    @wraps(tool)
    def told(*args: Parameters.args, **kwargs: Parameters.kwargs) -> T:
        try:
            return tool(*args, **kwargs)
        except ViolaError as error:
            raise ToolError(str(error)) from error

    return told


def _file(where: str, folder: Path | None) -> Path:
    """Raises ToolError."""
    try:
        path = Path(where).expanduser().resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ToolError(f"the path {where[:200]!r} cannot be read: {str(error)[:200]}") from error
    if folder is not None and not path.is_relative_to(folder.resolve()):
        raise ToolError(f"only files below {folder} may be read")
    if not is_file:
        raise ToolError(f"there is no file {where[:200]!r} on this machine; give its whole path")
    return path


def _fetched(url: str) -> bytes:
    """What the URL gives. Raises ToolError."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise ToolError("only http and https URLs are fetched; give one, or the path of a file")
    pieces, length = [], 0
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=FETCH_TIMEOUT_S) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ToolError(f"the URL answers {answer.status_code}, and not with a file")
            for piece in answer.iter_bytes():
                pieces.append(piece)
                length += len(piece)
                if length > MAX_BYTES:
                    raise ToolError(f"the URL gives more than {MAX_BYTES} bytes; download it, and cut it")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ToolError(f"the URL cannot be fetched: {str(error)[:200]}") from error
    return b"".join(pieces)


def _sets(models: dict[str, Any], model: str | None) -> list[SetOfLabels]:
    """Of one model, or of all, the default one first. Raises ToolError."""
    described = sorted(models["models"], key=lambda each: each["card"]["name"] != models["default"])
    names = [each["card"]["name"] for each in described]
    if model is not None and model not in names:
        raise ToolError(f"there is no model `{model[:80]}`; there is {_listed(names)}")
    return [
        SetOfLabels(name, head["name"], head["labels"])
        for name, each in zip(names, described, strict=True)
        for head in each["heads"]
        if model in (None, name)
    ]


def _head(models: dict[str, Any], model: str | None, head: str | None) -> SetOfLabels:
    """The one that a request means. Raises ToolError."""
    sets = _sets(models, model or models["default"])
    for each in sets:
        if head in (None, each.head):
            return each
    raise ToolError(f"there is no head `{(head or '')[:80]}`; there is {_listed([s.head for s in sets])}")


def _label(said: str, labels: list[str]) -> str:
    """The label that is meant: the same but for case, or the only one with the word in it. Raises
    ToolError."""
    word = said.strip().casefold().replace("_", " ")
    written = {label.casefold().replace("_", " "): label for label in labels}
    if word in written:
        return written[word]
    holding = [written[each] for each in written if word and word in each]
    if len(holding) == 1:
        return holding[0]
    near = holding or [written[each] for each in get_close_matches(word, written, n=5)]
    hint = f"near it are {_listed(near)}" if near else "what_can_be_heard lists the labels"
    raise ToolError(f"`{said[:80]}` is none of the {len(labels)} labels; {hint}")


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:MOST_LABELS]) or "none"
