"""Files in, embeddings or tags out, in order: the server's pipeline without HTTP.

    paths ─► decode and log-mel, ahead, in `workers` threads ─► rounds ─► batches ─► pooled ─► results

Files are decoded while the model computes, so that two cores are used. A round gathers the windows of one
long file or of many short ones, groups them by padded length and runs them in batches of `batch_frames`.
Neither a long file nor a long list is ever held as a whole.

A file of this machine is named by its Path, one elsewhere by a URL (s3://, gs://, ... through fsspec), which
is fetched by the thread that decodes it. A path may lead through an archive, too: `archives`.
"""

import os
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path, PurePath
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from service.bulk.archives import source_of
from service.errors import AudioMissing, ViolaError
from service.inference.heads import Head, Tag, best_tags, named_head
from service.inference.model import Model, Output
from service.inference.tags import clip_scores, tag_pool
from service.inference.windows import Embedding, Piece, Pool, Window, cut, embed_pieces
from service.sound.audio import AudioStream
from service.sound.blocks import Samples
from service.sound.formats import SUFFIXES

BATCH_FRAMES = 2048  # log-mel frames in a batch: about twenty clips of 1 s
BATCHES_PER_ROUND = 2
FILES_AHEAD = 96  # more short clips than a round has, so that the next round is decoded during this one
CHUNK_WINDOWS = 4  # of a long file, decoded at a time: a round of them
FETCHED_BYTES = 1 << 20  # of a URL's file in memory; a longer one goes into a temporary file

Location = Path | str  # a file of this machine, or a URL


@dataclass(frozen=True)
class Tags:
    """Of one file, by a head of a model: the best first, or none."""

    model: str
    head: str
    best: tuple[Tag, ...]


@dataclass(frozen=True)
class FileResult:
    """One file: its embedding (D,) float32 or its tags, and its length in seconds; or a sentence on what is
    wrong."""

    path: Location
    embedding: NDArray[np.float32] | None = None
    duration_s: float | None = None
    error: str | None = None
    tags: Tags | None = None


Work = Callable[[Iterable[Location]], Iterator[FileResult]]  # one result per file, in order
ModelWork = Callable[..., Iterator[FileResult]]  # (model, paths, *, workers): the same of a model


def embed_files(
    model: Model,
    paths: Iterable[Location],
    *,
    normalize: bool | None = None,
    dimensions: int | None = None,
    workers: int = 1,
    batch_frames: int = BATCH_FRAMES,
) -> Iterator[FileResult]:
    """One result per path, in input order; a bad file gives an error and the rest goes on.

    `workers` threads decode ahead while the caller's thread runs the model. `batch_frames` bounds a batch in
    padded log-mel frames. normalize, dimensions: as of /embed. Raises BadRequest where the model has none of
    it."""
    project = model.project_of(normalize=normalize, dimensions=dimensions)

    def vector_of(clip: _Clip) -> NDArray[np.float32]:
        vector = clip.embedding().vector
        return vector if project is None else project(vector[None])[0]

    new_pool = partial(_new_pool, model)
    for clip in _embedded(model, paths, new_pool, workers=workers, batch_frames=batch_frames):
        yield clip.failure() or FileResult(clip.path, vector_of(clip), clip.duration_s)


def classify_files(
    model: Model,
    paths: Iterable[Location],
    *,
    head: str | Head,
    top_k: int,
    threshold: float,
    workers: int = 1,
) -> Iterator[FileResult]:
    """The same with the tags that /classify gives. head: the name of one of the model, or one of labels.
    Raises UnknownHead."""
    scorer = head if isinstance(head, Head) else named_head(model.heads, head, model=model.card.name)

    def tags(clip: _Clip) -> Tags:
        scores = clip_scores(scorer, clip.embedding()).scores
        best = best_tags(scorer, scores, top_k=top_k, threshold=threshold)
        return Tags(model.card.name, scorer.name, tuple(best))

    for clip in _embedded(model, paths, partial(_new_tag_pool, model, scorer), workers=workers):
        yield clip.failure() or FileResult(clip.path, duration_s=clip.duration_s, tags=tags(clip))


def audio_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are named; for a folder what `audio_files_below` gives of it. Each once."""
    found = (audio_files_below(path) if path.is_dir() else [path] for path in paths)
    return list(dict.fromkeys(chain.from_iterable(found)))


def audio_files_below(folder: Path) -> Iterator[Path]:
    """The audio files of a folder at any depth, by suffix, sorted, hidden ones left out, one after the other:
    no more than the names of a folder are held. Links to files are followed, links to folders are not: what
    they lead to may lie there twice, or hold the link itself.

    A folder that cannot be read, a link to a folder and one to nowhere are given as they are: whoever opens
    them learns the reason, and `no_file` has it.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if _is_given(entry)
            )
    except OSError:
        yield folder
        return
    for name, is_folder in found:
        if is_folder:
            yield from audio_files_below(folder / name)
        else:
            yield folder / name


