"""The media type of raw PCM in, the file header that it lacks out.

`audio/l16;rate=16000;channels=2` (RFC 2586) is 16-bit PCM without any header: rate and channels stand in
the Content-Type alone. With the header of an AU file before it, it is a file like any other, under the same
limits.

    .snd | 24 | length unknown | 3 (16-bit PCM) | rate | channels | samples ...

L16 is big-endian ("network byte order"). Programs that send what their sound card gave them have
little-endian samples and say so with `endianness=little-endian`, the parameter that IBM's service has for it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from service.errors import AudioUnreadable, BadRequest

L16 = "audio/l16"
EXAMPLE = "audio/l16;rate=16000;channels=1"
BYTES_PER_SAMPLE = 2
MAX_CHANNELS = 64
KNOWN = {b"rate", b"channels", b"endianness"}
MAGIC = {b"big-endian": (b".snd", ">"), b"little-endian": (b"dns.", "<")}  # AU exists in both orders
UNKNOWN_LENGTH = 0xFFFFFFFF
PCM_16 = 3

# Of samples that come without a file around them, as FFmpeg and browsers name them.
RawFormat = Literal["s16le", "s16be", "f32le"]
RAW_FORMATS: tuple[RawFormat, ...] = get_args(RawFormat)
# As NumPy has them, and the value of full scale.
_TYPES: dict[RawFormat, tuple[str, float]] = {
    "s16le": ("<i2", 2.0**15),
    "s16be": (">i2", 2.0**15),
    "f32le": ("<f4", 1.0),
}


@dataclass(frozen=True)
class RawPcm:
    """The form of samples that come without a header: those of all channels at one instant, then the next."""

    format: RawFormat
    rate_hz: int
    channels: int

    @cached_property
    def bytes_per_frame(self) -> int:
        return np.dtype(_TYPES[self.format][0]).itemsize * self.channels

    def samples(self, data: bytes | memoryview) -> NDArray[np.float32]:
        """A whole number of frames -> (n, channels) float32; full scale is 1."""
        dtype, full_scale = _TYPES[self.format]
        values = np.frombuffer(data, dtype).astype(np.float32)
        if full_scale != 1:
            values *= np.float32(1 / full_scale)
        return values.reshape(-1, self.channels)

    def check(self, n_bytes: int) -> None:
        """Raises AudioUnreadable where the samples end within a frame."""
        _check_whole_frames(n_bytes, self.bytes_per_frame, self.channels)


class Pcm:
    """What `audio/l16` with these options means. Raises BadRequest where they do not say enough."""

    def __init__(self, options: Mapping[bytes, bytes]) -> None:
        if b"rate" not in options:
            raise BadRequest(f"the Content-Type {L16} names no rate; send e.g. {EXAMPLE}")
        unknown = sorted(options.keys() - KNOWN)
        if unknown:
            raise BadRequest(
                f"the option `{_text(unknown[0])}` of {L16} is not known; "
                "there are rate, channels and endianness"
            )
        self.rate_hz = _whole_number("rate", options[b"rate"], most=768_000)
        self.channels = _whole_number("channels", options.get(b"channels", b"1"), most=MAX_CHANNELS)
        self._order = options.get(b"endianness", b"big-endian").lower()
        if self._order not in MAGIC:
            raise BadRequest(f"endianness is {_text(self._order)}; it may be big-endian or little-endian")

    def header(self) -> bytes:
        """24 bytes, to be put before the samples."""
        magic, order = MAGIC[self._order]
        fields = (24, UNKNOWN_LENGTH, PCM_16, self.rate_hz, self.channels)
        return magic + struct.pack(f"{order}5I", *fields)

    def check(self, n_bytes: int) -> None:
        """Raises AudioUnreadable where the samples (without the header) end within a frame."""
        _check_whole_frames(n_bytes, BYTES_PER_SAMPLE * self.channels, self.channels)

    def raw(self) -> RawPcm:
        """The same, for samples that are read as they come."""
        little = self._order == b"little-endian"
        return RawPcm("s16le" if little else "s16be", self.rate_hz, self.channels)


def _check_whole_frames(n_bytes: int, frame: int, channels: int) -> None:
    if n_bytes % frame:
        raise AudioUnreadable(
            f"the raw PCM has {n_bytes} bytes, no whole number of frames of {frame} bytes "
            f"({channels} x {8 * frame // channels} bits); send all of it, and the right number of channels"
        )


def _whole_number(name: str, value: bytes, *, most: int) -> int:
    if not (value.isdigit() and len(value) < 10 and 1 <= int(value) <= most):
        shown = _text(value) or "empty"
        raise BadRequest(f"{name} is {shown} in {L16}; it is a whole number from 1 to {most}")
    return int(value)


def _text(value: bytes) -> str:
    return value[:40].decode("latin-1")
