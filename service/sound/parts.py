"""A file's bytes in; the sounds that it holds, one behind the other, out, each as a file of its own.

    ID3v2 │ RIFF … │ APE │ ID3v1         tags before and behind are passed over
    OggS … │ OggS … │ OggS …             chained Ogg
    fLaC … │ fLaC …                      what `cat` and text-to-speech services join

A decoder finds the beginning of a sound and reads to where its header ends it, or takes the next sound's
header for sound. So the next sound is looked for here: from where the header says that this one ends, or
where it says nothing (see headers.py), anywhere behind its beginning.

MP3 and AAC (ADTS), joined or not, are one row of frames, which FFmpeg reads.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from service.errors import AudioUnreadable
from service.sound import headers
from service.sound.headers import Header, Patches, Told, read_at

MAX_PARTS = 1000  # sounds in one file: opening each costs a fraction of a millisecond
HEAD_BYTES = 4096
SEARCHED_BYTES = 1 << 16  # at once
MAX_TAGS = 100


class WholeFile:
    """A file as it is, but that impossible seeks, which broken headers ask for, move nothing: an exception
    cannot pass through libsndfile, and Python would print its traceback for each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = file.read
        self.readinto = file.readinto  # type: ignore[attr-defined] # typing.BinaryIO lacks what every file has
        self.tell = file.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (ValueError, OSError, OverflowError):
            return self._file.tell()


