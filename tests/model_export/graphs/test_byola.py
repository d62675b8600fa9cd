import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from encoders.pooling import sum_max
from model_export.graphs.byola import Float, encoder_graph
from model_export.graphs.byola_int8 import int8_graph
from model_export.sources.trained import Trained
from model_export.verify import distance
from tests.model_export.conftest import random_trained

Array = NDArray[np.float32]
LENGTHS = [101, 61, 38, 16]


def session_of(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def float_graph(trained: Trained) -> onnx.ModelProto:
    return encoder_graph(trained.encoder, mean=trained.mean, std=trained.std, arithmetic=Float())


def run(session: onnxruntime.InferenceSession, logmel: Array, lengths: list[int]) -> dict[str, NDArray]:
    outputs = session.run(None, {"logmel": logmel, "n_frames": np.array(lengths)})
    return dict(zip([output.name for output in session.get_outputs()], outputs, strict=True))


@pytest.fixture(scope="module")
def logmels() -> Array:
    """(4, 64, 104), of which LENGTHS frames are valid."""
    return np.random.default_rng(0).uniform(-15.9, 2, (len(LENGTHS), 64, 104)).astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "int8"])
def session(request: pytest.FixtureRequest, trained: Trained, logmels: Array) -> onnxruntime.InferenceSession:
    if request.param == "float32":
        return session_of(float_graph(trained))
    graph = int8_graph(trained.encoder, mean=trained.mean, std=trained.std, calibration=list(logmels))
    return session_of(graph)


def test_the_graph_is_the_encoder_of_training(trained: Trained, logmels: Array) -> None:
    found = run(session_of(float_graph(trained)), logmels, LENGTHS)
    x = (torch.from_numpy(logmels)[:, None] - trained.mean) / trained.std
    count = torch.tensor(LENGTHS) // trained.encoder.stride
    with torch.no_grad():
        frames = trained.encoder(x, torch.tensor(LENGTHS))
        total, highest = sum_max(frames, count)
    assert found["count"].tolist() == count.tolist()
    # float32 with the batch normalisation folded in: a few roundings of 6e-8 each in another place
    assert distance(found["sum"], total.numpy()) < 1e-5
    assert distance(found["max"], highest.numpy()) < 1e-5
    for item, n in enumerate(count):
        assert distance(found["frames"][item, :n], frames[item, :n].numpy()) < 1e-5


def test_an_item_alone_is_the_same_as_in_a_padded_batch(
    session: onnxruntime.InferenceSession, logmels: Array
) -> None:
    together = run(session, logmels, LENGTHS)
    for item, length in enumerate(LENGTHS):
        alone = run(session, logmels[item : item + 1, :, :length].copy(), [length])
        n = int(alone["count"][0])
        assert together["count"][item] == n
        np.testing.assert_allclose(together["frames"][item, :n], alone["frames"][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(together["sum"][item], alone["sum"][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(together["max"][item], alone["max"][0], rtol=1e-5, atol=1e-5)


def test_garbage_beyond_an_items_frames_changes_nothing_at_all(
    session: onnxruntime.InferenceSession, logmels: Array
) -> None:
    clean = run(session, logmels, LENGTHS)
    spoilt = logmels.copy()
    for item, (length, garbage) in enumerate(zip(LENGTHS, [np.nan, np.inf, -1e30, 1e30], strict=True)):
        spoilt[item, :, length:] = garbage
    for name, value in run(session, spoilt, LENGTHS).items():
        np.testing.assert_array_equal(value, clean[name])


def test_frames_beyond_the_count_are_zero(session: onnxruntime.InferenceSession, logmels: Array) -> None:
    found = run(session, logmels, LENGTHS)
    for item, n in enumerate(found["count"]):
        assert not found["frames"][item, n:].any()
        assert found["frames"][item, :n].any()


def test_the_shortest_input_gives_one_frame(trained: Trained, session: onnxruntime.InferenceSession) -> None:
    shortest = np.zeros((1, 64, trained.encoder.stride), dtype=np.float32)
    found = run(session, shortest, [trained.encoder.stride])
    assert found["count"].tolist() == [1]
    np.testing.assert_allclose(found["sum"], found["max"])


def test_nothing_but_standard_operators_and_no_control_flow_is_in_the_graph() -> None:
    for graph in (float_graph(random_trained("byola-2020")), float_graph(random_trained("byola-2022"))):
        assert {node.op_type for node in graph.graph.node}.isdisjoint({"If", "Loop", "Scan"})
        assert [imported.domain for imported in graph.opset_import] == [""]
