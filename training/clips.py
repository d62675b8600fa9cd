"""The audio to train on: decoded once, kept as 16-bit samples at the encoder's rate, cropped at random.

In: a folder, or a CSV with a column `path` or `file_name`. Out: Clips, from which segments are drawn.

The samples lie in one memory-mapped file in the cache folder: as long as it fits, the operating system
keeps it in memory; beyond that it is read from disk as it is drawn. A second run over the same files
finds the file by the names, sizes and dates of what it was made from.
"""

import csv
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.audio import decode
from service.errors import ViolaError
from service.offline import audio_files
from service.threads import usable_cores

FULL_SCALE = 32768  # of 16-bit samples

# The streams of draws of a run, each seeded by (seed, stream, ...). None is 0, and each is written out: NumPy
# takes the seeds (42, 3) and (42, 3, 0) for the same.
ORDER, SEGMENTS, STATISTICS, AUGMENTATION = 1, 2, 3, 4


class DataError(ValueError):
    """There is nothing to train on, or the list of it does not fit: the sentence says what would be right."""


@dataclass(frozen=True)
class Unreadable:
    path: str
    reason: str


@dataclass(frozen=True)
class Clips:
    """All clips end to end: `samples` (total,) int16, clip i from `starts[i]` to `starts[i + 1]`."""

    samples: NDArray[np.int16]
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


def find_audio(data: Path, where: dict[str, str] | None = None) -> list[Path]:
    """The audio files of a folder (all below it) or of a CSV (its rows with these values), each once."""
    if data.is_dir():
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
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, restval="")
            columns = rows.fieldnames or []
            column = next((name for name in ("file_name", "path") if name in columns), None)
            if column is None:
                raise DataError(f"{table} has no column 'file_name' or 'path', only {', '.join(columns)}.")
            for name in (*needs, *where):
                if name not in columns:
                    raise DataError(f"{table} has no column '{name}', only {', '.join(columns)}.")
            for row in rows:
                if row[column] and all(row[name] == value for name, value in where.items()):
                    yield table.parent / row[column], row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a CSV file in UTF-8: {error}.") from error


def load_clips(paths: list[Path], *, sample_rate: int, cache: Path) -> Clips:
    """Every readable file as samples, from the cache where the same files were decoded before.

    Files that cannot be decoded are skipped and listed in `unreadable`; DataError if none is left, OSError
    if the disk has no room for the cache.
    """
    cache.mkdir(parents=True, exist_ok=True)
    stem = cache / fingerprint(paths, sample_rate)
    with stem.with_suffix(".lock").open("w") as lock:  # a second process waits for the first one's work
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(stem.with_suffix(suffix).is_file() for suffix in (".i16", ".json")):
            decode_all(paths, sample_rate, stem)
    index = json.loads(stem.with_suffix(".json").read_text())
    starts = np.array(index["starts"], dtype=np.int64)
    unreadable = [Unreadable(**item) for item in index["unreadable"]]
    if len(starts) < 2:
        raise DataError(f"None of the {len(paths)} files could be decoded; the first: {unreadable[0].reason}")
    samples = np.memmap(stem.with_suffix(".i16"), dtype=np.int16, mode="r")
    return Clips(samples=samples, starts=starts, sample_rate=sample_rate, unreadable=unreadable)


def fingerprint(paths: Iterable[Path], sample_rate: int) -> str:
    """Changes when a file is added, removed, changed in size or date, or the rate is another."""
    digest = hashlib.sha256(str(sample_rate).encode())
    for path in paths:
        state = path.stat() if path.exists() else None
        digest.update(f"\n{path.absolute()} {state and (state.st_size, state.st_mtime_ns)}".encode())
    return digest.hexdigest()[:24]


def decode_all(paths: list[Path], sample_rate: int, stem: Path) -> None:
    """Write stem.i16 and then, when all is there, stem.json."""
    starts, unreadable = [0], []
    part = stem.with_suffix(".part")
    cores, _ = usable_cores()
    pool = ThreadPoolExecutor(cores)
    try:
        with part.open("wb") as file:
            decoded = pool.map(lambda path: samples_or_reason(path, sample_rate), paths)
            for path, result in zip(paths, tqdm(decoded, total=len(paths), desc="decode"), strict=True):
                if isinstance(result, str):
                    unreadable.append(Unreadable(path=str(path), reason=result))
                else:
                    file.write(result.tobytes())
                    starts.append(starts[-1] + len(result))
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    part.replace(stem.with_suffix(".i16"))
    write_whole(
        stem.with_suffix(".json"),
        json.dumps({"starts": starts, "unreadable": [asdict(item) for item in unreadable]}).encode(),
    )


def samples_or_reason(path: Path, sample_rate: int) -> NDArray[np.int16] | str:
    try:
        samples = decode(path, sample_rate=sample_rate).samples
    except (ViolaError, OSError) as error:
        return str(error)
    if not len(samples):
        return f"the file lasts less than one sample at {sample_rate} Hz"
    return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """The file appears with all its content or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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
