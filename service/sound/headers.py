"""The header of a file in; out what it tells of the length of its sound, compared with the bytes there are.

    RIFF size WAVE │ fmt  size … │ data size ……………………………………… │ LIST size … │
                                        └─ told ──────────────────────► another sound may follow from here

    the header tells                         and so
    more than there is                       the file was broken off, and is refused
    nothing (0, -1, or the most that can     it was streamed, or its recorder crashed: it is read to its
    be) while samples follow                 end, with its header completed for the decoder

MP3 and AAC (ADTS) are frames without a header of the whole.
"""

import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import BinaryIO, NamedTuple, Protocol

from service.errors import AudioUnreadable

MAX_CHUNKS = 100_000  # that are stepped over in one file
MAX_CHUNKS_BEHIND = 100  # an empty sound: each of a thousand may look at them
FARTHEST = 1 << 40  # bytes
SLACK_BYTES = 256  # may be missing: to count the header in, or a padding byte, is a common mistake
UNKNOWN_BYTES = (
    0x7FFF_0000  # those who do not know write 0x7FFFF000, 2^31, 0xFFFFFFFF less a header, or the like
)
SEND_WHOLE = "send the whole file, or what there is of it as a WAV"

Patches = dict[int, bytes]


class Readable(Protocol):
    """What of a file is needed here."""

    def seek(self, offset: int, /) -> int: ...
    def read(self, n: int, /) -> bytes: ...


class Told(NamedTuple):
    """another_from: where, at the earliest, another sound may begin in the file; patches: what the header
    should say, by where it says so, counted from the beginning of the sound."""

    another_from: int
    patches: Patches


# (the file, where the sound begins, the end of the file). Raises AudioUnreadable.
Header = Callable[[BinaryIO, int, int], Told]


class Layout(NamedTuple):
    """How a file is made of chunks, each with an id and its size.

    size: as struct has it; is_whole: whether it counts id and size, too; first: where the first chunk begins;
    sound: the id of the chunk with the samples; before: bytes in that chunk before the first of them.
    """

    id_bytes: int
    size: str
    is_whole: bool
    align: int
    first: int
    sound: bytes
    before: int = 0


class Chunk(NamedTuple):
    """size_at, body: where its size and its content stand in the file; size: of the content, as it says."""

    id: bytes
    size_at: int
    body: int
    size: int


W64_HEAD = bytes.fromhex("726966662e91cf11a5d628db04c10000")
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
ASF_HEAD = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")

RIFF = Layout(4, "<I", False, 2, 12, b"data")
RIFX = RIFF._replace(size=">I")
AIFF = Layout(4, ">I", False, 2, 12, b"SSND", before=8)
CAF = Layout(4, ">Q", False, 1, 8, b"data", before=4)
W64 = Layout(16, "<Q", True, 8, 40, W64_DATA)
ASF = Layout(16, "<Q", True, 1, 0, ASF_DATA)


def of_chunks(layout: Layout) -> Header:
    """AIFF, CAF, W64, WMA."""

    def header(file: BinaryIO, start: int, end: int) -> Told:
        for chunk in chunks(file, start + layout.first, end, layout):
            if chunk.id == layout.sound:
                return _compared(file, start, end, chunk, layout)
        return Told(end, {})

    return header


def of_wav(file: BinaryIO, start: int, end: int) -> Told:
    """RIFF; RF64 and BW64, which tell sizes of more than 32 bits in a chunk of their own; RIFX."""
    layout = RIFX if read_at(file, start, 4) == b"RIFX" else RIFF
    wide: Chunk | None = None
    for chunk in chunks(file, start + layout.first, end, layout):
        if chunk.id == b"ds64":
            wide = chunk
        elif chunk.id == layout.sound:
            if wide is None or chunk.size < 0xFFFF_FFFF:
                return _compared(file, start, end, chunk, layout)
            size_at = wide.body + 8  # behind the size of the whole file
            size = int.from_bytes(read_at(file, size_at, 8), "little")
            return _compared(file, start, end, Chunk(chunk.id, size_at, chunk.body, size), RIFF, "<Q")
    return Told(end, {})


