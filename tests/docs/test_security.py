"""What SECURITY.md and docs/operations.md say of model folders is the same, and true."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.errors import ModelFolderError
from service.inference.session import Session, TensorRT

ROOT = Path(__file__).parents[2]
ENGINE = TensorRT(n_mels=4, shortest=8, longest=8, batch=1, half=False)


def opened(graph: onnx.GraphProto, folder: Path, *domains: str) -> Session:
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), folder / "encoder.onnx")
    return Session(folder / "encoder.onnx", device="cpu", threads=1, tensorrt=ENGINE)


def graph(node: onnx.NodeProto, *weights: TensorProto) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [4])], [value("y", TensorProto.FLOAT, [4])], list(weights)
    )


def weight_in(location: str) -> TensorProto:
    """Of 4 numbers that lie in a file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_both_pages_say_the_same_of_model_folders() -> None:
    for name in ("SECURITY.md", "docs/operations.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert re.search(r"hold[s]? no code of (its|their) own", text), name
        assert "a graph is a program all the same, which onnxruntime runs as C++ inside the server: " in text
        assert "serve only folders that you trust" in text


def test_a_graph_with_an_operator_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="not a registered function/op"):
        opened(graph(helper.make_node("Evil", ["x"], ["y"], domain="my.own")), tmp_path, "my.own")


@pytest.mark.parametrize("location", ["../secret", "{}/secret", "link"])
def test_a_graph_cannot_read_a_file_outside_of_its_folder(location: str, tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link").symlink_to(secret)
    with pytest.raises(ModelFolderError, match="External data path"):
        opened(
            graph(helper.make_node("Add", ["x", "w"], ["y"]), weight_in(location.format(tmp_path))), folder
        )
