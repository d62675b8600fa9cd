"""What a caller has of a sound in, the body of a request out: a path, bytes, or samples with their rate."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = tuple[NDArray[Any], int]
Sound = str | os.PathLike[str] | bytes | Samples

CHUNK_BYTES = 1 << 18
IEEE_FLOAT = 3  # WAVE_FORMAT_IEEE_FLOAT


def name_of(sound: Sound) -> str:
    """For messages and progress bars."""
    if isinstance(sound, bytes):
        return f"{len(sound)} bytes"
    return "samples" if isinstance(sound, tuple) else os.fspath(sound)


class Body:
    """The bytes of one sound, as often as they are sent. A file is read anew each time, chunk by chunk."""

    def __init__(self, sound: Sound) -> None:
        """Raises OSError where a file is not there, ValueError for samples that are no sound."""
        self._path = None if isinstance(sound, (bytes, tuple)) else Path(sound)
        self._bytes = b""
        if isinstance(sound, bytes):
            self._bytes = sound
        elif isinstance(sound, tuple):
            self._bytes = wav(*sound)
        self.length = self._path.stat().st_size if self._path else len(self._bytes)

    def chunks(self) -> Iterator[bytes]:
        if self._path is None:
            yield self._bytes
            return
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    async def async_chunks(self) -> AsyncIterator[bytes]:
        if self._path is None:
            yield self._bytes
            return
        file = await asyncio.to_thread(self._path.open, "rb")
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
        finally:
            file.close()


def wav(samples: NDArray[Any], sample_rate: int) -> bytes:
    """(n,) or (n, channels) in [-1, 1], or integers of full scale, as a WAV file of 32-bit floats.

    Raises ValueError for anything else.
    """
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise ValueError(f"samples have the shape {samples.shape}; give (n,) or (n, channels), not empty")
    if np.issubdtype(samples.dtype, np.integer):
        if samples.dtype.kind == "u":
            raise ValueError(f"samples are {samples.dtype}; give signed integers, or floats in [-1, 1]")
        samples = samples / -float(np.iinfo(samples.dtype).min)
    data = np.ascontiguousarray(samples, dtype="<f4").tobytes()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(data), b"WAVE"),
        *(b"fmt ", 16, IEEE_FLOAT, channels, sample_rate, sample_rate * channels * 4, channels * 4, 32),
        *(b"data", len(data)),
    )
    return header + data
