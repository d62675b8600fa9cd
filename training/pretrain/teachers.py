"""Teachers: folders of served models in, what they say of waveforms out.

    waveforms (B, samples) ─► the teacher's rate ─► its log-mel, windows, graph ─► embeddings (B, D)
                              (soxr)                (onnxruntime, as it is served)  └─► heads: scores (B, C)

What a teacher may say is a list of subjects, in one order everywhere: its embedding, then its heads. An
efficientat with fused blocks can teach its student block by block, frame by frame, instead of its embedding:

    frames (B, T', all blocks' numbers) ─► of each block its own frames, (B, T' / repeats, numbers)
"""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Literal, cast

import numpy as np
import soxr
from numpy.typing import NDArray

from encoders.efficientat import EVERY, map_sizes
from service.inference.card import Card
from service.inference.heads import Head
from service.inference.model import Model
from service.inference.windows import Piece, Pool, cut, embed_pieces
from training.pretrain.recipe import RecipeError

Answers = tuple[NDArray[np.float32], ...]  # one (B, numbers) per subject

BATCH_FRAMES = 2048  # log-mel frames that go through the graph at once: about twenty seconds
EMBEDDING, MAP = "embedding", "map"
BLOCKWISE = "efficientat"  # the encoder whose blocks can be taught one by one
RESTRICTS = re.compile(
    r"\b(NC|ND)\b|non-?commercial|no-?deriv|proprietary|all rights reserved|research (use )?only"
    r"|not for (training|distillation)",
    re.IGNORECASE,
)


class TeacherError(ValueError):
    """A teacher that cannot teach this: the sentence says why, and what would be right."""


@dataclass(frozen=True)
class Subject:
    """What is learned from one teacher by one map or head.

    name: the teacher's, with the head's or the block's after a slash; size: how many numbers it answers with,
    of a map those of each frame; block: of a map, whose.
    """

    name: str
    kind: str  # embedding, map, or of a head multilabel or multiclass
    size: int
    block: int = 0


