"""An encoder in PyTorch in, its ONNX graph out: masks, pooling and normalisation included.

    logmel (B, n_mels, T) ─normalise, mask─► (B, 1, F, T) ─blocks─► (B, 64, F', T') ─► (B * T', 64 * F')
    n_frames (B,)         ─► masks, count                           ─linear layers─► frames (B, T', D)
                                                                    ─► sum, max (B, D)

Written node by node rather than traced: batch normalisation is folded into the convolutions, the bookkeeping
of shapes is a dozen nodes, and the int8 graph (byola_int8.py) can put its masks where they cost nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from encoders import Encoder
from encoders.blocks import MODULES_PER_BLOCK
from encoders.byola_2022 import AudioNTT2022

OPSET = 18
IR_VERSION = 9  # the oldest that holds the opset: older onnxruntimes can read it

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer, followed by a ReLU. weight: (C, ...), bias: (C,) float32.

    `reads`: the layer whose output it takes, after pooling, masks and reordering; the first reads INPUT.
    """

    name: str
    reads: str
    weight: Array
    bias: Array


INPUT = "input"


class Arithmetic(Protocol):
    """The numbers between the layers: floats here, uint8 in byola_int8.py. Tensors go by their names."""

    def enter(self, graph: "Graph", x: str) -> str:
        """float32 -> these numbers."""

    def mask(self, graph: "Graph", x: str, valid: str) -> str:
        """Zero where `valid` (bool, broadcast) is false; x is finite."""

    def convolve(self, graph: "Graph", x: str, layer: Layer) -> str:
        """3 x 3, padding 1, and ReLU."""

    def multiply(self, graph: "Graph", x: str, layer: Layer) -> str:
        """(N, inputs) -> (N, C), and ReLU."""

    def leave(self, graph: "Graph", x: str, layer: Layer) -> str:
        """The output of `layer` -> float32."""