class Slice:
    """Bytes from `start` to `end` of a file, as a file that begins at 0; patches: bytes to be read in place
    of those in the file, by where in the slice they stand. Impossible seeks move nothing."""

    def __init__(self, file: BinaryIO, start: int, end: int, patches: Patches) -> None:
        self._file: Any = file
        self._start = start
        self._size = end - start
        self._patches = patches
        self._patched_to = max((place + len(new) for place, new in patches.items()), default=0)
        self._at = 0

    def read(self, n: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        data = bytearray(left if n < 0 else min(n, left))
        return bytes(memoryview(data)[: self.readinto(data)])

    def readinto(self, buffer: bytearray) -> int:
        at = self._at
        if at >= self._size:
            return 0
        self._file.seek(self._start + at)
        if at >= self._patched_to and at + len(buffer) <= self._size:  # as for nearly all
            n: int = self._file.readinto(buffer)
            self._at = at + n
            return n
        view = memoryview(buffer)[: self._size - at]
        n = self._file.readinto(view)
        self._at = end = at + n
        for place, new in self._patches.items():
            first, last = max(at, place), min(end, place + len(new))
            if first < last:
                view[first - at : last - at] = new[first - place : last - place]
        return n

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at >= 0:
            self._at = at
        return self._at

    def tell(self) -> int:
        return self._at


class Part:
    """One sound. kind: what its first bytes say it is, empty where they say nothing; head: those bytes, as
    they stand in the file; file: it alone, to be read once from its beginning."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        """Of what lies from start to end in a file. Raises AudioUnreadable where it was broken off."""
        self.head = read_at(file, start, HEAD_BYTES)
        self.kind = next((name for name, kind in KINDS.items() if kind.beginning.match(self.head)), "")
        told = KINDS[self.kind].header(file, start, end) if self.kind else Told(end, {})
        self._all, self._start, self._end = file, start, end
        self._is_whole = start == 0 and end == file.seek(0, io.SEEK_END) and not told.patches
        self._another_from, self._patches = told
        self._set_end(end)

    def cut(self) -> None:
        """Looks for another sound of this kind behind it, and ends where that begins."""
        if self.kind and self._another_from < self._end:
            self._set_end(_next(KINDS[self.kind], self._all, self._another_from, self._end) or self._end)
            self._another_from = self._end

    def as_stored(self) -> Slice:
        """The sound with the header that it has in the file."""
        return Slice(self._all, self._start, _before_tags(self._all, self._start, self.behind), {})

    def _set_end(self, end: int) -> None:
        self.behind = end
        self.is_last = end == self._end
        if self._is_whole and self.is_last:
            self.file: WholeFile | Slice = WholeFile(self._all)
        else:
            end = _before_tags(self._all, self._start, end)
            self.file = Slice(self._all, self._start, end, self._patches)
        self.file.seek(0)


def parts(file: BinaryIO) -> Iterator[Part]:
    """At least one. Raises AudioUnreadable where the file was broken off, or holds too many."""
    end = file.seek(0, io.SEEK_END)
    start = _behind_tags(file, end)
    end = _before_tags(file, start, end)
    for _ in range(MAX_PARTS):
        part = Part(file, start, end)
        if part.kind != "FLAC":  # whose decoder stumbles over another FLAC, and cuts it then
            part.cut()
        yield part
        start = part.behind
        if start >= end:
            return
    raise AudioUnreadable(f"the file holds more than {MAX_PARTS} sounds, one behind the other; split it")


class Kind(NamedTuple):
    """beginning: the bytes that a sound of this kind begins with; literal: some of them, found quickly, which
    stand at literal_at."""

    header: Header
    beginning: "re.Pattern[bytes]"
    literal: bytes
    literal_at: int = 0


def _kind(header: Header, beginning: bytes, literal: bytes, literal_at: int = 0) -> Kind:
    return Kind(header, re.compile(beginning, re.DOTALL), literal, literal_at)


# Long enough that no sound holds them by chance: the samples of a long WAV hold any four bytes.
KINDS = {
    "WAV": _kind(headers.of_wav, rb"(?:RIFF|RIFX|RF64|BW64)....WAVE", b"WAVE", 8),
    "FLAC": _kind(headers.of_flac, rb"fLaC[\x00\x80]\x00\x00\x22", b"fLaC"),
    "Ogg": _kind(headers.of_ogg, rb"OggS\x00[\x02\x06]", b"OggS"),
    "WebM or Matroska": _kind(
        headers.of_matroska, rb"\x1a\x45\xdf\xa3.{1,60}?\x42\x82.(?:webm|matroska)", b"\x1a\x45\xdf\xa3"
    ),
    "MP4": _kind(
        headers.of_mp4, rb"(?:....(?:ftyp|mdat)|\x00...(?:moov|moof|styp|free|skip|wide))", b"ftyp", 4
    ),
    "AIFF": _kind(headers.of_chunks(headers.AIFF), rb"FORM....AIF[FC]", b"FORM"),
    "WMA": _kind(headers.of_chunks(headers.ASF), re.escape(headers.ASF_HEAD), headers.ASF_HEAD),
    "AMR": _kind(headers.of_amr, rb"#!AMR(?:-WB)?\n", b"#!AMR"),
    "AU": _kind(headers.of_au, rb"(?:\.snd\x00\x00..|dns\...\x00\x00)", b".snd\x00\x00"),
    "CAF": _kind(headers.of_chunks(headers.CAF), rb"caff\x00\x01", b"caff"),
    "W64": _kind(headers.of_chunks(headers.W64), re.escape(headers.W64_HEAD), headers.W64_HEAD),
}


def _next(kind: Kind, file: BinaryIO, start: int, end: int) -> int | None:
    """Where in start..end another sound of the kind begins."""
    overlap = 128  # more than any beginning is long
    while start < end:
        searched = read_at(file, start, SEARCHED_BYTES + overlap)
        at = searched.find(kind.literal) - kind.literal_at
        while -kind.literal_at <= at < SEARCHED_BYTES:
            if at >= 0 and kind.beginning.match(searched, at):
                return start + at
            at = searched.find(kind.literal, at + kind.literal_at + 1) - kind.literal_at
        start += SEARCHED_BYTES
    return None


def _behind_tags(file: BinaryIO, end: int) -> int:
    """Where the file goes on behind its ID3v2 tags, which programs put before sounds of all kinds."""
    at = 0
    for _ in range(MAX_TAGS):
        tag = _tag_at(read_at(file, at, 10))
        if tag == 0 or at + tag >= end:
            break
        at += tag
    return at


def _before_tags(file: BinaryIO, start: int, end: int) -> int:
    """Where a sound ends before its tags of APE, Lyrics3 and ID3v1."""
    for _ in range(MAX_TAGS):
        at = max(start, end - 128)
        tag = _tag_before(read_at(file, at, end - at))
        if tag == 0 or end - tag <= start:
            break
        end -= tag
    return end


def _tag_at(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins with these 10; 0 for none."""
    if len(head) < 10 or not head.startswith(b"ID3") or max(head[6:]) > 0x7F:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _tag_before(tail: bytes) -> int:
    """Bytes of the tag that ends with these 128; 0 for none."""
    if tail.startswith(b"TAG") and len(tail) == 128:
        return 128
    if tail.endswith(b"LYRICS200") and (size := tail[-15:-9]).isdigit():
        return int(size) + 15
    if tail[-32:-24] == b"APETAGEX":
        size, _, flags = struct.unpack("<3I", tail[-20:-8])
        return size + (32 if flags >> 31 else 0)
    return 0
