"""A graph that somebody brings in, the served one out: its nodes stay, and what cuts and pools is put around.

    logmel (B, rows, T) ─normalise, fill─► patches (B·N, …) ─► own nodes ─► (B·N, …) ─► (B, N·F, D) ─► frames
    n_frames (B,)       ─► masks, count                                                            ─► sum, max

What lies at or behind an item's `n_frames` is set to silence before a patch is cut, so that it changes
nothing. A graph that takes any length is not given what it could not tell from sound: the card's `batching`
sees to it that nothing is padded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from encoders.frontend import Waveform
from model_export.errors import ExportError
from model_export.graphs.int8 import by_blocks, calibrated
from model_export.sources.own import OwnEncoder
from model_export.sources.own_graph import needed_nodes, opset_of, values_read
from model_export.sources.trained import Trained

Array = NDArray[np.float32]

LOWEST = float(np.finfo(np.float32).min)


class Grafted:
    """A Writer around an OwnGraph."""

    origin = "the graph as it was brought"
    calibration_clips = 48
    is_exact = False

    def __init__(self, trained: Trained) -> None:
        assert isinstance(trained.encoder, OwnEncoder)
        self._encoder = trained.encoder

    def float32(self, path: Path) -> None:
        try:
            onnx.save(grafted(self._encoder), path)
            onnx.checker.check_model(path)
        except (ValueError, onnx.checker.ValidationError) as error:
            raise ExportError(f"The graph cannot be put into one that is served: {error}") from error

    def float16(self, path: Path) -> None:
        raise ExportError("Of a graph that is brought along no 16-bit one is made: leave --float16 out.")

    def int8(self, path: Path, *, float32: Path, calibration: Sequence[Array]) -> None:
        model = onnx.load(float32)
        constants = {each.name for each in model.graph.initializer}
        constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
        products = [node for node in model.graph.node if node.op_type == "MatMul"]
        attends = any(constants.isdisjoint(node.input) for node in products)
        if attends:
            by_blocks(float32, path)
        else:
            calibrated(float32, path, calibration)


class _Nodes:
    """Nodes and constants with names of their own, in the order in which they are computed."""

    def __init__(self, opset: int) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._opset = opset

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"viola/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        name = to or f"viola/{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [*inputs], [name], **attributes))
        return name

    def reduce(self, operator: str, x: str, axis: int, to: str) -> str:
        """ReduceMax takes its axes as an input from opset 18 on, ReduceSum from 13."""
        if operator == "ReduceMax" and self._opset < 18:
            return self.add(operator, x, to=to, axes=[axis], keepdims=0)
        return self.add(operator, x, self.constant([axis]), to=to, keepdims=0)

    def size(self, x: str, axis: int) -> str:
        """(1,): of one axis."""
        return self.add("Gather", self.add("Shape", x), self.constant([axis]), axis=0)

    def shape(self, *sizes: str | int) -> str:
        parts = [size if isinstance(size, str) else self.constant([size]) for size in sizes]
        return self.add("Concat", *parts, axis=0)

    def count_up(self, n: str) -> str:
        """(1,) -> (n,): 0, 1, …"""
        scalar = self.add("Squeeze", n, self.constant([0]))
        return self.add("Range", self.constant(0), scalar, self.constant(1))

    def before(self, index: str, n: str) -> str:
        """(T,), (B,) -> (B, T) bool: whether each index is less than each n."""
        return self.add("Less", index, self.add("Unsqueeze", n, self.constant([1])))


def grafted(encoder: OwnEncoder) -> onnx.ModelProto:
    """The graph of the contract."""
    own = encoder.graph
    nodes = _Nodes(opset_of(own.model))
    x = "logmel"
    if encoder.patch:
        x = _filled(nodes, x, encoder)
    if (encoder.mean, encoder.std) != (0.0, 1.0):
        x = nodes.add("Sub", x, nodes.constant(encoder.mean, np.float32))
        x = nodes.add("Div", x, nodes.constant(encoder.std, np.float32))
    if encoder.patch:
        x = _patches(nodes, x, encoder)
    _laid_out(nodes, x, encoder)
    inner = needed_nodes(own.model.graph, [own.output])
    nodes.nodes += inner
    frames = _frames(nodes, encoder, nodes.size("logmel", 0))
    _pooled(nodes, frames, encoder)
    read = {name for node in inner for name in values_read(node)} | {own.output}
    constants = [each for each in own.model.graph.initializer if each.name in read]
    graph = helper.make_graph(
        nodes.nodes, "viola", _inputs(encoder), _outputs(encoder), [*constants, *nodes.constants]
    )
    return helper.make_model(
        graph,
        opset_imports=own.model.opset_import,
        ir_version=own.model.ir_version,
        functions=own.model.functions,
        producer_name="viola",
    )


def _filled(nodes: _Nodes, x: str, encoder: OwnEncoder) -> str:
    """What is beyond each item's n_frames, silent."""
    inside = nodes.before(nodes.count_up(nodes.size(x, 2)), "n_frames")
    inside = nodes.add("Unsqueeze", inside, nodes.constant([1]))
    return nodes.add("Where", inside, x, nodes.constant(encoder.silence, np.float32))


