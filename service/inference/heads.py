"""Embeddings in, the scores of their labels out: small heads, from the folder `heads`.

    embeddings (n, D) ─► a hidden layer or layer norm, where the head has one; else (x - mean) / std
                         (or heads/<head>.onnx, a network of its own, whose outputs are the logits)
                      ─► @ weight.T + bias ─► softmax or sigmoid ─► scores (n, C) ─► the best tags
                      ─► known.py, where the head can tell ─► known (n,)

A file that does not fit its model is refused with a ModelFolderError whose sentence says what is wrong.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import JsonValue

from service.errors import ModelFolderError, UnknownHead, shortened
from service.inference.card import Card
from service.inference.known import KnownSounds
from service.inference.tensors import checked_tensor, read_tensors

if TYPE_CHECKING:  # its module needs the model's, which needs this one
    pass

Array = NDArray[np.float32]
AnyHead = TypeVar("AnyHead")  # itself, or what tells of it

HALF = frozenset(("weight", "hidden_weight"))  # may be float16 in the file, which halves it
FORMS = (".safetensors", ".onnx")  # of a head's file
SCORE_DIGITS = 6  # the seventh is rounding error of float32


class Tag(NamedTuple):
    """score: in [0, 1], to SCORE_DIGITS."""

    label: str
    score: float


@dataclass(frozen=True)
class Hidden:
    """A layer between the embedding and a head's linear one. weight: (H, D); bias: (H,), both float32."""

    weight: Array
    bias: Array

    def __call__(self, embeddings: Array) -> Array:
        """(n, D) -> (n, H), by way of Hardswish (arXiv 1905.02244): x, softly cut off below 0."""
        x = embeddings @ self.weight.T + self.bias
        return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1), dtype=np.float32)


class Network:
    """A head's own graph, for layers that are neither linear nor Hidden: `vector` (n, D) -> `logits` (n, C),
    both float32. One thread, since it runs where the vector is at hand; several may run it at once."""

    def __init__(self, path: Path) -> None:
        """Raises ModelFolderError."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no class but this
            raise ModelFolderError(f"{path.name} cannot be loaded: {error}") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def check(self, path: Path, *, embedding_size: int, n_labels: int) -> None:
        """Raises ModelFolderError where it takes or gives something else."""
        (inputs, outputs) = self._session.get_inputs(), self._session.get_outputs()
        found = [(each.name, each.type) for each in (*inputs, *outputs)]
        if found != [("vector", "tensor(float)"), ("logits", "tensor(float)")]:
            raise ModelFolderError(f"{path.name} must make `logits` of `vector`, both float32, not {found}")
        try:
            shape = self(np.zeros((2, embedding_size), np.float32)).shape
        except Exception as error:  # as above
            raise ModelFolderError(
                f"{path.name} cannot read two vectors of {embedding_size} numbers: {error}"
            ) from error
        if shape != (2, n_labels):
            raise ModelFolderError(f"{path.name} makes {shape} of two vectors, not (2, {n_labels} labels)")

    def __call__(self, embeddings: Array) -> Array:
        (logits,) = self._session.run(["logits"], {"vector": np.ascontiguousarray(embeddings, np.float32)})
        return np.asarray(logits)


@dataclass(frozen=True)
class Head:
    """A linear head. scaler_mean, scaler_std: (D,); weight: (C, D); bias: (C,), all float32; C labels.

    layer_norm_eps: each embedding is first brought to mean 0 and variance 1 over its own numbers; None: not.
    hidden: a layer of H numbers that comes first, or a whole network; then H stands for D everywhere else.
    thresholds: of each label, the score from which on it counts as said; empty: not known.
    known: what tells that a sound is none of the labels; None: the head cannot tell.
    """

    name: str
    labels: tuple[str, ...]
    task: Literal["multiclass", "multilabel"]
    scaler_mean: Array
    scaler_std: Array
    weight: Array
    bias: Array
    training_data: str = ""
    results: JsonValue = None
    layer_norm_eps: float | None = None
    hidden: Callable[[Array], Array] | None = None
    thresholds: tuple[float, ...] = ()
    known: KnownSounds | None = None

    def score(self, embeddings: Array) -> Array:
        """(n, D) -> (n, C): probabilities that sum to 1 (multiclass) or stand alone (multilabel)."""
        return self._score_scaled(self._scaled(embeddings))

    def score_and_know(self, embeddings: Array) -> Array:
        """(n, D) -> (n, C + 1): the scores, and behind them how known the sound is, or NaN."""
        scaled = self._scaled(embeddings)
        known = np.full(len(scaled), np.nan, np.float32) if self.known is None else self.known(scaled)
        return np.concatenate([self._score_scaled(scaled), known[:, None]], axis=1)

    def _scaled(self, embeddings: Array) -> Array:
        if self.hidden is not None:
            embeddings = self.hidden(embeddings)
        if self.layer_norm_eps is not None:
            embeddings = _layer_norm(embeddings, self.layer_norm_eps)
        return np.asarray((embeddings - self.scaler_mean) / self.scaler_std, dtype=np.float32)

    def _score_scaled(self, scaled: Array) -> Array:
        logits = np.asarray(scaled @ self.weight.T + self.bias, dtype=np.float32)
        return _softmax(logits) if self.task == "multiclass" else _sigmoid(logits)


def best_tags(head: Head, scores: Array, *, top_k: int, threshold: float) -> list[Tag]:
    """The top_k labels of scores (C,) that reach the threshold, best first."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [
        Tag(head.labels[i], round(float(scores[i]), SCORE_DIGITS)) for i in best if scores[i] >= threshold
    ]


