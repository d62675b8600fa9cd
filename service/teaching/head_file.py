"""A fitted head in, the bytes of `heads/<head>.safetensors` out, as a model folder takes it."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from service.teaching.fit import Fitted
from service.teaching.report import Report


def head_file(fitted: Fitted, labels: tuple[str, ...], report: Report, *, encoder: str, edits: int) -> bytes:
    """encoder: what its embeddings came from (store.encoder_of); edits: of the examples, before the fit."""
    tensors: dict[str, NDArray[Any]] = {
        "scaler_mean": fitted.scaler_mean,
        "scaler_std": fitted.scaler_std,
        "weight": fitted.weight,
        "bias": fitted.bias,
    }
    metadata = {
        "labels": json.dumps(labels),
        "task": fitted.task,
        "training_data": f"{report['examples']} examples, taught to a server",
        "results": json.dumps(results_of(report)),
        "encoder": encoder,
        "edits": str(edits),
    }
    if fitted.known is not None:
        tensors |= {
            "known_projection": fitted.known.projection,
            "known_means": fitted.known.means,
            "known_distances": fitted.known.distances,
        }
        metadata["min_known"] = repr(fitted.known.min_known)
    if fitted.thresholds:
        metadata["thresholds"] = json.dumps(fitted.thresholds)
    return save({name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}, metadata=metadata)


def results_of(report: Report) -> Report:
    """What a head tells of itself wherever it goes; nothing of single examples, and no name of a file."""
    return {
        "metric": "accuracy",
        "value": report["accuracy"],
        "test": "cross-validation",
        "train_clips": report["clips"],
        "by_label": {label["label"]: label["accuracy"] for label in report["labels"]},
        "none_of_these": report["none_of_these"],
    }
