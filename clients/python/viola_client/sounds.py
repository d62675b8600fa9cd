"""What a caller has of a sound in, the body of a request out: as many bytes as its length says.

"dog.wav"            opened anew for each attempt ─┐
b"RIFF..."           as they are                   ├─► length, and chunks that add up to it
an open file         read to its end, once         │
(samples, 16_000)    written as WAV               ─┘
"""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from viola_client.errors import SoundError

Samples = tuple[ArrayLike, float]
Sound = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Samples

SOUNDS = "give a path, the bytes of a file, an open binary file, or (samples, sample_rate)"
CHUNK_BYTES = 1 << 18
OCTETS = "application/octet-stream"

# What a WAV file can say of itself.
IEEE_FLOAT = 3  # WAVE_FORMAT_IEEE_FLOAT
MAX_RATE_HZ = (1 << 32) - 1
MAX_CHANNELS = ((1 << 16) - 1) // 4
MAX_BYTES = (1 << 32) - 1 - 36


def name_of(sound: object) -> str:
    """For messages: of a file with a backslash for what is no UTF-8, of anything strange its type."""
    if isinstance(sound, (str, os.PathLike)):
        return os.fsdecode(sound).encode(errors="backslashreplace").decode()
    if isinstance(sound, (bytes, bytearray)):
        return f"{len(sound)} bytes"
    return "samples" if isinstance(sound, tuple) else type(sound).__name__


class Body:
    """One sound, which may be sent several times."""

    def __init__(self, sound: Sound) -> None:
        """Raises SoundError for what is no sound. A path is not looked at before it is opened."""
        self._name = name_of(sound)
        self._path: str | None = None
        self._bytes = b""
        if isinstance(sound, (str, os.PathLike)):
            self._path = os.fsdecode(sound)
        elif isinstance(sound, (bytes, bytearray, memoryview)):
            self._bytes = _copied(sound)
        elif isinstance(sound, tuple):
            self._bytes = _wav_of(sound)
        elif callable(getattr(sound, "read", None)):
            self._bytes = _read(sound)
        else:
            raise SoundError(f"{self._name} is no sound: {SOUNDS}")

    def open(self) -> Content:
        """Its bytes, for one attempt. Raises SoundError."""
        if self._path is None:
            return Content(BytesIO(self._bytes), len(self._bytes), self._name)
        file = _opened(self._path, self._name)
        return Content(file, os.fstat(file.fileno()).st_size, self._name)


@dataclass(frozen=True)
class Content:
    """An open file, of which `length` bytes are sent: those that were there when it was opened. What is
    appended later is not sent; a file that has lost some of them is an error."""

    file: BinaryIO
    length: int
    name: str
    media_type: str = OCTETS

    def __enter__(self) -> Content:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.media_type, "Content-Length": str(self.length)}

    def chunks(self) -> Iterator[bytes]:
        """Raises SoundError."""
        left = self.length
        while left:
            try:
                chunk = self.file.read(min(left, CHUNK_BYTES))
            except OSError as error:
                raise _unreadable(self.name, error) from error
            if not chunk:
                raise SoundError(
                    f"{self.name} became shorter while it was sent: {self.length - left} of its "
                    f"{self.length} bytes were left; send it when nobody writes to it"
                )
            left -= len(chunk)
            yield chunk

    async def async_chunks(self) -> AsyncIterator[bytes]:
        """The same, read in a thread."""
        chunks = self.chunks()
        while chunk := await asyncio.to_thread(next, chunks, b""):
            yield chunk


def wav(samples: ArrayLike, sample_rate: float) -> bytes:
    """(n,) or (n, channels) in [-1, 1], or signed integers of full scale, at a whole number of Hz, as a WAV
    file of 32-bit floats.

    Raises SoundError for anything else.
    """
    rate_hz = _rate_of(sample_rate)
    array = _array_of(samples)
    channels = 1 if array.ndim == 1 else array.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # of float64: the server refuses what is not finite
        data = np.ascontiguousarray(array, dtype="<f4").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(data), b"WAVE"),
        *(b"fmt ", 16, IEEE_FLOAT, channels, rate_hz, min(rate_hz * channels * 4, MAX_RATE_HZ)),
        *(channels * 4, 32),
        *(b"data", len(data)),
    )
    return header + data


def _wav_of(pair: tuple[Any, ...]) -> bytes:
    if len(pair) != 2:
        raise SoundError(f"a tuple of {len(pair)} is no sound: give (samples, sample_rate)")
    return wav(*pair)


def _rate_of(sample_rate: Any) -> int:
    """16_000, 16_000.0 or NumPy's -> 16_000."""
    if isinstance(sample_rate, (np.ndarray, np.generic)) and sample_rate.ndim == 0:
        sample_rate = sample_rate.item()
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, float)):
        raise SoundError(
            f"the sample rate is a {type(sample_rate).__name__}, no number of Hz: give "
            "(samples, sample_rate), in this order"
        )
    if not 1 <= sample_rate <= MAX_RATE_HZ or sample_rate != int(sample_rate):
        raise SoundError(f"the sample rate is no whole number of Hz from 1 to {MAX_RATE_HZ}")
    return int(sample_rate)


def _array_of(samples: Any) -> NDArray[Any]:
    """(n,) or (n, channels), floating, in [-1, 1]."""
    try:
        array = np.asarray(samples)
    except Exception as error:  # whatever a foreign array raises, such as a tensor on a GPU
        raise SoundError(f"samples that are no array: {error}") from error
    if array.dtype.kind not in "fi":
        raise SoundError(f"samples are {array.dtype}; give signed integers, or floats in [-1, 1]")
    if array.ndim not in (1, 2) or array.size == 0:
        raise SoundError(f"samples have the shape {array.shape}; give (n,) or (n, channels), not empty")
    if array.ndim == 2 and array.shape[1] > array.shape[0]:
        raise SoundError(
            f"samples have the shape {array.shape}, with more channels than samples: give (n, channels), "
            "that is samples.T"
        )
    if array.ndim == 2 and array.shape[1] > MAX_CHANNELS:
        raise SoundError(f"samples have {array.shape[1]} channels; a WAV file has {MAX_CHANNELS} at most")
    if 4 * array.size > MAX_BYTES:
        raise SoundError(
            f"{array.size} samples are more than the 4 GiB of a WAV file: send a compressed file"
        )
    return array / -float(np.iinfo(array.dtype).min) if array.dtype.kind == "i" else array


def _copied(content: bytes | bytearray | memoryview) -> bytes:
    try:
        return bytes(content)
    except ValueError as error:  # a view that was released
        raise _unreadable(name_of(content), error) from error


def _read(file: Any) -> bytes:
    """What an open file holds from where it stands to its end."""
    try:
        content = file.read()
    except Exception as error:  # those of sockets, archives and the like share no class but this
        raise _unreadable(name_of(file), error) from error
    if not isinstance(content, bytes):
        raise SoundError(
            f"{name_of(file)} gives {type(content).__name__} where bytes are needed: open the file in binary "
            "mode"
        )
    return content


def _opened(path: str, name: str) -> BinaryIO:
    """A regular file: of anything else the length is not known, and opening a pipe may never end."""
    if not path:
        raise SoundError("an empty path is no sound's")
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise SoundError(
                f"{name} is a pipe, a device or a socket: open it, and give the open file, which is read to "
                "its end"
            )
        return Path(path).open("rb")
    except (OSError, ValueError) as error:  # ValueError: no system can have a file of that name
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> SoundError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SoundError(f"{name} cannot be read: {reason}")
