"""The published tags of AudioSet in, a head of the model folder out.

    cnn14          sigmoid(W x + b)                      ─► weight, bias, a scaler that changes nothing
    ast            sigmoid(W LayerNorm(x) + b)           ─► gains in weight and bias, eps in the metadata
    efficientat    sigmoid(W Hardswish(V x + a) + b)     ─► hidden_weight, hidden_bias, weight, bias

The names of the 527 classes are in no file of weights. They come from the user's table, from the config.json
that lies beside the weights of Hugging Face's port, from AudioSet's own table there, or are numbers.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.ast import N_CLASSES, ASTTags
from encoders.efficientat import EfficientATTags
from model_export.errors import ExportError

Array = NDArray[np.float32]

TABLE = "class_labels_indices.csv"  # AudioSet's own
NUMBERS = f"""\
The names of AudioSet's classes are not in the weights: the head calls them audioset_000 to audioset_526. Give
AudioSet's own table, {TABLE}, with --labels, or lay it beside the weights."""


def labels_of(table: Path | None, weights: Path) -> tuple[str, ...] | None:
    """The 527 names in the order of the classes; None where nobody knows them. Raises ExportError."""
    if table is not None:
        return _checked(names_of_table(table), table)
    beside = weights.with_name(TABLE)
    if beside.is_file():
        return _checked(names_of_table(beside), beside)
    config = weights.with_name("config.json")
    names = _of_config(config) if config.is_file() else None
    return _checked(names, config) if names is not None else None


def numbered_labels() -> tuple[str, ...]:
    return tuple(f"audioset_{i:03}" for i in range(N_CLASSES))


def write_head(
    folder: Path,
    tags: nn.Module,
    labels: Sequence[str],
    *,
    source: str,
    name: str = "audioset",
    task: str = "multilabel",
) -> None:
    """heads/<name>.safetensors. tags: nn.Linear, ASTTags or EfficientATTags."""
    tensors, norm = head_of(tags)
    metadata = {"labels": json.dumps(list(labels)), "task": task, "training_data": source, **norm}
    path = folder / "heads" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


@torch.no_grad()
def head_of(tags: nn.Module) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of service.inference.heads.Head, and the metadata of what comes before its linear layer."""
    if isinstance(tags, ASTTags):
        gain, shift = tags.norm.weight.double(), tags.norm.bias.double()
        weight = tags.linear.weight.double()
        bias = weight @ shift + tags.linear.bias.double()
        return {"weight": _array(weight * gain), "bias": _array(bias)}, {"layer_norm_eps": str(tags.norm.eps)}
    if isinstance(tags, EfficientATTags):
        hidden = {"hidden_weight": _array(tags.hidden.weight), "hidden_bias": _array(tags.hidden.bias)}
        linear = {"weight": _array(tags.linear.weight), "bias": _array(tags.linear.bias)}
        return {**hidden, **linear}, {"hidden": "hardswish"}
    assert isinstance(tags, nn.Linear)
    size = tags.in_features
    scaler = {"scaler_mean": np.zeros(size, np.float32), "scaler_std": np.ones(size, np.float32)}
    return {**scaler, "weight": _array(tags.weight), "bias": _array(tags.bias)}, {}


def names_of_table(table: Path) -> list[str]:
    """A CSV with a column `display_name`, in the order of `index` if that is there; or a name a line."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{table} cannot be read as a table in UTF-8: {error}.") from error
    rows = csv.DictReader(text.splitlines())
    if "display_name" not in (rows.fieldnames or []):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return [row["display_name"] for row in sorted(rows, key=lambda row: int(row.get("index") or 0))]
    except ValueError as error:
        raise ExportError(f"{table}: the column `index` must hold numbers: {error}.") from error


def _array(values: Tensor) -> Array:
    return np.ascontiguousarray(values.numpy(), dtype=np.float32)


def _of_config(config: Path) -> list[str] | None:
    """`id2label` of Hugging Face's config.json; None where it has none."""
    try:
        names = json.loads(config.read_text(encoding="utf-8")).get("id2label")
    except (OSError, ValueError, AttributeError) as error:
        raise ExportError(f"{config} cannot be read as JSON: {error}.") from error
    if not isinstance(names, Mapping):
        return None
    try:
        return [str(names[key]) for key in sorted(names, key=int)]
    except ValueError as error:
        raise ExportError(f"{config}: `id2label` has keys that are no numbers: {error}.") from error


def _checked(labels: Sequence[str], source: Path) -> tuple[str, ...]:
    if len(labels) != N_CLASSES or not all(labels):
        raise ExportError(f"{source} holds {len(labels)} names, not one for each of the {N_CLASSES} classes.")
    return tuple(labels)
