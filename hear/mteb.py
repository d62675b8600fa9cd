"""A model folder or a running server as MTEB calls a model: DataLoaders of sounds or texts in, vectors out.

    python -m hear.mteb models/byola                              all of MAEB that the model can take part in
    python -m hear.mteb http://localhost:8000 --tasks ESC50       some tasks, of what a server gives

MAEB, the audio tasks of MTEB, asks for `mteb[audio]`, of 2.8 or newer. MTEB brings each sound to the card's
rate and mono; from there on the pipeline is the server's. Results lie in --results, each beside the
model_meta.json that a leaderboard's entry needs.
"""

import argparse
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import mteb
import numpy as np
import onnx
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import AudioCollator
from mteb.results import ModelResult
from mteb.types import Licenses
from torch.utils.data import DataLoader

from service.inference.card import TEXT_GRAPH
from service.inference.model import GRAPH_FILES

from .source import Array, Folder, Source, open_source

WITH_TEXT, WITHOUT_TEXT = "MAEB(v1)", "MAEB(v1, audio-only)"
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
NAME = re.compile(r"[\w.-]+/[\w.-]+")
LICENCES = set(get_args(Licenses))


class Encoder(AbsEncoder):
    """What MTEB evaluates. normalize: vectors as /embed gives them with `normalize`."""

    def __init__(self, source: Source, meta: ModelMeta, *, normalize: bool = False) -> None:
        self.model = source
        self.mteb_model_meta = meta
        self.normalize = normalize

    def encode(self, inputs: DataLoader[Any], **_task: Any) -> Array:
        """Batches with `audio` or `text` -> (n, D) float32, in their order. The task changes nothing. Raises
        ValueError for what has neither, or both in one input; NoText for texts, where the model has no
        text tower; and what the tower raises."""
        given = {"audio", "text"} & set(inputs.dataset.features)  # type: ignore[attr-defined]
        if len(given) != 1:
            raise ValueError(
                f"The inputs have {' and '.join(sorted(given)) or 'neither audio nor text'}: this model "
                "makes a vector of a sound or of a text."
            )
        if given == {"text"}:
            batches = (self.model.text_vectors(each["text"], normalize=self.normalize) for each in inputs)
        else:
            inputs.collate_fn = AudioCollator(target_sampling_rate=self.model.card.sample_rate)
            batches = (self.model.vectors(sounds_of(each), normalize=self.normalize) for each in inputs)
        return np.concatenate(list(batches))


def sounds_of(batch: dict[str, Any]) -> list[Array]:
    """A batch of MTEB's -> its sounds, (n_samples,) float32 each."""
    return [np.ascontiguousarray(one["array"], dtype=np.float32).reshape(-1) for one in batch["audio"]]


def meta_of(
    source: Source,
    *,
    name: str | None = None,
    trained_on: Iterable[str] | None = None,
    normalize: bool = False,
) -> ModelMeta:
    """What a leaderboard wants to know of a model, by its card.

    name: as organization/model, by default viola/<card's name>. trained_on: names of MTEB's tasks that the
    model has learnt from; None where nobody said. normalize: a variant of its own. The revision has the
    version and the graph's SHA-256, so that a model that was trained anew never takes over old results.
    Raises ValueError for a name without a slash.
    """
    card = source.card
    name = name or f"viola/{card.name}"
    if not NAME.fullmatch(name):
        raise ValueError(f"{name} is no name of a model in MTEB: give organization/model")
    licence = card.licence.lower()
    return ModelMeta(
        loader=None,
        name=name,
        revision=f"{card.version}-{card.files[GRAPH_FILES[source.precision]][:12]}",
        release_date=card.created,
        languages=None,
        n_parameters=_parameters(source),
        n_embedding_parameters=None,
        memory_usage_mb=_megabytes(source),
        max_tokens=card.text.max_tokens if card.text and source.has_text else None,
        embed_dim=card.embedding_size,
        license=cast(Any, licence if licence in LICENCES else None),
        open_weights=True if licence in LICENCES else None,
        public_training_code=None,
        public_training_data=None,
        framework=["ONNX"],
        similarity_fn_name=cast(Any, "cosine"),
        use_instructions=False,
        training_datasets=None if trained_on is None else set(trained_on),
        modalities=["audio", "text"] if source.has_text else ["audio"],
        experiment_kwargs={"normalize": True} if normalize else None,
    )


def _graphs(source: Source) -> list[Path]:
    """Of the folder, in float32: the encoder's and the text tower's; none where a server has them."""
    if not isinstance(source, Folder) or source.path is None:
        return []
    names = ["encoder.onnx", *([TEXT_GRAPH] if source.has_text else [])]
    return [source.path / name for name in names]


def _parameters(source: Source) -> int | None:
    """The numbers in the graphs. Normalisation that was folded into a layer counts with it."""
    graphs = [onnx.load(str(path)).graph for path in _graphs(source)]
    tensors = [each for graph in graphs for each in graph.initializer if each.data_type in FLOATS]
    return sum(math.prod(each.dims) for each in tensors) if graphs else None


def _megabytes(source: Source) -> float | None:
    n_parameters = _parameters(source)
    return None if n_parameters is None else round(4 * n_parameters / 2**20, 1)


def evaluate(encoder: Encoder, tasks: Any, results: Path, *, batch_size: int = 32) -> ModelResult:
    """Runs MTEB's tasks, or a benchmark of its; what was run before is read. A task that fails is left out,
    and named by the result's `exceptions`."""
    return mteb.evaluate(
        encoder,
        tasks,
        cache=mteb.ResultCache(results),
        encode_kwargs={"batch_size": batch_size},
        raise_error=False,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Runs what the command line says; 1 where a task failed."""
    parser = argparse.ArgumentParser(prog="python -m hear.mteb", description="MAEB, for a model of viola.")
    parser.add_argument("model", help="a model folder, or a server's address: http://…/?model=NAME")
    parser.add_argument(
        "--benchmark",
        help=f"of MTEB; by default {WITHOUT_TEXT}, or {WITH_TEXT} where the model has a text tower",
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="instead of a benchmark: MTEB's names")
    parser.add_argument("--results", type=Path, default=Path("results"), help="a folder (default: results)")
    parser.add_argument("--precision", default="float32", choices=["float32", "float16", "int8", "auto"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "tensorrt"])
    parser.add_argument("--normalize", action="store_true", help="vectors as of /embed?normalize=true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--name", help="as organization/model (default: viola/<the card's name>)")
    parser.add_argument(
        "--trained-on", nargs="*", metavar="TASK", help="tasks of MTEB whose sounds the model has learnt from"
    )
    asked = parser.parse_args(words)

    source = open_source(asked.model, precision=asked.precision, device=asked.device)
    meta = meta_of(source, name=asked.name, trained_on=asked.trained_on, normalize=asked.normalize)
    if asked.tasks:
        tasks = mteb.get_tasks(tasks=asked.tasks)
    else:
        tasks = mteb.get_benchmark(asked.benchmark or (WITH_TEXT if source.has_text else WITHOUT_TEXT))
    encoder = Encoder(source, meta, normalize=asked.normalize)
    result = evaluate(encoder, tasks, asked.results, batch_size=asked.batch_size)
    for task in result.task_results:
        sys.stdout.write(f"{task.task_name}\t{task.get_score():.4f}\n")
    failed = result.exceptions or []
    for error in failed:
        sys.stderr.write(f"{error.task_name} failed: {error.exception}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