def named_head(heads: Mapping[str, AnyHead], name: str | None, *, model: str) -> AnyHead:
    """Of a model's heads the one with that name; the first one where it is None. Raises UnknownHead."""
    if not heads:
        raise UnknownHead(
            f"the model `{model}` has no heads; `python -m training fit-head` makes one, and a model with a "
            "text tower takes `labels` in place of one"
        )
    name = name or next(iter(heads))
    if name not in heads:
        there = ", ".join(f"`{other}`" for other in heads)
        raise UnknownHead(f"the model `{model}` has no head `{shortened(name)}`; it has {there}")
    return heads[name]


def load_heads(folder: Path, card: Card) -> dict[str, Head]:
    """The heads of a model folder by name, in the order of its card. Raises ModelFolderError."""
    heads: dict[str, Head] = {}
    for path in map(Path, card.files):
        if path.parent.as_posix() != "heads" or path.suffix not in FORMS:
            continue
        if path.stem in heads:
            raise ModelFolderError(f"{folder.name}: there are two files of the head {path.stem}; delete one")
        load = load_head if path.suffix == ".safetensors" else load_network_head
        heads[path.stem] = load(folder / path, embedding_size=card.embedding_size)
    return heads


def hash_of_head(files: Mapping[str, str], name: str) -> str:
    """Of a card's `files`, the SHA-256 of the head's. Raises KeyError."""
    network = f"heads/{name}.onnx"
    return files[network] if network in files else files[f"heads/{name}.safetensors"]


def load_head(path: Path, *, embedding_size: int) -> Head:
    """`heads/<head>.safetensors`, checked. Raises ModelFolderError.

    A head with a hidden layer or a layer normalisation holds no scaler, so that a server which knows of
    neither refuses it.
    """
    tensors, metadata = read_tensors(path)
    for name in HALF.intersection(tensors):
        if tensors[name].dtype == np.float16:
            tensors[name] = tensors[name].astype(np.float32)
    labels, results = _labels_and_results(path, metadata)
    D, C = embedding_size, len(labels)
    hidden = _hidden(path, metadata.get("hidden"), tensors, embedding_size=D)
    if hidden is not None:
        D = len(hidden.bias)
    eps = _layer_norm_eps(path, metadata.get("layer_norm_eps"))
    if eps is not None or hidden is not None:
        tensors |= {"scaler_mean": np.zeros(D, np.float32), "scaler_std": np.ones(D, np.float32)}
    head = Head(
        name=path.stem,
        labels=labels,
        task=_task(path, metadata.get("task")),
        scaler_mean=checked_tensor(path, tensors, "scaler_mean", (D,)),
        scaler_std=checked_tensor(path, tensors, "scaler_std", (D,)),
        weight=checked_tensor(path, tensors, "weight", (C, D)),
        bias=checked_tensor(path, tensors, "bias", (C,)),
        training_data=metadata.get("training_data", ""),
        results=results,
        layer_norm_eps=eps,
        hidden=hidden,
        thresholds=_thresholds(path, metadata.get("thresholds"), C),
        known=_known(path, tensors, metadata.get("min_known"), n_labels=C, size=D),
    )
    if not (head.scaler_std > 0).all():
        raise ModelFolderError(f"{path.name}: `scaler_std` must be positive everywhere")
    return head


