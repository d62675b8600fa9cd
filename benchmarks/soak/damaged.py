"""A number in, a damaged audio file out: bytes changed, cut off, taken from another; the same every time."""

from collections.abc import Callable
from functools import cache

import numpy as np

from benchmarks.harness.sounds import FIXTURES

HEAD = 256  # bytes in which most headers end


def damaged(number: int, seed: int = 0) -> bytes:
    """File `number` of an endless row, the same every time; another row for each seed."""
    random = np.random.default_rng((seed, number))
    clips = _clips()
    clip = clips[number % len(clips)]
    way = WAYS[int(random.integers(len(WAYS)))]
    return way(clip, clips[int(random.integers(len(clips)))], random)


@cache
def _clips() -> list[bytes]:
    folders = (FIXTURES, FIXTURES.with_name("wild"))
    paths = [path for folder in folders for path in sorted(folder.rglob("*.*"))]
    paths = [path for path in paths if path.suffix not in (".md", ".csv")]
    return [content for path in paths if (content := path.read_bytes())]


def _flipped(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A few bytes, anywhere."""
    return _with_bytes(clip, random.integers(len(clip), size=random.integers(1, 50)), random)


def _flipped_in_its_head(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    return _with_bytes(clip, random.integers(min(HEAD, len(clip)), size=random.integers(1, 8)), random)


def _cut(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    return clip[: int(random.integers(len(clip)))]


def _without_a_piece(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    start, end = np.sort(random.integers(len(clip), size=2))
    return clip[:start] + clip[end:]


def _spliced(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """The start of one file and the end of another."""
    return clip[: int(random.integers(len(clip)))] + other[int(random.integers(len(other))) :]


def _with_the_head_of_another(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    n = int(random.integers(4, HEAD))
    return other[:n] + clip[n:]


def _with_extreme_numbers(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """32 bits of the head, where sizes and rates stand, become 0, the greatest or a negative number."""
    at = int(random.integers(min(HEAD, len(clip))))
    value = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"][int(random.integers(4))]
    return clip[:at] + value + clip[at + 4 :]


def _with_noise(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    at, n = int(random.integers(len(clip))), int(random.integers(1, 2000))
    return clip[:at] + random.bytes(n) + clip[at:]


WAYS: list[Callable[[bytes, bytes, np.random.Generator], bytes]] = [
    _flipped,
    _flipped_in_its_head,
    _cut,
    _without_a_piece,
    _spliced,
    _with_the_head_of_another,
    _with_extreme_numbers,
    _with_noise,
]


def _with_bytes(clip: bytes, places: np.ndarray, random: np.random.Generator) -> bytes:
    changed = bytearray(clip)
    for at in places:
        changed[at] = int(random.integers(256))
    return bytes(changed)
