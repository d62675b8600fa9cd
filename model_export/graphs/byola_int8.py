"""BYOL-A's encoder and real log-mels in, its graph in 8-bit integers out, for CPUs.

Static: each layer's range is measured once, on the `calibration` clips. Activations are uint8. After a ReLU
their range begins at 0, so that clipping to uint8 is the ReLU, and 0.0 is the integer 0. Weights are int8,
one scale for each output channel. Pooling, masks and reordering work on the integers, and onnxruntime fuses
the rest into QLinearConv and QGemm: between two layers there is no float. benchmarks/README.md has the times.

A CPU without VNNI adds two products of uint8 and int8 in 16 bits, where the sum may silently saturate. The
ranges are chosen so that it cannot:

    the first layer    input in 7 bits, weights in 8:    127 * (127 + 127) = 32 258 <= 32 767
    the others         input in 8 bits, weights in 7:    255 * ( 64 +  64) = 32 640 <= 32 767

The first layer is the one that needs its weights' eighth bit: each output is a sum of nine products only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from encoders import Encoder
from model_export.graphs.byola import (
    INPUT,
    Array,
    Float,
    Graph,
    Layer,
    convolutions_of,
    encoder_graph,
    linears_of,
)

FIRST_INPUT_MAX, FIRST_WEIGHT_MAX = 127, 127
INPUT_MAX, WEIGHT_MAX = 255, 64

Range = tuple[float, float]  # the least and the greatest value of a tensor, 0 included


def int8_graph(encoder: Encoder, *, mean: float, std: float, calibration: Sequence[Array]) -> onnx.ModelProto:
    """The graph of the contract. calibration: log-mels (n_mels, T_i) of real clips."""
    ranges = activation_ranges(encoder, mean=mean, std=std, logmels=calibration)
    return encoder_graph(encoder, mean=mean, std=std, arithmetic=Int8(ranges))


def activation_ranges(
    encoder: Encoder, *, mean: float, std: float, logmels: Sequence[Array]
) -> dict[str, Range]:
    """The range of the input and of each layer's output, over all log-mels."""
    model = encoder_graph(encoder, mean=mean, std=std, arithmetic=Float())
    names = [INPUT, *(layer.name for layer in [*convolutions_of(encoder), *linears_of(encoder)])]
    for name in names:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ranges = dict.fromkeys(names, (0.0, 0.0))
    for logmel in logmels:
        feed = {"logmel": logmel[None], "n_frames": np.array([logmel.shape[1]])}
        for name, tensor in zip(names, session.run(names, feed), strict=True):
            low, high = ranges[name]
            ranges[name] = min(low, float(tensor.min())), max(high, float(tensor.max()))
    return ranges


class Int8:
    """uint8 between the layers (an Arithmetic). `ranges`: of INPUT and of every layer's output."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        self._ranges = ranges

    def enter(self, graph: Graph, x: str) -> str:
        quantised = self._quantised(graph, x, INPUT)
        # A uint8 tensor cannot be told to end at 127, and a clip may be louder than all of the calibration.
        highest = graph.constant("input_max", np.uint8(FIRST_INPUT_MAX))
        return graph.node("Min", [quantised, highest], "input_7_bits")

    def mask(self, graph: Graph, x: str, valid: str) -> str:
        return graph.node("Where", [valid, x, graph.constant("zero_uint8", np.uint8(0))], f"{x}_masked")

    def convolve(self, graph: Graph, x: str, layer: Layer) -> str:
        return self._layer(graph, "Conv", x, layer, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def multiply(self, graph: Graph, x: str, layer: Layer) -> str:
        return self._layer(graph, "Gemm", x, layer)

    def leave(self, graph: Graph, x: str, layer: Layer) -> str:
        return self._dequantised(graph, x, layer.name, output=f"{layer.name}_out")

    def _layer(self, graph: Graph, op: str, x: str, layer: Layer, **attributes: Any) -> str:
        """Dequantise, compute, quantise: the pattern that onnxruntime fuses into one integer operator."""
        x = self._dequantised(graph, x, layer.reads, output=f"{layer.name}_in")
        weight, bias = self._constants(graph, layer, output_axis=0 if op == "Conv" else 1)
        y = graph.node(op, [x, weight, bias], f"{layer.name}_linear", **attributes)
        return self._quantised(graph, y, layer.name)

    def _quantised(self, graph: Graph, x: str, made_by: str) -> str:
        return graph.node("QuantizeLinear", [x, *self._parameters(graph, made_by)], f"{made_by}_uint8")

    def _dequantised(self, graph: Graph, x: str, made_by: str, *, output: str) -> str:
        return graph.node("DequantizeLinear", [x, *self._parameters(graph, made_by)], output)

    def _parameters(self, graph: Graph, made_by: str) -> list[str]:
        scale, zero = self._scale_and_zero(made_by)
        return [graph.constant(f"{made_by}.scale", scale), graph.constant(f"{made_by}.zero", zero)]

    def _scale_and_zero(self, made_by: str) -> tuple[np.float32, np.uint8]:
        low, high = self._ranges[made_by]
        scale = np.float32(max(high - low, 1e-9) / (FIRST_INPUT_MAX if made_by == INPUT else INPUT_MAX))
        return scale, np.uint8(round(-low / float(scale)))

    def _constants(self, graph: Graph, layer: Layer, output_axis: int) -> tuple[str, str]:
        """The layer's weight and bias as constants that dequantise to it."""
        input_scale, _ = self._scale_and_zero(layer.reads)
        limit = FIRST_WEIGHT_MAX if layer.reads == INPUT else WEIGHT_MAX
        weight, scale = quantised_weight(layer.weight, limit)
        bias_scale = scale * input_scale
        bias = np.clip(np.rint(layer.bias / bias_scale), -(2**31) + 1, 2**31 - 128).astype(np.int32)
        if output_axis == 1:
            weight = np.ascontiguousarray(weight.T)
        return (
            self._constant(graph, f"{layer.name}.weight", weight, scale, output_axis),
            self._constant(graph, f"{layer.name}.bias", bias, bias_scale, 0),
        )

    @staticmethod
    def _constant(graph: Graph, name: str, values: NDArray[Any], scale: Array, axis: int) -> str:
        zero = np.zeros(len(scale), dtype=values.dtype)  # QGemm is fused only where it is written out
        parts = {"quantised": values, "scale": scale, "zero": zero}
        inputs = [graph.constant(f"{name}_{part}", array) for part, array in parts.items()]
        return graph.node("DequantizeLinear", inputs, name, axis=axis)


def quantised_weight(weight: Array, limit: int) -> tuple[NDArray[np.int8], Array]:
    """weight (C, ...) -> integers in [-limit, limit] and scale (C,): their product is nearest to weight."""
    flat = weight.reshape(len(weight), -1)
    scale = np.maximum(np.abs(flat).max(axis=1) / limit, 1e-9).astype(np.float32)
    integers = np.clip(np.rint(flat / scale[:, None]), -limit, limit).astype(np.int8)
    return integers.reshape(weight.shape), scale