def of_au(file: BinaryIO, start: int, end: int) -> Told:
    order = "<" if read_at(file, start, 4) == b"dns." else ">"
    head = read_at(file, start + 4, 8)
    if len(head) < 8:
        return Told(end, {})
    body, size = struct.unpack(f"{order}II", head)
    layout = Layout(0, f"{order}I", False, 1, 0, b"")
    return _compared(file, start, end, Chunk(b"", start + 8, start + body, size), layout)


def of_flac(file: BinaryIO, start: int, end: int) -> Told:
    """The number of samples that a FLAC tells may be too small: it is taken out, so that the decoder goes on
    to the end, and compared with what comes of that (`flac_samples`)."""
    stored = read_at(file, start + 21, 5)
    is_told = len(stored) == 5 and flac_samples(read_at(file, start, 26))
    return Told(start + 4, {21: bytes([stored[0] & 0xF0, 0, 0, 0, 0])} if is_told else {})


def flac_samples(head: bytes) -> int:
    """What the first bytes of a FLAC, up to 26, tell of the number of its samples; 0 for nothing."""
    has_it = head.startswith(b"fLaC") and len(head) >= 26 and head[4] & 0x7F == 0
    return int.from_bytes(head[21:26], "big") & ((1 << 36) - 1) if has_it else 0


def of_ogg(file: BinaryIO, start: int, end: int) -> Told:
    """Streams side by side (a film) begin with one page each, before any other page."""
    at = start
    for page in islice(ogg_pages(file, start), MAX_CHUNKS):
        at = page.at
        if not page.flags & BEGINS:
            break
    return Told(max(at, start + 4), {})


BEGINS, ENDS = 2, 4


class OggPage(NamedTuple):
    """samples: how many of its stream it is the end of."""

    at: int
    flags: int
    samples: int


def ogg_pages(file: Readable, at: int) -> Iterator[OggPage]:
    """Up to what is no page."""
    while len(head := read_at(file, at, 27)) == 27 and head.startswith(b"OggS\0"):
        yield OggPage(at, head[5], int.from_bytes(head[6:14], "little", signed=True))
        lengths = read_at(file, at + 27, head[26])
        at += 27 + len(lengths) + sum(lengths)


def samples_of_one_page(file: Readable) -> int | None:
    """Of an Ogg whose sound is all in its last page, what that says of its length. FFmpeg counts from the
    page before, and where there is none cuts off up to 1024 samples of Vorbis too many."""
    for page in islice(ogg_pages(file, 0), 10):
        if page.samples > 0:
            return page.samples if page.flags & ENDS else None
    return None


def of_matroska(file: BinaryIO, start: int, end: int) -> Told:
    """WebM, too: a head, and a segment with all the rest, whose size is told where it was known."""
    body, size = _vint(file, start + 4)
    segment = body + size
    if read_at(file, segment, 4) != b"\x18\x53\x80\x67":
        return Told(start + 4, {})
    body, size = _vint(file, segment + 4)
    n_bytes = body - segment - 4
    if size == (1 << 7 * n_bytes) - 1:  # all ones: unknown, as browsers record
        return Told(body, {})
    _check_there(size, end - body)
    return Told(min(body + size, end), {})


