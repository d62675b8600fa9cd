"""An ONNX file and its description in, a graph that fits it out, open to run; else a sentence says why not.

    file ─► readable, standard operators ─► one input of the described axes ─► values to read ─► OwnGraph

Nothing here cuts or batches: `OwnGraph.run` gives the graph one input, as its makers would.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.compose
import onnx.version_converter
import onnxruntime
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto

from model_export.errors import ExportError
from model_export.sources.description import Description

Array = NDArray[np.float32]

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # whose operators onnxruntime brings along
OLDEST_OPSET = 13  # before it, sums and axes were written in another way
OPSET = 18
LARGEST_BYTES = 2_000_000_000  # of one file of ONNX
PREFIX = "own/"  # of every name of the graph, so that none is one of the contract's


class OwnGraph:
    """names: the values that are read, outputs or within the graph. size: of the axis of time, None where any
    length fits; batch: of the first one, None where any does, 0 where the graph has none."""

    def __init__(self, path: Path, description: Description) -> None:
        """Raises ExportError."""
        self.model = onnx.compose.add_prefix(_read(path), PREFIX)
        self.description = description
        graph_input = self._input()
        self.input = graph_input.name
        self.size, self.batch = self._checked_axes(graph_input)
        given = description.outputs.vector or description.outputs.frames
        assert given is not None
        self.output = self._value(given, "[outputs]")
        self.scores = (
            self._value(description.scores.output, "[scores] output") if description.scores else None
        )
        self._session = self._open()

    @property
    def rows(self) -> int:
        """Numbers in a column of the input: mel bands, or samples."""
        if self.description.input.kind == "waveform":
            return self.description.column
        return int(self.description.frontend["n_mels"])

    def run(self, columns: Array) -> Array:
        """(B, rows, T), normalised -> what the graph makes of it, as it is. Raises ExportError."""
        return self._run(columns, [self.output])[0]

    def run_scores(self, columns: Array) -> tuple[Array, Array]:
        """The same, and the scores."""
        assert self.scores is not None
        output, scores = self._run(columns, [self.output, self.scores])
        return output, scores

    def laid_out(self, columns: Array) -> Array:
        """(B, rows, T) -> the axes of the description."""
        layout = self.description.input.layout
        B = len(columns)
        if "batch" not in layout and B != 1:
            raise ValueError("a graph without a batch takes one clip")
        if self.description.input.kind == "waveform":
            waveforms = columns.transpose(0, 2, 1).reshape(B, -1)
            return waveforms.reshape([{"batch": B, "samples": -1, 1: 1}[axis] for axis in layout])
        F, T = columns.shape[1:]
        ordered = columns if layout.index("mels") < layout.index("frames") else columns.transpose(0, 2, 1)
        return ordered.reshape([{"batch": B, "mels": F, "frames": T, 1: 1}[axis] for axis in layout])

    def _run(self, columns: Array, names: Sequence[str]) -> list[Array]:
        feed = {self.input: np.ascontiguousarray(self.laid_out(columns), dtype=np.float32)}
        try:
            found = self._session.run(list(names), feed)
        except Exception as error:  # onnxruntime's errors share no class but this
            raise ExportError(
                f"The graph fails on an input of the shape {list(feed[self.input].shape)}: "
                f"{str(error).partition(chr(10))[0]}"
            ) from error
        for name, value in zip(names, found, strict=True):
            if value.dtype != np.float32:
                raise ExportError(f"`{self._own(name)}` is of {value.dtype}, not float32: export it so.")
        return found

    def _input(self) -> Any:
        constants = {each.name for each in self.model.graph.initializer}
        inputs = {self._own(each.name): each for each in self.model.graph.input if each.name not in constants}
        name = self.description.input.name
        if name is not None and name not in inputs:
            raise ExportError(f"[input] name: the graph has no input `{name}`, only {_listed(inputs)}.")
        if len(inputs) != 1:
            raise ExportError(
                f"The graph takes {_listed(inputs) or 'nothing'}: it must take the sound and nothing else. "
                "Export it with lengths, masks and switches made constant."
            )
        return next(iter(inputs.values()))

    def _checked_axes(self, graph_input: Any) -> tuple[int | None, int | None]:
        layout = self.description.input.layout
        name, kind = self._own(graph_input.name), graph_input.type.tensor_type
        if kind.elem_type != TensorProto.FLOAT:
            found_type = TensorProto.DataType.Name(kind.elem_type).lower()
            raise ExportError(f"The input `{name}` is of {found_type}, not of float32: export it so.")
        sizes = [axis.dim_value or None for axis in kind.shape.dim]
        if len(sizes) != len(layout):
            raise ExportError(
                f"The input `{name}` has {len(sizes)} axes, {_shape(sizes)}, and the layout names "
                f"{len(layout)}: {', '.join(map(str, layout))}."
            )
        found: dict[str | int, int | None] = dict(zip(layout, sizes, strict=True))
        wrong = [
            size for axis, size in zip(layout, sizes, strict=True) if axis == 1 and size not in (None, 1)
        ]
        if wrong:
            raise ExportError(
                f"The input `{name}` is {_shape(sizes)}: where the layout says 1, it has {wrong[0]}."
            )
        if found.get("mels") not in (None, self.description.frontend.get("n_mels")):
            raise ExportError(
                f"The input `{name}` is {_shape(sizes)}, of {found['mels']} mel bands; [frontend] n_mels is "
                f"{self.description.frontend.get('n_mels')}."
            )
        batch = found.get("batch", 0)
        if batch not in (None, 0, 1):
            raise ExportError(
                f"The input `{name}` is {_shape(sizes)}, always {batch} clips at once: export it with a "
                "batch of any size, or of one."
            )
        time = "frames" if self.description.input.kind == "logmel" else "samples"
        self._check_time(found[time], time)
        return found[time], batch

    def _check_time(self, size: int | None, time: str) -> None:
        window = self.description.window
        if size is None or size == window.patch:
            return
        if window.patch is None:
            raise ExportError(
                f"The graph takes {size} {time}, always: give [window] patch = {size} in place of longest, "
                "or export it with a free length."
            )
        raise ExportError(f"The graph takes {size} {time}, and [window] patch is {window.patch}.")

    def _value(self, name: str, key: str) -> str:
        values = {each.name for each in self.model.graph.output}
        values |= {name for node in self.model.graph.node for name in node.output}
        if PREFIX + name not in values:
            outputs = _listed(self._own(each.name) for each in self.model.graph.output)
            raise ExportError(f"{key}: the graph has no `{name}`; its outputs are {outputs}.")
        return PREFIX + name

    def _open(self) -> onnxruntime.InferenceSession:
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        have = {each.name for each in model.graph.output}
        for name in dict.fromkeys(filter(None, (self.output, self.scores))):
            if name not in have:
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return open_graph(model)

    @staticmethod
    def _own(name: str) -> str:
        """As it is called in the user's file."""
        return name.removeprefix(PREFIX)


