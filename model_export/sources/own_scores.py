"""The scores of a graph that somebody brings in, a head that reads the vector out.

    vector ─► … ─► Gemm, MatMul, 1 x 1 convolution ─► logits ─► Sigmoid | Softmax ─► scores
             └───────── cut out of the graph ─────────┘

What is linear becomes a head like any other: its weights are measured, by what it makes of zero and of one
number at a time, whatever operators compute it. What is not becomes heads/<head>.onnx. Scores that need more
than the vector are refused: nobody could pool them over windows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import safetensors.numpy
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from model_export.errors import ExportError
from model_export.sources.own_graph import OwnGraph, needed_nodes, open_graph, values_read

Array = NDArray[np.float32]
Task = Literal["multilabel", "multiclass"]

TASKS: dict[str, Task] = {"Sigmoid": "multilabel", "Softmax": "multiclass"}
LINEAR = 1e-4  # of the largest logit: what float32 leaves of a product of a thousand numbers is 1e-6
AT_ONCE = 64  # vectors
SEED = 0


class OwnScores(nn.Module):
    """(…, D) -> (…, C) logits, computed by the graph's own nodes. linear: (weight (C, D), bias (C,)) where
    that is all they are."""

    def __init__(self, graph: OwnGraph, embedding_size: int) -> None:
        """Raises ExportError."""
        super().__init__()
        scores = graph.description.scores
        assert scores is not None
        assert graph.scores is not None
        if graph.description.outputs.vector is None:
            raise ExportError(
                "[scores] are read from the vector: name it in [outputs], in place of the frames, or leave "
                "the scores out."
            )
        logits, applied = _logits(graph.model.graph, graph.scores)
        task = scores.task or applied
        if task is None:
            raise ExportError(
                f"[scores] task is needed: `{scores.output}` does not come from Sigmoid or Softmax, which "
                "would tell whether labels exclude each other (multiclass) or not (multilabel)."
            )
        if applied is not None and task != applied:
            raise ExportError(f"[scores] task is {task}, and the graph makes them by what is for {applied}.")
        self.task: Task = task
        self.model = _cut_out(graph, logits)
        self._session = open_graph(self.model)
        self._one_by_one = graph.batch is not None
        self.n_labels = self._logits(np.zeros((1, embedding_size), np.float32)).shape[1]
        self.linear = self._measured(embedding_size)

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.from_numpy(self._logits(vectors.numpy()))

    def check_labels(self, labels: tuple[str, ...]) -> None:
        """Raises ExportError."""
        if len(labels) != self.n_labels:
            raise ExportError(f"[scores] labels: {len(labels)} names for {self.n_labels} scores.")

    def write(self, folder: Path, labels: Sequence[str], *, name: str, source: str) -> None:
        """heads/<name>.safetensors where they are linear, else heads/<name>.onnx."""
        path = folder / "heads" / name
        path.parent.mkdir(exist_ok=True)
        metadata = {"labels": json.dumps(list(labels)), "task": self.task, "training_data": source}
        if self.linear is None:
            helper.set_model_props(self.model, metadata)
            onnx.save(self.model, f"{path}.onnx")
            return
        weight, bias = self.linear
        size = weight.shape[1]
        scaler = {"scaler_mean": np.zeros(size, np.float32), "scaler_std": np.ones(size, np.float32)}
        tensors = {**scaler, "weight": weight, "bias": bias}
        Path(f"{path}.safetensors").write_bytes(safetensors.numpy.save(tensors, metadata))

    def _logits(self, vectors: Array) -> Array:
        """(n, D) -> (n, C)."""
        step = 1 if self._one_by_one else AT_ONCE
        parts = [vectors[at : at + step] for at in range(0, len(vectors), step)]
        return np.concatenate([self._session.run(None, {"vector": part})[0] for part in parts])

    def _measured(self, size: int) -> tuple[Array, Array] | None:
        bias = self._logits(np.zeros((1, size), np.float32))[0]
        weight = np.ascontiguousarray((self._logits(np.eye(size, dtype=np.float32)) - bias).T)
        scales = 10.0 ** np.arange(-2, 2).repeat(2)[:, None]  # what bends may do so for large vectors alone
        vectors = np.random.default_rng(SEED).normal(size=(len(scales), size)) * scales
        vectors = vectors.astype(np.float32)
        found, expected = vectors @ weight.T + bias, self._logits(vectors)
        apart = np.abs(found - expected).max(axis=1) / np.maximum(np.abs(expected).max(axis=1), 1e-12)
        return (weight, bias) if (apart <= LINEAR).all() else None


def _logits(graph: onnx.GraphProto, scores: str) -> tuple[str, Task | None]:
    """The value before a last Sigmoid or Softmax, and what that tells of the labels; else the scores."""
    makers = {name: node for node in graph.node for name in node.output}
    maker = makers.get(scores)
    if maker is None or maker.op_type not in TASKS:
        return scores, None
    return maker.input[0], TASKS[maker.op_type]


def _cut_out(graph: OwnGraph, logits: str) -> onnx.ModelProto:
    """vector (n, D) -> logits (n, C). Raises ExportError where they need anything else of the sound."""
    own = graph.model.graph
    nodes = needed_nodes(own, [logits], given=[graph.output])
    read = {name for node in nodes for name in values_read(node)}
    if graph.input in read or graph.output not in read:
        vector = graph.description.outputs.vector
        raise ExportError(
            f"[scores] output: it is not computed from `{vector}` alone. Name the vector that it is computed "
            "from, or leave the scores out."
        )
    shape = graph_shape(graph)
    before = helper.make_node("Reshape", ["vector", "viola/shape"], [graph.output])
    after = helper.make_node("Reshape", [logits, "viola/flat"], ["logits"])
    constants = [each for each in own.initializer if each.name in read]
    constants += [
        onnx.numpy_helper.from_array(np.array(shape, np.int64), "viola/shape"),
        onnx.numpy_helper.from_array(np.array([0 if graph.batch is None else 1, -1], np.int64), "viola/flat"),
    ]
    cut = helper.make_graph(
        [before, *nodes, after],
        "scores",
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", "size"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "labels"])],
        constants,
    )
    return helper.make_model(
        cut,
        opset_imports=graph.model.opset_import,
        ir_version=graph.model.ir_version,
        functions=graph.model.functions,
        producer_name="viola",
    )


def graph_shape(graph: OwnGraph) -> list[int]:
    """Of the value that the vector is: any number of them where the graph takes a batch."""
    shape = list(graph.run(np.zeros((1, graph.rows, _length(graph)), np.float32)).shape)
    return [-1, *shape[1:]] if graph.batch is None else shape


def _length(graph: OwnGraph) -> int:
    """Columns that the graph takes."""
    window = graph.description.window
    size = window.patch or window.longest or 1
    return size // (graph.description.column if graph.description.input.kind == "waveform" else 1)