def of_mp4(file: BinaryIO, start: int, end: int) -> Told:
    """M4A, MOV, 3GP, too: boxes, whose size stands before their name. A file in fragments tells no length of
    the whole, and may end with a part of the last one."""
    at, missing = start, (0, 0)
    names: set[bytes] = set()
    for _ in range(MAX_CHUNKS):
        head = read_at(file, at, 16)
        if len(head) < 8:
            break
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        if name == b"ftyp" and names & {b"moov", b"mdat"}:
            break
        names.add(name)
        size = int.from_bytes(head[8:], "big") if size == 1 else size or end - at
        if at + size > end:
            if name not in (b"mdat", b"moov"):
                break  # no box, but a tag or the like
            missing = (size, end - at)
        at += max(size, 8)
    else:
        raise _too_many_chunks()
    if b"moof" not in names:
        _check_there(*missing)
    if b"moov" not in names:
        raise AudioUnreadable(
            "the MP4 lacks its index (moov): it is a later piece of a recording, or was broken off; "
            "send all of it"
        )
    return Told(min(at, end), {})


def of_amr(file: BinaryIO, start: int, end: int) -> Told:
    return Told(start + 6, {})


def chunks(file: Readable, at: int, end: int, layout: Layout) -> Iterator[Chunk]:
    """One after the other, up to the one that reaches the end or passes it."""
    n_head = layout.id_bytes + struct.calcsize(layout.size)
    for _ in range(MAX_CHUNKS):
        head = read_at(file, at, n_head)
        if len(head) < n_head or at >= end:
            return
        (size,) = struct.unpack(layout.size, head[layout.id_bytes :])
        size = max(0, size - n_head) if layout.is_whole else size
        yield Chunk(head[: layout.id_bytes], at + layout.id_bytes, at + n_head, size)
        at += n_head + size + -(n_head + size) % layout.align
    raise _too_many_chunks()


def read_at(file: Readable, at: int, n: int) -> bytes:
    """Nothing from where no file reaches: some file systems do not even seek there."""
    if at > FARTHEST:
        return b""
    file.seek(at)
    return file.read(n)


def _compared(
    file: BinaryIO, start: int, end: int, sound: Chunk, layout: Layout, size: str | None = None
) -> Told:
    """size: as struct has it, where it is not that of the other chunks."""
    there = end - sound.body
    if sound.size <= layout.before < there:
        is_told = _are_chunks(file, sound.body + sound.size, end, layout)
    else:
        is_told = sound.size <= max(there, UNKNOWN_BYTES)
    if is_told:
        _check_there(sound.size, there)
    if is_told and sound.size <= there:
        return Told(sound.body + sound.size, {})
    size = size or layout.size
    real = there + layout.is_whole * (sound.body - sound.size_at + layout.id_bytes)
    most = (1 << 8 * struct.calcsize(size)) - 1
    return Told(sound.body, {sound.size_at - start: struct.pack(size, min(real, most))})


def _are_chunks(file: BinaryIO, at: int, end: int, layout: Layout) -> bool:
    """Whether a row of chunks stands there that ends with the file, give or take a byte of padding. No
    samples look like that."""
    ends_at = 0
    for chunk in islice(chunks(file, at, end, layout), MAX_CHUNKS_BEHIND):
        if not (chunk.id and chunk.id.isascii() and chunk.id.decode("ascii").isprintable()):
            return False
        ends_at = chunk.body + chunk.size
    return end - 1 <= ends_at <= end


def _check_there(told: int, there: int) -> None:
    if told > there + SLACK_BYTES:
        raise AudioUnreadable(
            f"the file ends early: its header promises {told} bytes of sound and {there} are there; "
            f"{SEND_WHOLE}"
        )


def _too_many_chunks() -> AudioUnreadable:
    return AudioUnreadable(
        f"the file consists of more than {MAX_CHUNKS} pieces; write it anew, as a WAV or FLAC"
    )


def _vint(file: BinaryIO, at: int) -> tuple[int, int]:
    """One of Matroska's numbers, in which the zeros before the first one bit tell how many bytes follow:
    (where it ends, what it is)."""
    first = read_at(file, at, 1)
    n_bytes = 9 - first[0].bit_length() if first else 9
    if n_bytes > 8:
        return at + 1, 0
    value = int.from_bytes(read_at(file, at, n_bytes), "big")
    return at + n_bytes, value & ((1 << 7 * n_bytes) - 1)
