"""Files in, embeddings out, in order: the server's pipeline without HTTP.

    paths ─► decode and log-mel, ahead, in `workers` threads ─► rounds ─► batches ─► pooled ─► results

Files are decoded while the model computes, so that two cores are used. A round gathers the windows of one
long file or of many short ones, groups them by padded length and runs them in batches of `batch_frames`.
Neither a long file nor a long list is ever held as a whole.

A file of this machine is named by its Path, one elsewhere by a URL (s3://, gs://, ... through fsspec), which
is fetched by the thread that decodes it.
"""

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path, PurePath
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from service.audio import SUFFIXES, AudioStream, Samples
from service.errors import AudioMissing, ViolaError
from service.model import Model
from service.windows import Piece, Pool, cut, embed_pieces

BATCH_FRAMES = 2048  # log-mel frames in a batch: about twenty clips of 1 s
BATCHES_A_ROUND = 2
FILES_AHEAD = 96  # more short clips than a round has, so that the next round is decoded during this one
PIECES_AHEAD = 4  # windows of a long file: a round of them
FETCHED_BYTES = 1 << 20  # of a URL's file in memory; a longer one goes into a temporary file

Place = Path | str  # a file of this machine, or a URL


@dataclass(frozen=True)
class FileResult:
    """One file: its embedding (D,) float32 and its length in seconds, or a sentence on what is wrong."""

    path: Place
    embedding: NDArray[np.float32] | None = None
    duration_s: float | None = None
    error: str | None = None


Embed = Callable[[Iterable[Place]], Iterator[FileResult]]  # one result per file, in order


def embed_files(
    model: Model, paths: Iterable[Place], *, workers: int = 1, batch_frames: int = BATCH_FRAMES
) -> Iterator[FileResult]:
    """One result per path, in input order; a bad file gives an error and the rest goes on.

    `workers` threads decode ahead while the caller's thread runs the model. `batch_frames` bounds a batch in
    padded log-mel frames.
    """
    clips = (_Clip(model, path) for path in paths)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for parts in _rounds(_decoded(clips, executor), BATCHES_A_ROUND * batch_frames):
            _run(model, parts, batch_frames)
            yield from (part.clip.result() for part in parts if part.is_last)
    finally:
        executor.shutdown(cancel_futures=True)


def audio_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are named; for a folder the audio files at any depth, by suffix, sorted, hidden ones left
    out. Each once."""
    found = (sounds_below(path) if path.is_dir() else [path] for path in paths)
    return list(dict.fromkeys(chain.from_iterable(found)))


def sounds_below(folder: Path) -> Iterator[Path]:
    """The audio files of a folder as `audio_files` has them, one after the other: no more than the names of a
    folder are held.

    A folder that cannot be read is given as it is: whoever opens it learns the reason.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if _is_wanted(entry)
            )
    except OSError:
        yield folder
        return
    for name, is_folder in found:
        if is_folder:
            yield from sounds_below(folder / name)
        else:
            yield folder / name


def _is_wanted(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    return entry.is_dir(follow_symlinks=False) or (is_sound(entry.name) and entry.is_file())


def is_sound(name: str) -> bool:
    """By its suffix."""
    return PurePath(name).suffix.lower() in SUFFIXES


@contextmanager
def fetched(url: str) -> Iterator[BinaryIO]:
    """A copy of the file that a URL names, at its beginning and seekable. Raises AudioMissing."""
    with tempfile.SpooledTemporaryFile(FETCHED_BYTES) as copy:
        try:
            import fsspec

            with fsspec.open(url, "rb") as file:
                shutil.copyfileobj(file, copy)
        except Exception as error:  # those of fsspec's many file systems share no class but this
            raise AudioMissing(f"the file cannot be fetched: {error or type(error).__name__}") from error
        copy.seek(0)
        yield cast(BinaryIO, copy)


class _Clip:
    """A file on its way through the pipeline, decoded part by part."""

    def __init__(self, model: Model, path: Place) -> None:
        self.pool = Pool(model.card)
        self._path = path
        self._error: str | None = None
        self._duration_s = 0.0
        blocks = self._blocks(model.card.sample_rate)
        self._pieces = cut(model.logmel_blocks(blocks), model.card.windows)

    def decode_part(self) -> "_Part":
        """Called in a decode thread, for one part at a time."""
        try:
            pieces = list(islice(self._pieces, PIECES_AHEAD))
        except ViolaError as error:
            self._error = str(error)
        except OSError as error:  # of the disk, or of what is no regular file
            self._error = f"the file cannot be read: {error.strerror or error}"
        else:
            return _Part(self, pieces, is_last=len(pieces) < PIECES_AHEAD)
        return _Part(self, [], is_last=True)

    def result(self) -> FileResult:
        if self._error:
            return FileResult(self._path, error=self._error)
        return FileResult(self._path, self.pool.result().vector, self._duration_s)

    def _blocks(self, sample_rate: int) -> Iterator[Samples]:
        if isinstance(self._path, Path):
            yield from self._decoded(AudioStream(self._path, sample_rate=sample_rate))
            return
        with fetched(self._path) as copy:
            yield from self._decoded(AudioStream(copy, sample_rate=sample_rate))

    def _decoded(self, audio: AudioStream) -> Iterator[Samples]:
        yield from audio
        self._duration_s = audio.duration_s


@dataclass(frozen=True)
class _Part:
    """Some windows of a clip, all of a short one."""

    clip: _Clip
    pieces: list[Piece]
    is_last: bool


def _decoded(clips: Iterator[_Clip], executor: ThreadPoolExecutor) -> Iterator[_Part]:
    """The parts of all clips in order; of each of the next FILES_AHEAD clips, one part is decoded ahead."""
    ahead: deque[tuple[_Clip, Future[_Part]]] = deque()
    while True:
        for clip in islice(clips, FILES_AHEAD - len(ahead)):
            ahead.append((clip, executor.submit(clip.decode_part)))
        if not ahead:
            return
        clip, future = ahead.popleft()
        part = future.result()
        if not part.is_last:
            ahead.appendleft((clip, executor.submit(clip.decode_part)))
        yield part


def _rounds(parts: Iterator[_Part], round_frames: int) -> Iterator[list[_Part]]:
    gathered: list[_Part] = []
    n_frames = 0
    for part in parts:
        gathered.append(part)
        n_frames += sum(piece.logmel.shape[1] for piece in part.pieces)
        if n_frames >= round_frames:
            yield gathered
            gathered, n_frames = [], 0
    yield gathered


def _run(model: Model, parts: Sequence[_Part], batch_frames: int) -> None:
    """All pieces through the model, those of one padded length together, into their clips' pools."""

    def kind(item: tuple[_Clip, Piece]) -> tuple[int, bool]:
        _, piece = item  # trimmed windows need the graph's frames: 3 MB a window that others do without
        return model.padded_length(piece.logmel.shape[1]), piece.window.is_trimmed

    items = [(part.clip, piece) for part in parts for piece in part.pieces]
    for (length, _), group in groupby(sorted(items, key=kind), key=kind):
        while batch := list(islice(group, max(1, batch_frames // length))):
            outputs = embed_pieces(model.run, [piece for _, piece in batch])
            for (clip, piece), output in zip(batch, outputs, strict=True):
                clip.pool.add(piece.window, output)
