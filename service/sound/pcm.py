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

from service.errors import AudioUnreadable, BadRequest

L16 = "audio/l16"
EXAMPLE = "audio/l16;rate=16000;channels=1"
BYTES_PER_SAMPLE = 2
MAX_CHANNELS = 64
KNOWN = {b"rate", b"channels", b"endianness"}
MAGIC = {b"big-endian": (b".snd", ">"), b"little-endian": (b"dns.", "<")}  # AU exists in both orders
UNKNOWN_LENGTH = 0xFFFFFFFF
PCM_16 = 3


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
        frame = BYTES_PER_SAMPLE * self.channels
        if n_bytes % frame:
            raise AudioUnreadable(
                f"the raw PCM has {n_bytes} bytes, no whole number of frames of {frame} bytes "
                f"({self.channels} x 16 bits); send all of it, and the right number of channels"
            )


def _whole_number(name: str, value: bytes, *, most: int) -> int:
    if not (value.isdigit() and len(value) < 10 and 1 <= int(value) <= most):
        shown = _text(value) or "empty"
        raise BadRequest(f"{name} is {shown} in {L16}; it is a whole number from 1 to {most}")
    return int(value)


def _text(value: bytes) -> str:
    return value[:40].decode("latin-1")
