"""Embeddings of many clips, each file once: by a served model, its untrained encoder, or plain statistics.

In: paths. Out: (n, D) float32 in the order of the paths.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import encoders
from service.bulk.archives import source_of
from service.bulk.offline import FileResult, embed_files
from service.errors import ViolaError
from service.inference.model import Model
from service.sound.audio import decode
from training.clips import DataError

Embed = Callable[[list[Path]], NDArray[np.float32]]
Describe = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # a log-mel (n_mels, T) -> (D,)


def served(model: Model, *, workers: int = 1) -> Embed:
    """The pipeline that the server uses, without HTTP."""

    def embed(paths: list[Path]) -> NDArray[np.float32]:
        vectors = [result.embedding for result in served_results(model, paths, workers=workers)]
        return np.stack([vector for vector in vectors if vector is not None])

    return embed


def served_results(model: Model, paths: list[Path], *, workers: int = 1) -> list[FileResult]:
    """The same with the seconds of each clip. Raises DataError where one cannot be embedded."""
    results = []
    for result in tqdm(
        embed_files(model, paths, workers=workers), total=len(paths), desc="embed", unit="clip"
    ):
        if result.embedding is None:
            raise DataError(f"{result.path} cannot be embedded: {result.error}")
        results.append(result)
    return results


def described(model: Model, describe: Describe, *, name: str, workers: int = 2) -> Embed:
    """Each clip's log-mel, by the model's front-end, turned into a vector by `describe`."""

    def one(path: Path) -> NDArray[np.float32]:
        try:
            samples = decode(source_of(path), sample_rate=model.card.sample_rate).samples
        except ViolaError as error:
            raise DataError(f"{path} cannot be embedded: {error}") from error
        return describe(model.logmel(samples))

    def embed(paths: list[Path]) -> NDArray[np.float32]:
        with ThreadPoolExecutor(workers) as pool:
            vectors: Iterable[NDArray[np.float32]] = pool.map(one, paths)
            return np.stack(list(tqdm(vectors, total=len(paths), desc=name, unit="clip")))

    return embed


def logmel_statistics(logmel: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n_mels, T) -> (4 n_mels,): per band the mean, deviation, maximum and deviation of the differences."""
    change = np.diff(logmel, axis=1).std(axis=1) if logmel.shape[1] > 1 else np.zeros(len(logmel))
    parts = [logmel.mean(axis=1), logmel.std(axis=1), logmel.max(axis=1), change]
    return np.concatenate(parts).astype(np.float32)


def untrained(model: Model, *, seed: int = 0) -> Embed:
    """The model's own encoder with the weights it starts training from."""
    card = model.card
    torch.manual_seed(seed)
    encoder = encoders.build_student(card.encoder.name, **card.encoder.parameters).eval()
    return described(
        model, partial(pooled, encoder, card.normalization.mean, card.normalization.std), name="untrained"
    )


@torch.inference_mode()
def pooled(
    encoder: encoders.Student, mean: float, std: float, logmel: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A log-mel (n_mels, T) through a torch encoder: (D,)."""
    x = (torch.from_numpy(logmel)[None, None] - mean) / std
    vector: NDArray[np.float32] = encoder.pool(encoder(x))[0].numpy()
    return vector


def embed_once(embed: Embed, paths: Iterable[Path]) -> dict[Path, NDArray[np.float32]]:
    """Every path's vector; a path that several tasks name is embedded once."""
    unique = list(dict.fromkeys(paths))
    return dict(zip(unique, embed(unique), strict=True))