def load_network_head(path: Path, *, embedding_size: int) -> Head:
    """`heads/<head>.onnx`, checked; `labels` and `task` are its metadata. Raises ModelFolderError."""
    network = Network(path)
    labels, results = _labels_and_results(path, network.metadata)
    C = len(labels)
    network.check(path, embedding_size=embedding_size, n_labels=C)
    return Head(
        name=path.stem,
        labels=labels,
        task=_task(path, network.metadata.get("task")),
        scaler_mean=np.zeros(C, np.float32),
        scaler_std=np.ones(C, np.float32),
        weight=np.eye(C, dtype=np.float32),
        bias=np.zeros(C, np.float32),
        training_data=network.metadata.get("training_data", ""),
        results=results,
        hidden=network,
        thresholds=_thresholds(path, network.metadata.get("thresholds"), C),
    )


def _labels_and_results(path: Path, metadata: Mapping[str, str]) -> tuple[tuple[str, ...], JsonValue]:
    try:
        return tuple(json.loads(metadata["labels"])), json.loads(metadata.get("results", "null"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(
            f"{path.name}: the metadata `labels` must be a list in JSON ({error})"
        ) from error


def _hidden(
    path: Path, written: str | None, tensors: dict[str, NDArray[Any]], *, embedding_size: int
) -> Hidden | None:
    if written is None:
        return None
    if written != "hardswish":
        raise ModelFolderError(f"{path.name}: the metadata `hidden` is {written!r}, not hardswish")
    H = tensors["hidden_bias"].size if "hidden_bias" in tensors else 0
    bias = checked_tensor(path, tensors, "hidden_bias", (H,))
    return Hidden(checked_tensor(path, tensors, "hidden_weight", (H, embedding_size)), bias)


def _layer_norm_eps(path: Path, written: str | None) -> float | None:
    if written is None:
        return None
    try:
        eps = float(written)
    except ValueError:
        eps = math.nan
    if not 0 < eps < 1:
        raise ModelFolderError(
            f"{path.name}: the metadata `layer_norm_eps` is {written!r}, not a small positive number"
        )
    return eps


def _thresholds(path: Path, written: str | None, n_labels: int) -> tuple[float, ...]:
    if written is None:
        return ()
    try:
        thresholds = tuple(map(float, json.loads(written)))
    except (TypeError, ValueError):
        thresholds = ()
    if len(thresholds) != n_labels or not all(0 <= threshold <= 1 for threshold in thresholds):
        raise ModelFolderError(
            f"{path.name}: the metadata `thresholds` must be a list in JSON, a number from 0 to 1 for each "
            f"of the {n_labels} labels"
        )
    return thresholds


def _known(
    path: Path, tensors: dict[str, NDArray[Any]], written: str | None, *, n_labels: int, size: int
) -> KnownSounds | None:
    """The tensors may be float16, which halves the file."""
    own = {name: x.astype(np.float32) for name, x in tensors.items() if name.startswith("known_")}
    if not own:
        return None
    K = len(own["known_projection"]) if "known_projection" in own else 0
    m = own["known_distances"].size if "known_distances" in own else 0
    distances = checked_tensor(path, own, "known_distances", (max(1, m),))
    if (np.diff(distances) < 0).any():
        raise ModelFolderError(f"{path.name}: `known_distances` must ascend")
    try:
        min_known = float(written or 0)
    except ValueError:
        min_known = math.nan
    if not 0 <= min_known <= 1:
        raise ModelFolderError(
            f"{path.name}: the metadata `min_known` is {written!r}, not a number from 0 to 1"
        )
    return KnownSounds(
        checked_tensor(path, own, "known_projection", (K, size)),
        checked_tensor(path, own, "known_means", (n_labels, K)),
        distances,
        min_known,
    )


def _task(path: Path, task: str | None) -> Literal["multiclass", "multilabel"]:
    if task == "multiclass":
        return "multiclass"
    if task == "multilabel":
        return "multilabel"
    raise ModelFolderError(f"{path.name}: the metadata `task` is {task!r}, not multiclass or multilabel")


def _layer_norm(embeddings: Array, eps: float) -> Array:
    """(n, D) -> (n, D): mean 0, variance 1 over each one's numbers."""
    centred = embeddings - embeddings.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps), dtype=np.float32)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _sigmoid(logits: Array) -> Array:
    return (1 + np.tanh(logits / 2)) * np.float32(0.5)  # never overflows
