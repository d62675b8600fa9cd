"""What every layer of an encoder knows: a run, a model or a published checkpoint in, accuracies out.

    clip ─► log-mel ─► encoder, all its layers side by side ─► pooled ─► one vector per layer
                                                                              │
         each layer, the best pairs, the encoder's own output ◄───────────────┘  ─► linear evaluation

Layers are counted as in arXiv 2205.08138. A pair is two layers' vectors end to end: what the fused encoder
gives. Every clip is embedded once. A pair chosen by the test clips of the same tasks is
flattered by them.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from tqdm import tqdm

import encoders
from encoders import Encoder, build_any, torch_file
from encoders.byola_layers import BYOLALayers, layer_sizes
from encoders.contract import AnyEncoder
from encoders.frontend import Frontend, mel_filterbank, window_of
from encoders.published import WrongWeightsError, load_published
from service.bulk.archives import source_of
from service.errors import ViolaError
from service.inference.card import Windows, load_card
from service.inference.windows import split
from service.sound import logmel as served
from service.sound.audio import decode
from training.clips import DataError
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.recipe import BYOLARecipe, recipe_of
from training.pretrain.sampler import Statistics
from training.pretrain.warm_start import fill_from_model
from training.probe.evaluate import Result, mean_of
from training.probe.linear import Embeddings

Evaluated = Callable[[tuple[str, ...]], list[Result]]  # names of vectors, put end to end -> a result per task

OWN = "own output"
ONLINE = "online.encoder."


@dataclass(frozen=True)
class Probed:
    """`layers`: an encoder of all layers side by side; `sizes`: by number; `plain`: the encoder itself,
    where its own output is not the last layer. mean and std normalise its log-mels."""

    name: str
    layers: AnyEncoder
    sizes: dict[int, int]
    plain: AnyEncoder | None
    mean: float
    std: float


# What is probed


def load_probed(
    source: Path, *, encoder: str | None = None, mean: float | None = None, std: float | None = None
) -> Probed:
    """A run's folder, a model's folder, or with the name of its `encoder` a published checkpoint.

    Raises CheckpointError or ModelFolderError.
    """
    if encoder:
        return _published(source, encoder, mean, std)
    if (source / checkpoint.FILE_NAME).is_file():
        return _of_run(source)
    if (source / "card.json").is_file():
        return _of_model(source)
    raise CheckpointError(
        f"{source} is neither a run's folder nor a model's: name with --encoder whose weights it holds."
    )


def _of_run(folder: Path) -> Probed:
    """Its average weights where the recipe keeps an average, as an export takes them."""
    state = checkpoint.load(folder)
    recipe = recipe_of(state["recipe"])
    if not isinstance(recipe.encoder, BYOLARecipe):
        raise CheckpointError(
            f"{folder} holds an {recipe.encoder.name}, whose layers are not told apart here: export it, with "
            "--fuse where it may, and evaluate the model's folder."
        )
    encoder = encoders.build(**asdict(recipe.encoder))
    last = {
        key.removeprefix(ONLINE): value for key, value in state["model"].items() if key.startswith(ONLINE)
    }
    encoder.load_state_dict(state["average"] if recipe.optimisation.average_decay > 0 else last)
    return _of_byola(recipe.encoder.name, encoder, Statistics(**state["statistics"]))


def _of_model(folder: Path) -> Probed:
    card = load_card(folder)
    if card.encoder.name not in encoders.ENCODERS or "fuse" in card.encoder.parameters:
        raise CheckpointError(
            f"{folder} holds a {card.encoder.name}, whose graph keeps no layers apart: give the checkpoint "
            "that it was made from, and --encoder."
        )
    parameters = cast(dict[str, int], card.encoder.parameters)
    encoder = encoders.build(card.encoder.name, **parameters).eval()
    x = torch.randn(4, 1, encoder.n_mels, 96, generator=torch.Generator().manual_seed(0))
    statistics = fill_from_model(folder, encoder, card.normalization.mean + card.normalization.std * x)
    return _of_byola(card.encoder.name, encoder, statistics)


def _of_byola(name: str, encoder: Encoder, statistics: Statistics) -> Probed:
    sizes = layer_sizes(encoder)
    layers = BYOLALayers(encoder, tuple(sizes)).eval().requires_grad_(False)
    plain = encoder.eval().requires_grad_(False)
    return Probed(name, layers, sizes, plain, statistics.mean, statistics.std)


def _published(source: Path, name: str, mean: float | None, std: float | None) -> Probed:
    kind = encoders.FROZEN.get(name)
    numbers: tuple[int, ...] = getattr(kind, "layers", ())
    if not numbers:
        able = ", ".join(name for name, kind in encoders.FROZEN.items() if hasattr(kind, "layers"))
        raise CheckpointError(
            f"'{name}' has no layers to probe: there are {able}; BYOL-A from a run or a model."
        )
    try:
        published = load_published(name, _read(source), fuse=numbers)
    except WrongWeightsError as error:
        raise CheckpointError(f"{source}: {error}") from error
    encoder = published.encoder
    mean = getattr(encoder, "mean", None) if mean is None else mean
    std = getattr(encoder, "std", None) if std is None else std
    if mean is None or std is None:
        raise CheckpointError(f"{name} does not say how its log-mels are normalised: give --mean and --std.")
    with torch.device("meta"):
        of_one = [build_any(name, **{**published.parameters, "fuse": (number,)}) for number in numbers]
    sizes = {number: each.embedding_size for number, each in zip(numbers, of_one, strict=True)}
    return Probed(name, encoder, sizes, None, mean, std)


def _read(source: Path) -> Any:
    if not source.is_file():
        raise CheckpointError(f"{source} is no file.")
    if source.suffix == ".safetensors":
        return safetensors.torch.load_file(source)
    try:
        return torch_file.load(source)
    except torch_file.TorchFileError as error:
        raise CheckpointError(f"{source} cannot be read as a file of torch.save: {error}") from error


# Its layers' vectors


def embed_layers(
    probed: Probed, paths: Iterable[Path], *, workers: int = 2
) -> dict[Path, dict[str, Embeddings]]:
    """For every path, the vector (D,) of each layer: of `#1`, `#2`, … and of the encoder's own output."""
    unique = list(dict.fromkeys(paths))
    frontend = probed.layers.frontend
    assert isinstance(frontend, Frontend)  # a run's encoder hears a log-mel
    one = partial(_embed, probed, log_mel_of(frontend))
    with ThreadPoolExecutor(workers) as pool:
        vectors = tqdm(pool.map(one, unique), total=len(unique), desc="embed", unit="clip")
        return dict(zip(unique, vectors, strict=True))