class Teacher:
    """A loaded model folder that answers to waveforms at `sample_rate`. threads: beside the training step."""

    def __init__(
        self, folder: Path, *, sample_rate: int, heads: Sequence[str] | None, threads: int, device: str
    ) -> None:
        """heads: those that teach, where it has them; None: those of several labels.

        Raises ModelFolderError.
        """
        chosen: Literal["auto", "cpu"] = "auto" if device == "cuda" else "cpu"
        self.model = Model.load(folder, device=chosen, precision="float32", threads=threads)
        self.card = self.model.card
        self.folder = folder
        self._rate = sample_rate
        self.heads: list[Head] = [
            head
            for name, head in self.model.heads.items()
            if (name in heads if heads is not None else head.task == "multilabel")
        ]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="teacher")

    @property
    def blocks(self) -> dict[int, int]:
        """Of an efficientat with fused blocks: each block, and the size of its part of a frame."""
        parameters = self.card.encoder.parameters
        if self.card.encoder.name != BLOCKWISE or "fuse" not in parameters:
            return {}
        fuse, width = cast(list[int], parameters["fuse"]), cast(float, parameters["width"])
        return {block: map_sizes(width)[block] for block in fuse}

    def subjects(self, *, embedding: bool, tags: bool, maps: bool = False) -> list[Subject]:
        if maps and self.blocks:
            found = [Subject(f"{self.card.name}/{k}", MAP, size, k) for k, size in self.blocks.items()]
        else:
            found = [Subject(self.card.name, EMBEDDING, self.card.embedding_size)] if embedding else []
        if tags:
            found += [Subject(f"{self.card.name}/{h.name}", h.task, len(h.labels)) for h in self.heads]
        return found

    def refuse_short(self, samples: int) -> None:
        """Raises RecipeError where crops of so many samples are shorter than its shortest input."""
        shortest_s = self.card.min_samples / self.card.sample_rate
        if samples / self._rate < shortest_s:
            raise RecipeError(
                f"data.segment_s = {samples / self._rate:g} is too short for the teacher {self.card.name}, "
                f"whose shortest input is {shortest_s:g} s."
            )

    def refuse_long(self, samples: int) -> None:
        """Raises RecipeError where crops of so many samples are longer than what its maps are of."""
        longest_s = self.card.windows.frames * self.card.frontend.hop_length / self.card.sample_rate
        if samples / self._rate > longest_s:
            raise RecipeError(
                f"waveform.long_s = {samples / self._rate:g} is too long for the maps of the teacher "
                f"{self.card.name}: it hears {longest_s:g} s at once."
            )

    def embed(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, samples) -> (B, D)."""
        waveforms = self._at_its_rate(waveforms)
        pools = [Pool(self.card) for _ in waveforms]
        pieces = [
            (pool, piece)
            for pool, own in zip(pools, self._pool.map(self._pieces, waveforms), strict=True)
            for piece in own
        ]
        for batch in _batches(pieces):
            outputs = embed_pieces(self.model.run, [piece for _, piece in batch])
            for (pool, piece), output in zip(batch, outputs, strict=True):
                pool.add(piece.window, output)
        return np.stack([pool.result().vector for pool in pools])

    def maps(self, waveforms: NDArray[np.float32]) -> Answers:
        """(B, samples), of one window each -> of each of its blocks the frames, (B, T', numbers)."""
        logmels = list(self._pool.map(self.model.logmel, self._at_its_rate(waveforms)))
        size = max(1, BATCH_FRAMES // logmels[0].shape[1])
        batches = (logmels[first : first + size] for first in range(0, len(logmels), size))
        outputs = chain.from_iterable(self.model.run(batch, frames=True) for batch in batches)
        frames = [output.frames for output in outputs if output.frames is not None]
        finest = min(EVERY[block] for block in self.blocks)  # theirs the others are repeated to
        maps, begin = [], 0
        for block, numbers in self.blocks.items():
            part = slice(begin, begin + numbers)
            maps.append(np.stack([each[:: EVERY[block] // finest, part] for each in frames]))
            begin += numbers
        return tuple(maps)

    def answers(
        self, waveforms: NDArray[np.float32], *, embedding: bool, tags: bool, maps: bool = False
    ) -> Answers:
        """One array per subject."""
        by_block = self.maps(waveforms) if maps and self.blocks else None
        if by_block is not None and not (tags and self.heads):
            return by_block
        vectors = self.embed(waveforms)
        scores = [head.score(vectors) for head in self.heads] if tags else []
        return (*(by_block or ([vectors] if embedding else [])), *scores)

    def described(self) -> dict[str, object]:
        """For data.json and the checkpoint: which folder it was, to the bit."""
        stems = {"encoder", "frontend", *(f"heads/{head.name}" for head in self.heads)}
        files = [name for name in self.card.files if name.rpartition(".")[0] in stems]
        described: dict[str, object] = {
            "name": self.card.name,
            "version": self.card.version,
            "licence": self.card.licence,
            "heads": [head.name for head in self.heads],
            "sha256": {name: self.card.files[name] for name in files},
        }
        if sentence := restriction_of(self.card):
            described["restriction"] = sentence
        return described

    def _at_its_rate(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.card.sample_rate == self._rate:
            return waveforms
        heard = soxr.resample(np.ascontiguousarray(waveforms.T), self._rate, self.card.sample_rate)
        return np.ascontiguousarray(heard.T, dtype=np.float32)

    def _pieces(self, waveform: NDArray[np.float32]) -> list[Piece]:
        return list(cut([self.model.logmel(waveform)], self.card.windows))


def restriction_of(card: Card) -> str | None:
    """A sentence where the licence of a teacher forbids something that others allow, to be told and kept."""
    if not RESTRICTS.search(card.licence):
        return None
    return (
        f"The licence of the teacher {card.name} ({card.licence}) restricts what is made with it: weights "
        "that it taught may fall under that."
    )


def _batches(pieces: list[tuple[Pool, Piece]]) -> Iterable[list[tuple[Pool, Piece]]]:
    """Pieces of one length together, so that none is padded for another."""

    def length(item: tuple[Pool, Piece]) -> int:
        return item[1].logmel.shape[1]

    for frames, group in groupby(sorted(pieces, key=length), key=length):
        alike = list(group)
        size = max(1, BATCH_FRAMES // frames)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def load_teachers(
    folders: Sequence[Path],
    *,
    sample_rate: int,
    heads: Sequence[str] | None,
    needs_tags: bool,
    threads: int,
    device: str,
    needs_maps: bool = False,
) -> list[Teacher]:
    """Raises TeacherError or ModelFolderError."""
    if not folders:
        raise TeacherError("Nobody teaches: name at least one model folder with --teacher.")
    teachers = [
        Teacher(folder, sample_rate=sample_rate, heads=heads, threads=threads, device=device)
        for folder in folders
    ]
    names = [teacher.card.name for teacher in teachers]
    for name in names:
        if names.count(name) > 1:
            raise TeacherError(f"Two teachers are called {name}: give one of them another name in its card.")
    if needs_tags:
        refuse_headless(teachers, heads)
    if needs_maps and not any(teacher.blocks for teacher in teachers):
        raise TeacherError(
            f"{', '.join(names)} cannot teach block by block: import an efficientat with --fuse "
            "2,4,6,9,12,15,16 as one more teacher, or set distil.map_weight=0."
        )
    return teachers


def refuse_headless(teachers: Sequence[Teacher], heads: Sequence[str] | None) -> None:
    """Raises TeacherError where a named head, or any at all, is missing."""
    there = {name for teacher in teachers for name in teacher.model.heads}
    for name in heads or []:
        if name not in there:
            raise TeacherError(
                f"No teacher has a head '{name}': the heads are {', '.join(sorted(there)) or 'none'}."
            )
    if not any(teacher.heads for teacher in teachers):
        names = ", ".join(teacher.card.name for teacher in teachers)
        found = f"its heads {', '.join(sorted(there))} give one label each" if there else "it has no head"
        raise TeacherError(
            f"{names} cannot teach tags: {found}. Name a head with --teacher-head, or set "
            "distil.tag_weight=0."
        )