class Graph:
    """Nodes and constants, added in the order of the computation."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def model(self, n_mels: int, embedding_size: int) -> onnx.ModelProto:
        """Checked. Raises onnx.checker.ValidationError."""
        value = helper.make_tensor_value_info
        D = embedding_size
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [
                value("logmel", TensorProto.FLOAT, ["batch", n_mels, "frames"]),
                value("n_frames", TensorProto.INT64, ["batch"]),
            ],
            [
                value("frames", TensorProto.FLOAT, ["batch", "out_frames", D]),
                value("sum", TensorProto.FLOAT, ["batch", D]),
                value("max", TensorProto.FLOAT, ["batch", D]),
                value("count", TensorProto.INT64, ["batch"]),
            ],
            list(self._constants.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="viola",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


class Float:
    """Of 32 bits, as in training, or of 16 for GPUs; what is outside the layers (normalisation, sums over
    time) has 32 in either case."""

    def __init__(self, bits: Literal[16, 32] = 32) -> None:
        self._bits = bits
        self._type = TensorProto.FLOAT if bits == 32 else TensorProto.FLOAT16
        self._dtype = np.float32 if bits == 32 else np.float16

    def enter(self, graph: Graph, x: str) -> str:
        return x if self._bits == 32 else graph.node("Cast", [x], "input_half", to=self._type)

    def mask(self, graph: Graph, x: str, valid: str) -> str:
        factor = graph.node("Cast", [valid], f"{valid}_factor", to=self._type)
        return graph.node("Mul", [x, factor], f"{x}_masked")

    def convolve(self, graph: Graph, x: str, layer: Layer) -> str:
        return self._rectified(graph, "Conv", x, layer, layer.weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def multiply(self, graph: Graph, x: str, layer: Layer) -> str:
        return self._rectified(graph, "Gemm", x, layer, np.ascontiguousarray(layer.weight.T))

    def leave(self, graph: Graph, x: str, layer: Layer) -> str:
        return x if self._bits == 32 else graph.node("Cast", [x], f"{x}_out", to=TensorProto.FLOAT)

    def _rectified(
        self, graph: Graph, op: str, x: str, layer: Layer, weight: Array, **attributes: Any
    ) -> str:
        with np.errstate(over="ignore"):  # infinite in 16 bits: the export sees it by what comes out
            weight_name = graph.constant(f"{layer.name}.weight", weight.astype(self._dtype))
            bias_name = graph.constant(f"{layer.name}.bias", layer.bias.astype(self._dtype))
        y = graph.node(op, [x, weight_name, bias_name], f"{layer.name}_linear", **attributes)
        return graph.node("Relu", [y], layer.name)


def encoder_graph(encoder: Encoder, *, mean: float, std: float, arithmetic: Arithmetic) -> onnx.ModelProto:
    """The graph of the contract in docs/model_folder.md. `encoder` is in eval mode, on the CPU.

    Rows of `frames` beyond an item's count are zero. Both encoders end in ReLUs, so that zeros disturb
    neither their sum nor their maximum.
    """
    graph = Graph()
    _declare_sizes(graph)
    x = arithmetic.enter(graph, _normalised(graph, mean, std))
    convolutions = convolutions_of(encoder)
    for block, layer in enumerate(convolutions):
        if block > 0:  # a clip must be followed by zeros, as the convolution pads it when it is alone
            x = arithmetic.mask(graph, x, _as_image(graph, _valid(graph, 2**block)))
        x = arithmetic.convolve(graph, x, layer)
        x = graph.node("MaxPool", [x], f"{layer.name}_pooled", kernel_shape=[2, 2], strides=[2, 2])
    linears = linears_of(encoder)
    features = x = _frames_of_features(graph, x, size=linears[0].weight.shape[1])
    for layer in linears:
        x = arithmetic.multiply(graph, x, layer)
    frames = arithmetic.leave(graph, x, linears[-1])
    if isinstance(encoder, AudioNTT2022):  # the convolutions' own features come first
        conv_frames = arithmetic.leave(graph, features, convolutions[-1])
        frames = graph.node("Concat", [conv_frames, frames], "both", axis=1)
    _pool(graph, frames, encoder)
    return graph.model(encoder.n_mels, encoder.embedding_size)


def convolutions_of(encoder: Encoder) -> list[Layer]:
    """Each block's convolution with its batch normalisation folded in."""
    layers: list[Layer] = []
    for block, first in enumerate(range(0, len(encoder.features), MODULES_PER_BLOCK)):
        convolution, normalisation = encoder.features[first], encoder.features[first + 1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(normalisation, nn.BatchNorm2d)
        reads = layers[-1].name if layers else INPUT
        layers.append(Layer(f"conv{block + 1}", reads, *_folded(convolution, normalisation)))
    return layers


def linears_of(encoder: Encoder) -> list[Layer]:
    layers: list[Layer] = []
    for module in encoder.fc:
        if isinstance(module, nn.Linear):
            reads = layers[-1].name if layers else convolutions_of(encoder)[-1].name
            weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
            layers.append(Layer(f"linear{len(layers) + 1}", reads, weight, bias))
    return layers


@torch.no_grad()
def _folded(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> tuple[Array, Array]:
    """Weight and bias of one convolution that does the work of both; computed in float64."""
    assert convolution.bias is not None
    assert normalisation.running_mean is not None
    assert normalisation.running_var is not None
    gain = normalisation.weight.double() / (normalisation.running_var.double() + normalisation.eps).sqrt()
    weight = convolution.weight.double() * gain[:, None, None, None]
    bias = (convolution.bias.double() - normalisation.running_mean.double()) * gain
    return weight.float().numpy(), (bias + normalisation.bias.double()).float().numpy()


def _declare_sizes(graph: Graph) -> None:
    """`n` (B, 1) and `T` (): valid and padded log-mel frames; axes and numbers used below."""
    for name, axes in (("axis1", [1]), ("axis2", [2]), ("axes12", [1, 2]), ("flat", [-1]), ("scalar", [])):
        graph.constant(name, np.array(axes, dtype=np.int64))
    graph.constant("0", np.int64(0))
    graph.constant("1", np.int64(1))
    graph.node("Unsqueeze", ["n_frames", "axis1"], "n")
    graph.node("Shape", ["logmel"], "T_list", start=2, end=3)
    graph.node("Reshape", ["T_list", "scalar"], "T")


def _valid(graph: Graph, stride: int) -> str:
    """(B, T // stride) bool: true where an output frame belongs to the clip; `n_over_<stride>` (B, 1)."""
    divisor = graph.constant(f"{stride}", np.int64(stride))
    n = graph.node("Div", ["n", divisor], f"n_over_{stride}")
    T = graph.node("Div", ["T", divisor], f"T_over_{stride}")
    t = graph.node("Range", ["0", T, "1"], f"t_over_{stride}")
    return graph.node("Less", [t, n], f"valid_over_{stride}")


def _as_image(graph: Graph, valid: str) -> str:
    """(B, T) -> (B, 1, 1, T)."""
    return graph.node("Unsqueeze", [valid, "axes12"], f"{valid}_image")


def _normalised(graph: Graph, mean: float, std: float) -> str:
    """(B, 1, F, T): (logmel - mean) / std, and zero beyond the clip.

    `Where` rather than a product: the padding may hold NaN, and NaN times zero is NaN.
    """
    valid = graph.node("Unsqueeze", [_valid(graph, 1), "axis1"], "valid_bands")
    centred = graph.node("Sub", ["logmel", graph.constant("mean", np.float32(mean))], "centred")
    scaled = graph.node("Div", [centred, graph.constant("std", np.float32(std))], "scaled")
    x = graph.node("Where", [valid, scaled, graph.constant("zero", np.float32(0))], "bands")
    return graph.node("Unsqueeze", [x, "axis1"], INPUT)


def _frames_of_features(graph: Graph, x: str, size: int) -> str:
    """(B, C, F, T) -> (B * T, F * C): index f * C + c, the channel changes fastest."""
    x = graph.node("Transpose", [x], "channels_last", perm=[0, 3, 2, 1])
    shape = graph.constant("features_shape", np.array([-1, size], dtype=np.int64))
    return graph.node("Reshape", [x, shape], "features")


def _pool(graph: Graph, frames: str, encoder: Encoder) -> None:
    """frames (B * T', D) -> the four outputs."""
    valid = _valid(graph, encoder.stride)
    size = graph.constant("embedding_size", np.array([encoder.embedding_size], dtype=np.int64))
    shape = graph.node("Concat", [graph.node("Shape", [valid], "frames_count"), size], "frames_shape", axis=0)
    x = graph.node("Reshape", [frames, shape], "all_frames")
    column = graph.node("Unsqueeze", [valid, "axis2"], "valid_column")
    factor = graph.node("Cast", [column], "valid_factor", to=TensorProto.FLOAT)
    graph.node("Mul", [x, factor], "frames")
    graph.node("ReduceSum", ["frames", "axis1"], "sum", keepdims=0)
    graph.node("ReduceMax", ["frames", "axis1"], "max", keepdims=0)
    graph.node("Reshape", [f"n_over_{encoder.stride}", "flat"], "count")