def log_mel_of(frontend: Frontend) -> served.LogMel:
    """The server's log-mel, of the encoder's numbers and arrays."""
    numbers = {name: getattr(frontend, name) for name in served.Frontend.model_fields}
    return served.LogMel(served.Frontend(**numbers), window_of(frontend), mel_filterbank(frontend))


@torch.inference_mode()
def _embed(probed: Probed, log_mel: served.LogMel, path: Path) -> dict[str, Embeddings]:
    frontend = probed.layers.frontend
    try:
        samples = decode(source_of(path), sample_rate=frontend.sample_rate).samples
    except ViolaError as error:
        raise DataError(f"{path} cannot be embedded: {error}") from error
    missing = frontend.samples_for(probed.layers.windows.min_frames) - len(samples)
    x = torch.from_numpy(log_mel(np.pad(samples, (0, max(0, missing)))))
    x = ((x - probed.mean) / probed.std)[None, None]
    ends = np.cumsum(list(probed.sizes.values()))[:-1]
    parts = np.split(pooled(probed.layers, x), ends)
    vectors = {name_of((number,)): part for number, part in zip(probed.sizes, parts, strict=True)}
    return vectors | ({OWN: pooled(probed.plain, x)} if probed.plain else {})


def pooled(encoder: AnyEncoder, x: torch.Tensor) -> Embeddings:
    """A clip's (1, 1, F, T) -> (D,): in one pass, or the mean of independent windows by their length."""
    windows = Windows(**asdict(encoder.windows))
    if windows.kind == "exact":
        return cast(Embeddings, encoder.pool(encoder(x))[0].numpy())
    pieces = split(x.shape[-1], windows)
    vectors = [encoder.pool(encoder(x[..., piece.start : piece.stop]))[0].numpy() for piece in pieces]
    lengths = [piece.stop - piece.start for piece in pieces]
    return cast(Embeddings, np.average(vectors, axis=0, weights=lengths).astype(np.float32))


# What they are worth


def probe(
    probed: Probed, evaluated: Evaluated, *, pairs: int, report: Callable[[str], None]
) -> dict[str, list[Result]]:
    """The results per task of each layer, of the most promising pairs, and of the encoder's own output."""
    singles = {}
    for number in probed.sizes:
        singles[number] = evaluated((name_of((number,)),))
        report(f"{name_of((number,))}: mean {mean_of(singles[number]):.4f}")
    results = {name_of((number,)): result for number, result in singles.items()}
    for pair in promising_pairs(singles, pairs):
        results[name_of(pair)] = evaluated(tuple(name_of((number,)) for number in pair))
        report(f"{name_of(pair)}: mean {mean_of(results[name_of(pair)]):.4f}")
    if probed.plain:
        results[OWN] = evaluated((OWN,))
    return results


def name_of(layers: Sequence[int]) -> str:
    """#2, or #2#4 of a pair."""
    return "".join(f"#{number}" for number in layers)


def promising_pairs(results: dict[int, list[Result]], count: int) -> list[tuple[int, int]]:
    """The pairs of layers whose better one per task is best in the mean over the tasks."""

    def better(pair: tuple[int, int]) -> float:
        first, second = (results[number] for number in pair)
        return float(np.mean([max(a.value, b.value) for a, b in zip(first, second, strict=True)]))

    return sorted(combinations(results, 2), key=better, reverse=True)[:count]


# What is told


def layer_table(results: dict[str, list[Result]]) -> str:
    """One row per layer, one column per task, as Markdown."""
    tasks = [result.task for result in next(iter(results.values()))]
    lines = ["| layers | " + " | ".join(tasks) + " | mean |", "|---" * (len(tasks) + 2) + "|"]
    for name, row in results.items():
        cells = [f"{value:.3f}" for value in (*(result.value for result in row), mean_of(row))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
