from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from model_export.graphs.byola_int8 import (
    FIRST_INPUT_MAX,
    FIRST_WEIGHT_MAX,
    INPUT_MAX,
    WEIGHT_MAX,
    activation_ranges,
    int8_graph,
    quantised_weight,
)
from model_export.sources.trained import Trained
from tests.model_export.graphs.test_byola import session_of

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def calibration() -> list[Array]:
    random = np.random.default_rng(0)
    return [random.uniform(-15.9, 2, (64, length)).astype(np.float32) for length in (40, 104)]


@pytest.fixture(scope="module")
def graph(trained: Trained, calibration: list[Array]) -> onnx.ModelProto:
    return int8_graph(trained.encoder, mean=trained.mean, std=trained.std, calibration=calibration)


def test_onnxruntime_fuses_every_layer_into_an_integer_operator(
    graph: onnx.ModelProto, trained: Trained, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that such a file fits this processor only
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert found["QLinearConv"] == len(trained.encoder.features) // 4
    assert found["QGemm"] == 2
    assert found["QuantizeLinear"] == 1, "the input alone: no float between the layers"
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Relu", "MaxPool"}


def test_two_products_of_any_layer_fit_into_16_bits() -> None:
    # what a CPU without VNNI adds up before it widens (the instruction vpmaddubsw)
    assert 2 * FIRST_INPUT_MAX * FIRST_WEIGHT_MAX <= 32767
    assert 2 * INPUT_MAX * WEIGHT_MAX <= 32767


def test_no_weight_and_no_input_exceeds_its_bits(graph: onnx.ModelProto) -> None:
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for name, values in constants.items():
        if name.endswith("weight_quantised"):
            assert np.abs(values).max() == (127 if name.startswith("conv1") else 64)
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    probe.graph.output.append(
        onnx.helper.make_tensor_value_info("input_7_bits", onnx.TensorProto.UINT8, None)
    )
    far_too_loud = np.full((1, 64, 16), 1000.0, dtype=np.float32)
    feed = {"logmel": far_too_loud, "n_frames": np.array([16])}
    assert session_of(probe).run(["input_7_bits"], feed)[0].max() == 127


def test_ranges_are_those_of_all_clips(trained: Trained, calibration: list[Array]) -> None:
    mean, std = trained.mean, trained.std
    ranges = activation_ranges(trained.encoder, mean=mean, std=std, logmels=calibration)
    lowest = (min(float(logmel.min()) for logmel in calibration) - mean) / std
    assert ranges["input"][0] == pytest.approx(lowest)
    assert all(low == 0 for name, (low, _) in ranges.items() if name != "input"), "behind a ReLU"


def test_a_weight_is_rounded_to_the_nearest_step_of_its_channel() -> None:
    weight = np.array([[1.0, -0.5, 0.26], [0.0, 0.02, 0.01], [0.0, 0.0, 0.0]], dtype=np.float32)
    integers, scale = quantised_weight(weight, limit=4)
    assert integers.tolist() == [[4, -2, 1], [0, 4, 2], [0, 0, 0]]
    np.testing.assert_allclose(scale[:2], [0.25, 0.005])
