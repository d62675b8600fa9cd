"""Sounds of all kinds in, `background.safetensors` of a model folder out: what heads are told from.

A server that is taught a head knows from it how the numbers of an embedding are spread, and what is none of
the labels. The clips are drawn evenly from every label (or folder) of the data, so that no kind of sound
outweighs the others, and are embedded as the server embeds.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from service.bulk.offline import embed_files
from service.inference.card import load_card, sha256_of, write_card
from service.inference.model import BACKGROUND, Model
from service.process.files import write_whole
from training.clips import DataError
from training.probe.linear import Embeddings

CLIPS = 256
FEWEST_CLIPS = 16
STEPS = 127  # of 8 bits with a sign


def draw(sounds: dict[str, list[Path]], clips: int, seed: int) -> list[Path]:
    """At most so many, one of each name in turn; each file once."""
    random = np.random.default_rng(seed)
    rows = {
        name: [paths[i] for i in random.permutation(len(paths))] for name, paths in sorted(sounds.items())
    }
    turns = [path for turn in range(max(map(len, rows.values()))) for path in _turn(rows, turn)]
    return list(dict.fromkeys(turns))[:clips]


def _turn(rows: dict[str, list[Path]], turn: int) -> list[Path]:
    return [paths[turn] for paths in rows.values() if turn < len(paths)]


def embedded(model: Model, paths: list[Path], *, workers: int = 1) -> tuple[Embeddings, list[str]]:
    """(n, D) of those that can be read, and a sentence on each that cannot. Raises DataError."""
    vectors, unreadable = [], []
    for result in embed_files(model, paths, workers=workers):
        if result.embedding is None:
            unreadable.append(f"{result.path}: {result.error}")
        else:
            vectors.append(result.embedding)
    if len(vectors) < FEWEST_CLIPS:
        raise DataError(
            f"{len(vectors)} clips that can be read are too few for a background: {FEWEST_CLIPS}."
        )
    return np.stack(vectors), unreadable


def write_background(folder: Path, embeddings: Embeddings, source: str) -> Path:
    """Into the model folder, in 8 bits, and its hash into the card; one that is there is replaced."""
    card = load_card(folder)
    path = folder / BACKGROUND
    scales = np.maximum(np.abs(embeddings).max(axis=1), np.finfo(np.float32).tiny) / np.float32(STEPS)
    steps = np.rint(embeddings / scales[:, None]).astype(np.int8)
    content = save({"embeddings": steps, "scales": scales.astype(np.float32)}, metadata={"source": source})
    write_whole(path, content)
    files = {**card.files, BACKGROUND: sha256_of(path)}
    write_card(folder, card.model_copy(update={"files": files}))
    return path
