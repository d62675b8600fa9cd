"""Small ONNX graphs as other people might export them, and descriptions of them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PATCH, MELS, D, C = 20, 16, 6, 3
LOGMEL = f"""\
licence = "CC0-1.0"

[input]
kind = "logmel"
layout = ["batch", "frames", "mels"]
sample_rate = 16000

[frontend]
n_fft = 512
win_length = 400
hop_length = 160
n_mels = {MELS}
f_min_hz = 125.0
f_max_hz = 7500
centred = false
power = 2
mel_scale = "htk"
mel_norm = "none"
log = "ln_add"
log_floor = 0.001
mean = -3.0
std = 2.0

[window]
patch = {PATCH}
hop = 10

[outputs]
vector = "vector"
"""
WAVEFORM = """\
licence = "CC0-1.0"

[input]
kind = "waveform"
layout = ["batch", "samples"]
sample_rate = 16000

[window]
longest = 32000
shortest = 400

[outputs]
vector = "vector"
"""


def graph_of(
    nodes: list[Any],
    *,
    input_shape: list[str | int],
    outputs: dict[str, list[str | int]],
    constants: dict[str, np.ndarray],
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "brought",
        [helper.make_tensor_value_info("logmel", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def patch_graph(
    *, batch: str | int = "n", frames: str | int = PATCH, head: str = "linear", opset: int = 18
) -> onnx.ModelProto:
    """(n, 20, 16) -> vector (n, 6) = tanh(patch · weight), scores (n, 3) of it: `linear`, with a layer
    between (`deep`), or of the input as well (`wide`). Its input is called as the served graph's is."""
    random = np.random.default_rng(0)
    constants = {
        "weight": (0.1 * random.normal(size=(PATCH * MELS, D))).astype(np.float32),
        "scores_weight": random.normal(size=(D, C)).astype(np.float32),
        "scores_bias": random.normal(size=C).astype(np.float32),
        "flat": np.array([-1 if batch == "n" else batch, PATCH * MELS], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["logmel", "flat"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["vector"]),
    ]
    last = "vector"
    if head == "deep":
        nodes.append(helper.make_node("Abs", ["vector"], [last := "hidden"]))
    if head == "wide":
        nodes.append(helper.make_node("Add", ["vector", "sum"], [last := "hidden"]))
    nodes.append(helper.make_node("Gemm", [last, "scores_weight", "scores_bias"], ["logits"]))
    nodes.append(helper.make_node("Sigmoid", ["logits"], ["scores"]))
    return graph_of(
        nodes,
        input_shape=[batch, frames, MELS],
        outputs={"vector": [batch, D], "scores": [batch, C]},
        constants=constants,
        opset=opset,
    )


def waveform_graph(*, shape: list[str | int], leaks: bool = False) -> onnx.ModelProto:
    """Samples of any length -> frames (n, 6, T), a convolution of 400 every 160, and vector (n, 6), the
    highest of each. shape: of the input, with a batch or without. leaks: the clips of a batch mix."""
    random = np.random.default_rng(1)
    constants = {
        "filters": (0.2 * random.normal(size=(D, 1, 400))).astype(np.float32),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "zero": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["logmel" if len(shape) > 1 else "row", "one"], ["x"]),
        helper.make_node("Conv", ["x", "filters"], ["convolved"], strides=[160]),
        helper.make_node("Relu", ["convolved"], ["relu"]),
    ]
    if len(shape) == 1:
        nodes.insert(0, helper.make_node("Unsqueeze", ["logmel", "zero"], ["row"]))
    if leaks:
        nodes.append(helper.make_node("ReduceMean", ["relu", "zero"], ["mean"]))
        nodes.append(helper.make_node("Add", ["relu", "mean"], ["frames"]))
    else:
        nodes.append(helper.make_node("Identity", ["relu"], ["frames"]))
    nodes.append(helper.make_node("ReduceMax", ["frames", "two"], ["vector"], keepdims=0))
    used = {name for node in nodes for name in node.input}
    return graph_of(
        nodes,
        input_shape=shape,
        outputs={"frames": ["n", D, "t"], "vector": ["n", D]},
        constants={name: value for name, value in constants.items() if name in used},
    )


def write_own(folder: Path, graph: onnx.ModelProto, text: str) -> tuple[Path, Path]:
    """The graph's file and its description's."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, folder / "own.onnx")
    (folder / "own.toml").write_text(text, encoding="utf-8")
    return folder / "own.onnx", folder / "own.toml"
