"""The audio to train on: decoded once, kept as 16-bit samples at the encoder's rate, cropped at random.

In: a folder, a CSV with a column `path` or `file_name`, or one of the field's forms (`corpora`). Out: Clips,
from which segments are drawn.

The samples lie in memory-mapped files in the cache folder, of SHARD_BYTES each: as long as they fit, the
operating system keeps them in memory; beyond that they are read from disk as they are drawn. A second run
over the same files finds them by the names, sizes and dates of what they were made from, and one that was
stopped while it decoded goes on behind the last shard that is whole.

    <fingerprint>.i16  <fingerprint>.1.i16 ...    the samples; no clip lies in two files
    <fingerprint>.decoded                         how far it has come, until all is there
    <fingerprint>.json                            where each clip begins, and what cannot be read
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.bulk.archives import archive_of, source_of
from service.bulk.listing import ListingError, listed_paths
from service.bulk.offline import audio_files
from service.errors import ViolaError
from service.inference.threads import usable_cores
from service.process.files import lock, write_whole
from service.sound.audio import decode
from training.corpora.known import corpus
from training.errors import DataError

FULL_SCALE = 32768  # of 16-bit samples
SHARD_BYTES = 8 << 30  # of the cache: 75 hours at 16 kHz
AHEAD = 64  # files that are decoded while the one before them is written

# The streams of draws of a run, each seeded by (seed, stream, ...). None is 0, and each is written out: NumPy
# takes the seeds (42, 3) and (42, 3, 0) for the same.
ORDER, SEGMENTS, STATISTICS, AUGMENTATION, WAVEFORMS, LENGTHS = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Unreadable:
    path: str
    reason: str


@dataclass(frozen=True)
class Clips:
    """All clips end to end: `samples` (total,) int16, clip i from `starts[i]` to `starts[i + 1]`."""

    samples: "NDArray[np.int16] | Shards"
    starts: NDArray[np.int64]
    sample_rate: int
    unreadable: list[Unreadable]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) samples of each clip."""
        return np.diff(self.starts)

    @property
    def hours(self) -> float:
        return float(self.starts[-1]) / self.sample_rate / 3600

    def segment(self, clip: int, start: int, length: int) -> NDArray[np.float32]:
        """At most `length` samples of a clip from `start` on, float32 in [-1, 1]."""
        begin = self.starts[clip] + start
        end = min(begin + length, self.starts[clip + 1])
        return self.samples[begin:end].astype(np.float32) * np.float32(1 / FULL_SCALE)


class Shards:
    """Arrays of samples end to end, sliced as if they were one. No slice reaches from one into the next."""

    def __init__(self, arrays: Sequence[NDArray[np.int16]]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, piece: slice) -> NDArray[np.int16]:
        shard = min(int(np.searchsorted(self._ends, piece.start, side="right")), len(self._arrays) - 1)
        begin = self._ends[shard] - len(self._arrays[shard])
        return self._arrays[shard][piece.start - begin : piece.stop - begin]


def find_audio(data: Path, where: dict[str, str] | None = None) -> list[Path]:
    """The audio files of a folder (all below it), of a CSV (its rows with these values) or of a corpus, each
    once."""
    if (sounds := corpus(data, where or {})) is not None:
        paths = list(dict.fromkeys(sound.path for sound in sounds))
    elif data.is_dir():
        paths = audio_files([data])
    else:
        paths = list(dict.fromkeys(path for path, _ in rows_of_csv(data, where or {})))
    if not paths:
        raise DataError(f"{data} holds no audio: a folder of sounds or a CSV of their paths is needed.")
    return paths


def rows_of_csv(
    table: Path, where: dict[str, str], *, needs: tuple[str, ...] = ()
) -> Iterator[tuple[Path, dict[str, str]]]:
    """(path of the sound, row) of the rows with these values; cells that a row lacks are empty.

    Raises DataError where the table is none, or lacks a column of `where` or `needs`.
    """
    if not table.is_file():
        raise DataError(f"{table} is neither a folder nor a CSV file.")
    try:
        for path, row in listed_paths(table, needs=(*needs, *where)):
            if all(row[name] == value for name, value in where.items()):
                yield path, row
    except ListingError as error:
        raise DataError(f"{error}.") from error


def load_clips(paths: list[Path], *, sample_rate: int, cache: Path) -> Clips:
    """Every readable file as samples, from the cache where the same files were decoded before.

    Files that cannot be decoded are skipped and listed in `unreadable`; DataError if none is left, OSError
    if the disk has no room for the cache.
    """
    cache.mkdir(parents=True, exist_ok=True)
    stem = cache / fingerprint(paths, sample_rate)
    with stem.with_suffix(".lock").open("w") as lock_file:  # a second process waits for the first one's work
        lock(lock_file)
        if not is_whole(stem):
            decode_all(paths, sample_rate, stem)
    index = json.loads(stem.with_suffix(".json").read_text())
    starts = np.array(index["starts"], dtype=np.int64)
    unreadable = [Unreadable(**item) for item in index["unreadable"]]
    if len(starts) < 2:
        raise DataError(f"None of the {len(paths)} files could be decoded; the first: {unreadable[0].reason}")
    shards = [
        np.memmap(shard_file(stem, number), dtype=np.int16, mode="r")
        for number in range(index.get("shards", 1))
    ]
    samples = shards[0] if len(shards) == 1 else Shards(shards)
    return Clips(samples=samples, starts=starts, sample_rate=sample_rate, unreadable=unreadable)


def is_whole(stem: Path) -> bool:
    """The index of a cache and all its shards are there."""
    index = stem.with_suffix(".json")
    if not index.is_file():
        return False
    shards = json.loads(index.read_text()).get("shards", 1)
    return all(shard_file(stem, number).is_file() for number in range(shards))


