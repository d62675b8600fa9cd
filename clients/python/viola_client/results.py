"""A server's JSON in, arrays and small objects out."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Logmel:
    """What the model sees. pixels: (n_mels, columns) uint8, the lowest band first; 0 stands for the log-mel
    low, 255 for high. frames_per_column: log-mel frames that a column is the mean of."""

    pixels: NDArray[np.uint8]
    low: float
    high: float
    frames_per_column: int


@dataclass(frozen=True, eq=False)
class Embedding:
    """vector: (D,). frames: (n, D), centred at times_s (n,), where they were asked for. windows: (n, D), from
    starts_s to ends_s (n,), where window_s was given. All float32, or float16 if that was asked for. logmel:
    where logmel_columns was given."""

    model: str
    duration_s: float
    vector: Array
    frames: Array | None = None
    times_s: NDArray[np.float64] | None = None
    windows: Array | None = None
    starts_s: NDArray[np.float64] | None = None
    ends_s: NDArray[np.float64] | None = None
    logmel: Logmel | None = None


@dataclass(frozen=True)
class Tag:
    """score: in 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Segment:
    """What is heard from start_s to end_s, best first; known: as of a Classification."""

    start_s: float
    end_s: float
    tags: tuple[Tag, ...]
    known: float | None = None


@dataclass(frozen=True, eq=False)
class LiveWindow:
    """What is heard in a stream from start_s to end_s, best first; known: as of a Classification; embedding:
    (D,), where it was asked for."""

    start_s: float
    end_s: float
    tags: tuple[Tag, ...]
    known: float | None = None
    embedding: Array | None = None


@dataclass(frozen=True)
class Event:
    """A label is heard from start_s to end_s; score: its highest meanwhile."""

    label: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Classification:
    """tags: of the whole clip, best first. timeline: one segment a window, where window_s was given.
    segments: when which label is heard, where they were asked for. known: near 0 for what is none of the
    labels, up to 1; None where the head cannot tell. vector: (D,) float32, where embedding was asked for;
    logmel: where logmel_columns was given. head: `zero-shot` where labels were given."""

    model: str
    head: str
    duration_s: float
    tags: tuple[Tag, ...]
    timeline: tuple[Segment, ...] = ()
    segments: tuple[Event, ...] = ()
    known: float | None = None
    vector: Array | None = field(default=None, compare=False)
    logmel: Logmel | None = field(default=None, compare=False)


def embedding_of(answer: dict[str, Any], dtype: str) -> Embedding:
    size = answer["embedding_size"]
    frames, windows = answer.get("frames"), answer.get("windows")
    return Embedding(
        model=answer["model"],
        duration_s=answer["duration_s"],
        vector=_array(answer["embedding"], dtype).reshape(size),
        frames=_array(frames["embeddings"], dtype).reshape(-1, size) if frames else None,
        times_s=np.array(frames["times_s"]) if frames else None,
        windows=_array(windows["embeddings"], dtype).reshape(-1, size) if windows else None,
        starts_s=np.array(windows["start_s"]) if windows else None,
        ends_s=np.array(windows["end_s"]) if windows else None,
        logmel=_logmel(answer),
    )


def text_vectors_of(answer: dict[str, Any], dtype: str) -> Array:
    """(n, D), in the order of the texts."""
    results = answer["results"]
    return np.stack([_array(each["embedding"], dtype).reshape(each["embedding_size"]) for each in results])


def classification_of(answer: dict[str, Any]) -> Classification:
    return Classification(
        model=answer["model"],
        head=answer["head"],
        duration_s=answer["duration_s"],
        tags=_tags(answer["tags"]),
        timeline=tuple(
            Segment(each["start_s"], each["end_s"], _tags(each["tags"]), each.get("known"))
            for each in answer.get("timeline", ())
        ),
        segments=tuple(
            Event(each["label"], each["start_s"], each["end_s"], each["score"])
            for each in answer.get("segments", ())
        ),
        known=answer.get("known"),
        vector=_array(answer["embedding"], "float32") if "embedding" in answer else None,
        logmel=_logmel(answer),
    )


def _tags(tags: list[dict[str, Any]]) -> tuple[Tag, ...]:
    return tuple(Tag(tag["label"], tag["score"]) for tag in tags)


def _logmel(answer: dict[str, Any]) -> Logmel | None:
    picture = answer.get("logmel")
    if picture is None:
        return None
    pixels = np.frombuffer(base64.b64decode(picture["pixels"]), np.uint8)
    return Logmel(
        pixels=pixels.reshape(picture["n_mels"], picture["columns"]).copy(),
        low=picture["low"],
        high=picture["high"],
        frames_per_column=picture["frames_per_column"],
    )


def _array(text: str, dtype: str) -> Array:
    """Little-endian numbers in base64 -> (n,), writable and of the machine's own byte order."""
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).astype(dtype)