def _patches(nodes: _Nodes, x: str, encoder: OwnEncoder) -> str:
    """(B, rows, T) -> (B·N, rows, patch), N as many as the longest item has."""
    rows, patch, hop = encoder.n_mels, encoder.patch, encoder.hop
    n = nodes.add("Sub", nodes.size(x, 2), nodes.constant([encoder.shortest]))
    n = nodes.add("Add", nodes.add("Div", n, nodes.constant([hop])), nodes.constant([1]))
    if encoder.shortest < patch:  # the last patch may end behind the clip
        fill = nodes.constant((encoder.silence - encoder.mean) / encoder.std, np.float32)
        x = nodes.add("Pad", x, nodes.constant([0, 0, 0, 0, 0, patch - encoder.shortest]), fill)
    starts = nodes.add("Mul", nodes.count_up(n), nodes.constant(hop))
    starts = nodes.add("Unsqueeze", starts, nodes.constant([1]))
    places = nodes.add("Add", starts, nodes.constant(np.arange(patch)[None]))  # (N, patch)
    cut = nodes.add("Gather", x, places, axis=2)  # (B, rows, N, patch)
    cut = nodes.add("Transpose", cut, perm=[0, 2, 1, 3])
    return nodes.add("Reshape", cut, nodes.constant([-1, rows, patch]))


def _laid_out(nodes: _Nodes, x: str, encoder: OwnEncoder) -> None:
    """(B, rows, T) -> the graph's own input."""
    own = encoder.graph
    layout = own.description.input.layout
    is_waveform = isinstance(encoder.frontend, Waveform)
    if is_waveform or layout.index("frames") < layout.index("mels"):
        x = nodes.add("Transpose", x, perm=[0, 2, 1])
    batch = own.batch if own.batch else 1
    free = nodes.size(x, 0) if own.batch is None else batch
    sizes: dict[str | int, str | int] = {
        "batch": free,
        1: 1,
        "samples": -1,
        "frames": -1,
        "mels": encoder.n_mels,
    }
    if encoder.patch:
        sizes["samples"] = encoder.patch * encoder.n_mels
        sizes["frames"] = encoder.patch
    nodes.add("Reshape", x, nodes.shape(*(sizes[axis] for axis in layout)), to=own.input)


def _frames(nodes: _Nodes, encoder: OwnEncoder, batch: str) -> str:
    """The graph's output -> (B, T', D); batch: (1,), B."""
    own, D = encoder.graph, encoder.embedding_size
    layout = own.description.outputs.layout
    x = own.output
    if own.description.outputs.vector is None and layout.index("numbers") < layout.index("frames"):
        order = list(range(len(layout)))
        i, j = layout.index("numbers"), layout.index("frames")
        order[i], order[j] = j, i
        x = nodes.add("Transpose", x, perm=order)
    return nodes.add("Reshape", x, nodes.shape(batch, -1, D))


def _pooled(nodes: _Nodes, frames: str, encoder: OwnEncoder) -> None:
    """(B, T', D) -> the outputs of the contract."""
    length = nodes.size(frames, 1)
    if not encoder.patch:  # nothing is padded: all of them are the clip's own
        nodes.add("Expand", length, nodes.add("Shape", "n_frames"), to="count")
        nodes.add("Identity", frames, to="frames")
        nodes.reduce("ReduceSum", "frames", 1, to="sum")
        nodes.reduce("ReduceMax", "frames", 1, to="max")
        return
    count = nodes.add("Sub", "n_frames", nodes.constant(encoder.shortest))
    count = nodes.add("Add", nodes.add("Div", count, nodes.constant(encoder.hop)), nodes.constant(1))
    nodes.add("Mul", count, nodes.constant(encoder.per_patch), to="count")
    valid = nodes.before(nodes.count_up(length), "count")
    valid = nodes.add("Unsqueeze", valid, nodes.constant([2]))
    nodes.add("Where", valid, frames, nodes.constant(0, np.float32), to="frames")
    nodes.reduce("ReduceSum", "frames", 1, to="sum")
    lowest = nodes.add("Where", valid, frames, nodes.constant(LOWEST, np.float32))
    nodes.reduce("ReduceMax", lowest, 1, to="max")


def _inputs(encoder: OwnEncoder) -> list[Any]:
    return [
        helper.make_tensor_value_info("logmel", TensorProto.FLOAT, ["batch", encoder.n_mels, "frames_in"]),
        helper.make_tensor_value_info("n_frames", TensorProto.INT64, ["batch"]),
    ]


def _outputs(encoder: OwnEncoder) -> list[Any]:
    D = encoder.embedding_size
    return [
        helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", "frames_out", D]),
        helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", D]),
        helper.make_tensor_value_info("max", TensorProto.FLOAT, ["batch", D]),
        helper.make_tensor_value_info("count", TensorProto.INT64, ["batch"]),
    ]
