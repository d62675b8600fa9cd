"""Files in, embeddings out, in order: the server's pipeline without HTTP.

    paths ─► decode and log-mel, ahead, in `workers` threads ─► rounds ─► batches ─► pooled ─► results

Files are decoded while the model computes, so that two cores are used. A round gathers the windows of one
long file or of many short ones, groups them by padded length and runs them in batches of `batch_frames`.
Neither a long file nor a long list is ever held as a whole.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.audio import SUFFIXES, AudioStream
from service.errors import ViolaError
from service.model import Model
from service.windows import Piece, Pool, cut, embed_pieces

BATCH_FRAMES = 2048  # log-mel frames in a batch: about twenty clips of 1 s
BATCHES_A_ROUND = 2
FILES_AHEAD = 96  # more short clips than a round has, so that the next round is decoded during this one
PIECES_AHEAD = 4  # windows of a long file: a round of them


@dataclass(frozen=True)
class FileResult:
    """One file: its embedding (D,) float32 and its length in seconds, or a sentence on what is wrong."""

    path: Path
    embedding: NDArray[np.float32] | None = None
    duration_s: float | None = None
    error: str | None = None


def embed_files(
    model: Model, paths: Iterable[Path], *, workers: int = 1, batch_frames: int = BATCH_FRAMES
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
    found: list[Path] = []
    for path in paths:
        found += _audio_files_below(path) if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def _audio_files_below(folder: Path) -> list[Path]:
    def is_wanted(path: Path) -> bool:
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        return path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file()

    return sorted(filter(is_wanted, folder.rglob("*")))


class _Clip:
    """A file on its way through the pipeline, decoded part by part."""

    def __init__(self, model: Model, path: Path) -> None:
        self.pool = Pool(model.card)
        self._path = path
        self._error: str | None = None
        self._audio = AudioStream(path, sample_rate=model.card.sample_rate)
        self._pieces = cut(model.logmel_blocks(self._audio), model.card.windows)

    def decode_part(self) -> "_Part":
        """Called in a decode thread, for one part at a time."""
        try:
            pieces = list(islice(self._pieces, PIECES_AHEAD))
        except ViolaError as error:
            self._error = str(error)
            return _Part(self, [], is_last=True)
        return _Part(self, pieces, is_last=len(pieces) < PIECES_AHEAD)

    def result(self) -> FileResult:
        if self._error:
            return FileResult(self._path, error=self._error)
        return FileResult(self._path, self.pool.result().vector, self._audio.duration_s)


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
