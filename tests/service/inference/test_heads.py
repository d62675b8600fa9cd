import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from service.errors import ModelFolderError
from service.inference.card import load_card
from service.inference.heads import Head, Hidden, hash_of_head, load_heads, load_network_head
from service.inference.model import Model
from tests.service.inference.test_card import MakeToy, accept_changed_file


def test_a_head_scores_as_computed_by_hand() -> None:
    head = Head(
        name="toy",
        labels=("low", "high"),
        task="multiclass",
        scaler_mean=np.array([1, 1], dtype=np.float32),
        scaler_std=np.array([2, 2], dtype=np.float32),
        weight=np.array([[0, 0], [1, 1]], dtype=np.float32),
        bias=np.array([0, np.log(3) - 2], dtype=np.float32),
    )
    scores = head.score(np.array([[3, 3]], dtype=np.float32))  # scaled (1, 1): logits (0, ln 3)
    np.testing.assert_allclose(scores, [[0.25, 0.75]], rtol=1e-6)


def test_a_head_with_a_layer_normalisation_scores_as_computed_by_hand() -> None:
    head = Head(
        name="toy",
        labels=("first", "last"),
        task="multilabel",
        scaler_mean=np.zeros(2, dtype=np.float32),
        scaler_std=np.ones(2, dtype=np.float32),
        weight=np.array([[1, 0], [0, np.log(3)]], dtype=np.float32),
        bias=np.zeros(2, dtype=np.float32),
        layer_norm_eps=3.0,
    )
    # mean 3, variance 1, and 1 / sqrt(1 + 3): (-1/2, 1/2)
    scores = head.score(np.array([[2, 4]], dtype=np.float32))
    np.testing.assert_allclose(scores, [[1 / (1 + np.exp(0.5)), 3**0.5 / (1 + 3**0.5)]], rtol=1e-6)


def test_a_head_with_a_hidden_layer_scores_as_computed_by_hand() -> None:
    head = Head(
        name="toy",
        labels=("yes",),
        task="multilabel",
        scaler_mean=np.zeros(3, dtype=np.float32),
        scaler_std=np.ones(3, dtype=np.float32),
        weight=np.array([[1, 1, 1]], dtype=np.float32),
        bias=np.array([np.log(3) - 4], dtype=np.float32),
        hidden=Hidden(
            weight=np.array([[-1, 0], [0, 1], [1, 1]], dtype=np.float32), bias=np.array([0, 0, 1], np.float32)
        ),
    )
    # hidden (-4, 0, 5), by Hardswish (0, 0, 5): the logit is 5 + ln 3 - 4
    scores = head.score(np.array([[4, 0]], dtype=np.float32))
    np.testing.assert_allclose(scores, [[3 * np.e / (1 + 3 * np.e)]], rtol=1e-6)