def open_graph(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Raises ExportError."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is an exception
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no class but this
        raise ExportError(f"onnxruntime cannot open the graph: {str(error).partition(chr(10))[0]}") from error


def needed_nodes(graph: onnx.GraphProto, outputs: Iterable[str], *, given: Iterable[str] = ()) -> list[Any]:
    """The nodes that `outputs` are computed by, in order, from the values `given` and the graph's inputs."""
    wanted, known = set(outputs), set(given)
    kept = []
    for node in reversed(graph.node):
        if wanted & (set(node.output) - known):
            kept.append(node)
            wanted |= set(values_read(node))
    return kept[::-1]


def values_read(node: onnx.NodeProto) -> list[str]:
    """What a node reads, the bodies of loops and branches included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            made = {each for inner in body.node for each in inner.output} | {each.name for each in body.input}
            made |= {each.name for each in body.initializer}
            read = {name for inner in body.node for name in values_read(inner)}
            read |= {each.name for each in body.output}
            names += sorted(read - made)
    return names


def opset_of(model: onnx.ModelProto) -> int:
    return next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ExportError(f"{path} does not exist.")
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise ExportError(f"{path} is no ONNX file.") from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(
            f"{path} keeps its weights in another file, which cannot be read ({error}): lay it beside the "
            "graph."
        ) from error
    if not model.graph.node:
        raise ExportError(f"{path} is no ONNX file, or its graph is empty.")
    if model.ByteSize() > LARGEST_BYTES:
        raise ExportError(f"{path} has {model.ByteSize() / 1e9:.1f} GB, more than one file of ONNX can hold.")
    _check_operators(model, path)
    if opset_of(model) < OLDEST_OPSET:
        model = _newer(model, path)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path} is no valid ONNX: {str(error).partition(chr(10))[0]}") from error
    return model


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    own = {(each.domain, each.name) for each in model.functions}
    foreign = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in model.graph.node
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in own
        }
    )
    if foreign:
        raise ExportError(
            f"{path} needs {_listed(foreign)}, operators of somebody's own that onnxruntime does not have: "
            "export it with standard ones."
        )
    if not any(each.domain in ("", "ai.onnx") for each in model.opset_import):
        raise ExportError(f"{path} does not say which version of ONNX's operators (opset) it is written in.")


def _newer(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # of C++, without a class
        raise ExportError(
            f"{path} is written in opset {opset_of(model)} and cannot be brought to {OPSET}: export it with "
            f"opset {OPSET}."
        ) from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shape(sizes: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"