def fingerprint(paths: Iterable[Path], sample_rate: int) -> str:
    """Changes when a file is added, removed, changed in size or date, or the rate is another."""
    digest = hashlib.sha256(str(sample_rate).encode())
    for path in paths:
        file = archive_of(path) or path
        state = file.stat() if file.exists() else None
        known = f"\n{path.absolute()} {state and (state.st_size, state.st_mtime_ns)}"
        digest.update(known.encode(errors="surrogateescape"))  # of a name that is no UTF-8, its bytes
    return digest.hexdigest()[:24]


@dataclass
class Progress:
    """What the shards that are whole hold: files read, where each clip begins, and what could not be read."""

    files: int = 0
    shards: int = 0
    starts: list[int] = field(default_factory=lambda: [0])
    unreadable: list[dict[str, str]] = field(default_factory=list)


def shard_file(stem: Path, number: int) -> Path:
    return stem.with_suffix(f".{number}.i16" if number else ".i16")


def decode_all(paths: list[Path], sample_rate: int, stem: Path) -> None:
    """Write the shards, and then, when all is there, stem.json."""
    decoded = stem.with_suffix(".decoded")
    progress = Progress(**json.loads(decoded.read_text())) if decoded.is_file() else Progress()
    if not all(shard_file(stem, number).is_file() for number in range(progress.shards)):
        progress = Progress()
    cores, _ = usable_cores()
    pool = ThreadPoolExecutor(cores)
    bar = tqdm(total=len(paths), initial=progress.files, desc="decode")
    try:
        remaining = paths[progress.files :]
        results = in_order(pool, lambda path: samples_or_reason(path, sample_rate), remaining)
        for _ in fill_shards(zip(remaining, results, strict=True), progress, stem, bar):
            write_whole(decoded, json.dumps(asdict(progress)).encode())
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    index = {"starts": progress.starts, "shards": progress.shards, "unreadable": progress.unreadable}
    write_whole(stem.with_suffix(".json"), json.dumps(index).encode())
    decoded.unlink(missing_ok=True)


def fill_shards(
    results: Iterator[tuple[Path, NDArray[np.int16] | str]], progress: Progress, stem: Path, bar: tqdm
) -> Iterator[None]:
    """One shard after the other, of at most SHARD_BYTES and one clip; yields when one is whole, and then
    `progress` tells of whole shards alone."""
    part = stem.with_suffix(".part")
    is_last = False
    while not is_last:
        try:
            with part.open("wb") as file:
                is_last = True
                for path, result in results:
                    bar.update()
                    progress.files += 1
                    if isinstance(result, str):
                        progress.unreadable.append(asdict(Unreadable(path=str(path), reason=result)))
                        continue
                    file.write(result.tobytes())
                    progress.starts.append(progress.starts[-1] + len(result))
                    if file.tell() >= SHARD_BYTES:
                        is_last = False
                        break
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        if is_last and progress.shards and not part.stat().st_size:
            part.unlink()  # the one before was filled to its end
            return
        part.replace(shard_file(stem, progress.shards))
        progress.shards += 1
        yield


T = TypeVar("T")
R = TypeVar("R")


def in_order(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What the function makes of each, at most AHEAD of them before they are asked for."""
    rest = iter(items)
    ahead: deque[Future[R]] = deque()
    while True:
        ahead.extend(pool.submit(function, item) for item in islice(rest, AHEAD - len(ahead)))
        if not ahead:
            return
        yield ahead.popleft().result()


def samples_or_reason(path: Path, sample_rate: int) -> NDArray[np.int16] | str:
    try:
        samples = decode(source_of(path), sample_rate=sample_rate).samples
    except (ViolaError, OSError) as error:
        return str(error)
    if not len(samples):
        return f"the file lasts less than one sample at {sample_rate} Hz"
    return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def epoch_order(
    clips: Clips, *, segment: int, draws_power: float, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The clips of one epoch in random order, each (length / segment)^draws_power times and at least once.

    The fraction of a draw is drawn (systematic sampling), and all draws together are stretched to a whole
    number, so every epoch has the same number of draws.
    """
    random = np.random.default_rng((seed, ORDER, epoch))
    draws = np.maximum(clips.lengths / segment, 1.0) ** draws_power
    total = math.ceil(draws.sum())
    ends = np.floor(np.cumsum(draws) * (total / draws.sum()) + random.random())
    ends[-1] = total
    counts = np.diff(np.minimum(ends, total), prepend=0).astype(np.int64)
    return random.permutation(np.repeat(np.arange(len(clips)), counts))


def draw_segments(
    clips: Clips,
    order: NDArray[np.int64],
    *,
    segment: int,
    distance: int,
    short_clips: str,
    seed: tuple[int, ...],
) -> NDArray[np.float32]:
    """(2, B, segment) float32: per clip two segments that start at most `distance` samples apart.

    Every start within the clip is equally likely, the last included. Clips shorter than a segment are
    padded with zeros.
    """
    random = np.random.default_rng(seed)
    room = np.maximum(clips.lengths[order] - segment, 0)
    first = random.integers(0, room + 1)
    low, high = np.maximum(first - distance, 0), np.minimum(first + distance, room)
    second = random.integers(low, high + 1)
    out = np.zeros((2, len(order), segment), dtype=np.float32)
    for view, begins in enumerate((first, second) if distance else (first,)):
        for row, (clip, start) in enumerate(zip(order, begins, strict=True)):
            samples = clips.segment(clip, start, segment)
            left = (segment - len(samples)) // 2 if short_clips == "zeros-both" else 0
            out[view, row, left : left + len(samples)] = samples
    return out if distance else out[:1]