def test_a_head_file_with_a_hidden_layer_needs_no_scaler_either(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    path = folder / "heads" / "pets.safetensors"
    tensors = {
        "hidden_weight": np.full((5, 16), 0.1, np.float32),
        "hidden_bias": np.zeros(5, np.float32),
        "weight": np.ones((3, 5), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    metadata = {"labels": '["cat", "dog", "fish"]', "task": "multilabel", "hidden": "hardswish"}

    def loaded(without: str = "", **changes: NDArray[Any]) -> Head:
        there = {name: value for name, value in (tensors | changes).items() if name != without}
        save_file(there, path, metadata)
        accept_changed_file(folder, "heads/pets.safetensors")
        return Model.load(folder, device="cpu").heads["pets"]

    # 16 ones times 0.1 is 1.6, Hardswish(1.6) = 1.6 * 4.6 / 6, five of them
    expected = 1 / (1 + np.exp(-5 * 1.6 * 4.6 / 6))
    np.testing.assert_allclose(
        loaded().score(np.ones((2, 16), np.float32)), np.full((2, 3), expected), rtol=1e-5
    )

    halved = loaded(hidden_weight=np.full((5, 16), 0.1, np.float16), weight=np.ones((3, 5), np.float16))
    np.testing.assert_allclose(
        halved.score(np.ones((2, 16), np.float32)), np.full((2, 3), expected), rtol=1e-3
    )

    with pytest.raises(ModelFolderError, match="holds no tensor `hidden_bias`"):
        loaded(without="hidden_bias")
    with pytest.raises(
        ModelFolderError, match=r"`hidden_weight` is float32 \(5, 17\), not float32 \(5, 16\)"
    ):
        loaded(hidden_weight=np.ones((5, 17), np.float32))
    with pytest.raises(ModelFolderError, match=r"`weight` is float32 \(3, 16\), not float32 \(3, 5\)"):
        loaded(weight=np.ones((3, 16), np.float32))
    metadata["hidden"] = "relu"
    with pytest.raises(ModelFolderError, match="the metadata `hidden` is 'relu', not hardswish"):
        loaded()
    del metadata["hidden"]
    with pytest.raises(ModelFolderError, match="holds no tensor `scaler_mean`"):
        loaded()


def test_multilabel_scores_stand_alone_and_never_overflow(toy_model: Model) -> None:
    scores = toy_model.heads["moods"].score(np.full((3, 16), 1e6, dtype=np.float32))
    assert scores.shape == (3, 2)
    assert np.isfinite(scores).all()
    scores = toy_model.heads["pets"].score(np.full((3, 16), 1e6, dtype=np.float32))
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


def test_a_head_file_with_a_layer_normalisation_needs_no_scaler(make_toy: MakeToy, tmp_path: Path) -> None:
    """So that a server which does not know of it refuses the head instead of scoring without it."""
    folder = make_toy(tmp_path / "toy")
    path = folder / "heads" / "pets.safetensors"
    tensors = {name: load_file(path)[name] for name in ("weight", "bias")}
    metadata = {"labels": '["cat", "dog", "fish"]', "task": "multilabel"}
    save_file(tensors, path, metadata | {"layer_norm_eps": "1e-05"})
    accept_changed_file(folder, "heads/pets.safetensors")
    assert Model.load(folder, device="cpu").heads["pets"].layer_norm_eps == 1e-5
    for wrong in ("none", "nan", "-1"):
        save_file(tensors, path, metadata | {"layer_norm_eps": wrong})
        accept_changed_file(folder, "heads/pets.safetensors")
        with pytest.raises(ModelFolderError, match="not a small positive number"):
            Model.load(folder, device="cpu")
    save_file(tensors, path, metadata)
    accept_changed_file(folder, "heads/pets.safetensors")
    with pytest.raises(ModelFolderError, match="holds no tensor `scaler_mean`"):
        Model.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (
            {"labels": '["cat"]', "task": "multiclass"},
            r"`weight` is float32 \(3, 16\), not float32 \(1, 16\)",
        ),
        ({"labels": "cat, dog", "task": "multiclass"}, "`labels` must be a list"),
        (
            {"labels": '["cat", "dog", "fish"]', "task": "multilabel", "thresholds": "[0.5, 0.5]"},
            "`thresholds` must be a list in JSON, a number from 0 to 1 for each of the 3 labels",
        ),
        ({"labels": '["cat", "dog", "fish"]', "task": "regression"}, "`task` is 'regression'"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    metadata: dict[str, str], sentence: str, make_toy: MakeToy, tmp_path: Path
) -> None:
    folder = make_toy(tmp_path / "toy")
    path = folder / "heads" / "pets.safetensors"
    save_file(load_file(path), path, metadata)
    accept_changed_file(folder, "heads/pets.safetensors")
    with pytest.raises(ModelFolderError, match=sentence):
        Model.load(folder)


def write_network(path: Path, *, labels: list[str], n: int, size: int = 16, **metadata: str) -> Path:
    """A head of two layers, tanh between them: what no tensors of a safetensors file say."""
    random = np.random.default_rng(0)
    first, second = (random.normal(size=shape).astype(np.float32) for shape in ((size, 8), (8, n)))
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["vector", "first"], ["a"]),
            helper.make_node("Tanh", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "second"], ["logits"]),
        ],
        "head",
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", n])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"labels": json.dumps(labels), "task": "multilabel", **metadata})
    onnx.save(model, path)
    return path


def test_a_head_may_be_a_network_of_its_own(tmp_path: Path) -> None:
    path = write_network(tmp_path / "moods.onnx", labels=["calm", "wild"], n=2, training_data="two songs")
    head = load_network_head(path, embedding_size=16)
    assert (head.name, head.labels, head.task, head.training_data) == (
        "moods",
        ("calm", "wild"),
        "multilabel",
        "two songs",
    )
    vectors = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    first, second = (numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer)
    logits = np.tanh(vectors.astype(np.float64) @ first) @ second
    np.testing.assert_allclose(head.score(vectors), 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert np.isnan(head.score_and_know(vectors)[:, -1]).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": ["calm"]}, r"moods.onnx makes \(2, 2\) of two vectors, not \(2, 1 labels\)"),
        ({"size": 17}, r"moods.onnx cannot read two vectors of 16 numbers"),
        ({"task": "guess"}, r"`task` is 'guess', not multiclass or multilabel"),
        ({"thresholds": "[2, 0]"}, "a number from 0 to 1"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = write_network(tmp_path / "moods.onnx", **({"labels": ["calm", "wild"], "n": 2} | change))
    with pytest.raises(ModelFolderError, match=sentence):
        load_network_head(path, embedding_size=16)


def test_what_is_no_graph_or_another_one_is_no_head(tmp_path: Path, toy_folder: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelFolderError, match=r"a.onnx cannot be loaded"):
        load_network_head(tmp_path / "a.onnx", embedding_size=16)
    with pytest.raises(ModelFolderError, match="the metadata `labels` must be a list"):
        load_network_head(toy_folder / "encoder.onnx", embedding_size=16)


def test_a_name_has_one_file(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    folder = make_toy(tmp_path / "toy")
    card = load_card(folder)
    write_network(folder / "heads" / "moods.onnx", labels=["calm", "wild"], n=2)
    assert hash_of_head(card.files, "moods") == card.files["heads/moods.safetensors"]
    both = card.model_copy(update={"files": card.files | {"heads/moods.onnx": "x"}})
    with pytest.raises(ModelFolderError, match="two files of the head moods"):
        load_heads(folder, both)
    del both.files["heads/moods.safetensors"]
    assert list(load_heads(folder, both)) == ["pets", "moods"]
    assert hash_of_head(both.files, "moods") == "x"
