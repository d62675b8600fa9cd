"""A server's JSON in, arrays and small objects out."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Embedding:
    """vector: (D,). frames: (n, D), centred at times_s (n,), where they were asked for. windows: (n, D), from
    starts_s to ends_s (n,), where window_s was given. All float32, or float16 if that was asked for."""

    model: str
    duration_s: float
    vector: Array
    frames: Array | None = None
    times_s: NDArray[np.float64] | None = None
    windows: Array | None = None
    starts_s: NDArray[np.float64] | None = None
    ends_s: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Tag:
    """score: in 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Segment:
    """What is heard from start_s to end_s, best first."""

    start_s: float
    end_s: float
    tags: tuple[Tag, ...]


@dataclass(frozen=True)
class Classification:
    """tags: of the whole clip, best first. timeline: one segment a window, where window_s was given."""

    model: str
    head: str
    duration_s: float
    tags: tuple[Tag, ...]
    timeline: tuple[Segment, ...] = ()


def embedding_of(answer: dict[str, Any], dtype: str) -> Embedding:
    size = answer["embedding_size"]
    frames, windows = answer.get("frames"), answer.get("windows")
    return Embedding(
        model=answer["model"],
        duration_s=answer["duration_s"],
        vector=_array(answer["embedding"], dtype),
        frames=_array(frames["embeddings"], dtype).reshape(-1, size) if frames else None,
        times_s=np.array(frames["times_s"]) if frames else None,
        windows=_array(windows["embeddings"], dtype).reshape(-1, size) if windows else None,
        starts_s=np.array(windows["start_s"]) if windows else None,
        ends_s=np.array(windows["end_s"]) if windows else None,
    )


def classification_of(answer: dict[str, Any]) -> Classification:
    return Classification(
        model=answer["model"],
        head=answer["head"],
        duration_s=answer["duration_s"],
        tags=_tags(answer["tags"]),
        timeline=tuple(
            Segment(each["start_s"], each["end_s"], _tags(each["tags"]))
            for each in answer.get("timeline", ())
        ),
    )


def _tags(tags: list[dict[str, Any]]) -> tuple[Tag, ...]:
    return tuple(Tag(tag["label"], tag["score"]) for tag in tags)


def _array(text: str, dtype: str) -> Array:
    """Little-endian numbers in base64 -> (n,), writable and of the machine's own byte order."""
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).astype(dtype)