def no_file(path: Path) -> str | None:
    """Why a path leads to nothing that could be read as a file; None where it may, or where opening it tells
    more."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return f"it is a link to {path.readlink()}, which is not there" if path.is_symlink() else None
    if stat.S_ISDIR(mode):
        return "it is a link to a folder, which is not followed: name it, too" if path.is_symlink() else None
    return None if stat.S_ISREG(mode) else "it is a pipe, a device or a socket, and no file"


def _is_given(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link to nowhere: a sound's, or perhaps a folder's
        return is_audio_file(entry.name) or not PurePath(entry.name).suffix
    return stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and is_audio_file(entry.name))


def is_audio_file(name: str) -> bool:
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


def _embedded(
    model: Model,
    paths: Iterable[Location],
    new_pool: "NewPool",
    *,
    workers: int,
    batch_frames: int = BATCH_FRAMES,
) -> Iterator["_Clip"]:
    """The clip of each path, when its pool holds all its windows or it has failed."""
    clips = (_Clip(model, path, new_pool) for path in paths)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for chunks in _rounds(_decoded(clips, executor), BATCHES_PER_ROUND * batch_frames):
            _run(model, chunks, batch_frames)
            yield from (chunk.clip for chunk in chunks if chunk.is_last)
    finally:
        executor.shutdown(cancel_futures=True)


NewPool = Callable[[float | None], Pool]  # of a clip of so many seconds; None: it is longer than a chunk


def _new_pool(model: Model, whole_s: float | None) -> Pool:
    return Pool(model.card)


def _new_tag_pool(model: Model, head: Head, whole_s: float | None) -> Pool:
    return tag_pool(model.card, head, whole_s=whole_s)


class _Clip:
    """A file on its way through the pipeline, decoded chunk by chunk."""

    def __init__(self, model: Model, path: Location, new_pool: NewPool) -> None:
        self.path = path
        self.pool: Pool  # once the first chunk is decoded
        self._new_pool = new_pool
        self.duration_s = 0.0
        self._error: str | None = None
        blocks = self._blocks(model.card.sample_rate)
        self._pieces = cut(model.logmel_blocks(blocks), model.card.windows)

    def decode_chunk(self) -> "_Chunk":
        """In a decode thread, one chunk after the other."""
        try:
            pieces = list(islice(self._pieces, CHUNK_WINDOWS))
        except ViolaError as error:
            self._error = str(error)
        except OSError as error:  # of the disk, or of what is no regular file
            self._error = f"the file cannot be read: {error.strerror or error}"
        else:
            is_last = len(pieces) < CHUNK_WINDOWS
            if not hasattr(self, "pool"):
                self.pool = self._new_pool(self.duration_s if is_last else None)
            return _Chunk(self, pieces, is_last)
        return _Chunk(self, [], is_last=True)

    def embedding(self) -> Embedding:
        return self.pool.result(duration_s=self.duration_s)

    def failure(self) -> FileResult | None:
        return FileResult(self.path, error=self._error) if self._error else None

    def _blocks(self, sample_rate: int) -> Iterator[Samples]:
        if isinstance(self.path, Path):
            if reason := no_file(self.path):
                raise AudioMissing(reason)
            yield from self._decoded(AudioStream(source_of(self.path), sample_rate=sample_rate))
            return
        with fetched(self.path) as copy:
            yield from self._decoded(AudioStream(copy, sample_rate=sample_rate))

    def _decoded(self, audio: AudioStream) -> Iterator[Samples]:
        yield from audio
        self.duration_s = audio.duration_s


@dataclass(frozen=True)
class _Chunk:
    """Some windows of a clip, all of a short one."""

    clip: _Clip
    pieces: list[Piece]
    is_last: bool


def _decoded(clips: Iterator[_Clip], executor: ThreadPoolExecutor) -> Iterator[_Chunk]:
    """The chunks of all clips in order; of each of the next FILES_AHEAD clips, one chunk is decoded ahead."""
    ahead: deque[tuple[_Clip, Future[_Chunk]]] = deque()
    while True:
        for clip in islice(clips, FILES_AHEAD - len(ahead)):
            ahead.append((clip, executor.submit(clip.decode_chunk)))
        if not ahead:
            return
        clip, future = ahead.popleft()
        chunk = future.result()
        if not chunk.is_last:
            ahead.appendleft((clip, executor.submit(clip.decode_chunk)))
        yield chunk


def _rounds(chunks: Iterator[_Chunk], round_frames: int) -> Iterator[list[_Chunk]]:
    gathered: list[_Chunk] = []
    n_frames = 0
    for chunk in chunks:
        gathered.append(chunk)
        n_frames += sum(piece.logmel.shape[1] for piece in chunk.pieces)
        if n_frames >= round_frames:
            yield gathered
            gathered, n_frames = [], 0
    yield gathered


def _run(model: Model, chunks: Sequence[_Chunk], batch_frames: int) -> None:
    """All pieces through the model, those of one padded length together, into their clips' pools."""

    def kind(item: tuple[_Clip, Piece]) -> tuple[int, bool, bool]:
        clip, piece = item  # who needs the graph's frames, 3 MB a window, apart from those that do without
        return model.padded_length(piece.logmel.shape[1]), piece.window.is_trimmed, clip.pool.needs_frames

    items = [(chunk.clip, piece) for chunk in chunks for piece in chunk.pieces]
    outputs: dict[tuple[_Clip, Window], Output] = {}
    for (length, _, frames), group in groupby(sorted(items, key=kind), key=kind):
        while batch := list(islice(group, max(1, batch_frames // length))):
            ran = embed_pieces(model.run, [piece for _, piece in batch], frames=frames)
            outputs |= {
                (clip, piece.window): output for (clip, piece), output in zip(batch, ran, strict=True)
            }
    for clip, piece in items:  # in their order, which a pool of frames needs
        clip.pool.add(piece.window, outputs[clip, piece.window])
