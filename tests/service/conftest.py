"""A toy model folder that obeys the whole contract and is made in milliseconds, without torch.

Two 3x3 convolutions with 2x2 pooling in between, as in BYOL-A 2022, but 4 channels over 16 mel bands:
stride 4, a receptive field of one output frame to each side, masks by `n_frames`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from service.http.app import create_app
from service.inference.card import (
    PROJECTION_FILE,
    Card,
    ProjectionFacts,
    load_card,
    sha256_of,
    write_card,
)
from service.inference.model import Model
from service.settings import Settings
from tests.service.servers import in_thread, url_of

N_MELS, CHANNELS, D = 16, 4, 16
N_FFT, HOP = 512, 160


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Real sounds in all formats; invalid/ holds broken files."""
    return Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., Path]:
    """make_toy(folder, **changes to the card) writes a toy model folder and returns it."""
    return write_toy


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one model, `toy`, with the heads `pets` (multiclass) and `moods` (multilabel)."""
    folder = tmp_path_factory.mktemp("models")
    write_toy(folder / "toy")
    return folder


@pytest.fixture(scope="session")
def projected_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a `toy` with a projection: 8 of its 16 axes."""
    folder = tmp_path_factory.mktemp("projected")
    write_toy_projection(write_toy(folder / "toy"))
    return folder


@pytest.fixture(scope="session")
def toy_folder(models_dir: Path) -> Path:
    """Read only: tests that damage a folder make their own with make_toy."""
    return models_dir / "toy"


@pytest.fixture(scope="session")
def toy_model(toy_folder: Path) -> Model:
    return Model.load(toy_folder, device="cpu")


def write_toy(folder: Path, **changes: object) -> Path:
    (folder / "heads").mkdir(parents=True)
    onnx.save(toy_graph(), folder / "encoder.onnx")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    arrays = {"window": window.astype(np.float32), "filterbank": triangles()}
    save_file(arrays, folder / "frontend.safetensors")
    write_toy_head(folder / "heads" / "pets.safetensors", ["cat", "dog", "fish"], "multiclass")
    write_toy_head(folder / "heads" / "moods.safetensors", ["calm", "wild"], "multilabel")
    files = ["encoder.onnx", "frontend.safetensors", "heads/pets.safetensors", "heads/moods.safetensors"]
    card = {
        "format": 1,
        "name": "toy",
        "version": "1",
        "description": "Two small convolutions with random weights, for tests.",
        "licence": "Apache-2.0",
        "created": "2026-01-01",
        "encoder": {"name": "toy", "parameters": {}},
        "sample_rate": 16_000,
        "frontend": {
            "n_fft": N_FFT,
            "win_length": N_FFT,
            "hop_length": HOP,
            "n_mels": N_MELS,
            "centred": True,
            "log": "ln_add",
            "log_floor": 1.1920929e-07,
            "f_min_hz": 0,
            "f_max_hz": 8000,
            "mel_scale": "linear",
            "mel_norm": "none",
        },
        "normalization": {"mean": -8.0, "std": 4.0},
        "embedding_size": D,
        "frame_period_ms": 40,
        "first_frame_centre_ms": 15,
        "pooling": "mean+max",
        "min_samples": 640,
        "windows": {"kind": "exact", "stride": 4, "context": 1, "frames": 200},
        "files": {name: sha256_of(folder / name) for name in files},
    }
    write_card(folder, Card.model_validate(card | changes))
    return folder


def write_toy_projection(folder: Path) -> Path:
    """Adds projection.safetensors to a toy folder: 8 of 16 axes, whitening."""
    random = np.random.default_rng(3)
    axes, _ = np.linalg.qr(random.normal(size=(D, D)))
    tensors = {
        "centre": random.uniform(1, 3, size=D).astype(np.float32),
        "rotation": axes[:8].astype(np.float16),
        "scales": np.geomspace(1, 3, 8).astype(np.float32),
        "rest": np.array([4], dtype=np.float32),
    }
    save_file(tensors, folder / PROJECTION_FILE)
    card = load_card(folder)
    facts = ProjectionFacts(
        components=8, shrinkage=0.1, data="random numbers", clips=9, hours=0.1, precision="float32"
    )
    files = card.files | {PROJECTION_FILE: sha256_of(folder / PROJECTION_FILE)}
    write_card(folder, card.model_copy(update={"files": files, "projection": facts}))
    return folder


def write_toy_head(path: Path, labels: list[str], task: str) -> None:
    random = np.random.default_rng(len(labels))
    tensors = {
        "scaler_mean": np.full(D, 0.5, dtype=np.float32),
        "scaler_std": np.full(D, 2.0, dtype=np.float32),
        "weight": random.normal(size=(len(labels), D)).astype(np.float32),
        "bias": np.zeros(len(labels), dtype=np.float32),
    }
    quoted = ", ".join(f'"{label}"' for label in labels)
    save_file(
        tensors, path, {"labels": f"[{quoted}]", "task": task, "training_data": "none", "results": "{}"}
    )


def triangles() -> np.ndarray:
    """(n_bins, n_mels): half-overlapping triangles, equally spaced in Hz."""
    centres = np.linspace(0, N_FFT // 2, N_MELS + 2)[1:-1]
    distances = np.abs(np.arange(N_FFT // 2 + 1)[:, None] - centres)
    return np.maximum(0, 1 - distances / (centres[1] - centres[0])).astype(np.float32)


def toy_graph() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    constants = {
        "mean": np.float32(-8.0),
        "std": np.float32(4.0),
        "weight1": random.normal(scale=0.4, size=(CHANNELS, 1, 3, 3)).astype(np.float32),
        "weight2": random.normal(scale=0.3, size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32),
        "bias": np.full(CHANNELS, 0.1, dtype=np.float32),
        "zero": np.int64(0),
        "one": np.int64(1),
        "two": np.int64(2),
        "axes_1": np.array([1], dtype=np.int64),
        "axes_2": np.array([2], dtype=np.int64),
        "axes_12": np.array([1, 2], dtype=np.int64),
        "lowest": np.float32(-3e38),
        "flat": np.array([0, 0, D], dtype=np.int64),
    }
    node = helper.make_node
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        node("Sub", ["logmel", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["scaled"]),
        node("Unsqueeze", ["scaled", "axes_1"], ["image"]),
        *mask("image", "n_frames", "valid1"),
        node("Conv", ["valid1", "weight1", "bias"], ["conv1"], **conv),
        node("Relu", ["conv1"], ["relu1"]),
        node("MaxPool", ["relu1"], ["pool1"], **pool),
        node("Div", ["n_frames", "two"], ["n_halves"]),
        *mask("pool1", "n_halves", "valid2"),
        node("Conv", ["valid2", "weight2", "bias"], ["conv2"], **conv),
        node("Relu", ["conv2"], ["relu2"]),
        node("MaxPool", ["relu2"], ["pool2"], **pool),
        node("Div", ["n_halves", "two"], ["count"]),
        node("Transpose", ["pool2"], ["by_time"], perm=[0, 3, 2, 1]),
        node("Reshape", ["by_time", "flat"], ["frames"]),
        *positions_below("frames", 1, "count", "is_valid"),
        node("Unsqueeze", ["is_valid", "axes_2"], ["is_valid_row"]),
        node("Cast", ["is_valid_row"], ["ones"], to=TensorProto.FLOAT),
        node("Mul", ["frames", "ones"], ["valid_frames"]),
        node("ReduceSum", ["valid_frames", "axes_1"], ["sum"], keepdims=0),
        node("Where", ["is_valid_row", "frames", "lowest"], ["for_max"]),
        node("ReduceMax", ["for_max", "axes_1"], ["max"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            value("logmel", TensorProto.FLOAT, ["batch", N_MELS, "frames_in"]),
            value("n_frames", TensorProto.INT64, ["batch"]),
        ],
        [
            value("frames", TensorProto.FLOAT, ["batch", "frames_out", D]),
            value("sum", TensorProto.FLOAT, ["batch", D]),
            value("max", TensorProto.FLOAT, ["batch", D]),
            value("count", TensorProto.INT64, ["batch"]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def mask(value: str, n: str, out: str) -> list[onnx.NodeProto]:
    """`out` is `value` (B, C, F, T) with zeros at times t >= n."""
    return [
        *positions_below(value, 3, n, f"{out}_is_valid"),
        helper.make_node("Cast", [f"{out}_is_valid"], [f"{out}_ones"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", [f"{out}_ones", "axes_12"], [f"{out}_mask"]),
        helper.make_node("Mul", [value, f"{out}_mask"], [out]),
    ]


def positions_below(value: str, axis: int, n: str, out: str) -> list[onnx.NodeProto]:
    """`out` (B, length of `value` along `axis`) is true where the position is below n (B,)."""
    node = helper.make_node
    return [
        node("Shape", [value], [f"{out}_shape"], start=axis, end=axis + 1),
        node("Squeeze", [f"{out}_shape"], [f"{out}_length"]),
        node("Range", ["zero", f"{out}_length", "one"], [f"{out}_positions"]),
        node("Unsqueeze", [n, "axes_1"], [f"{out}_limit"]),
        node("Less", [f"{out}_positions", f"{out}_limit"], [out]),
    ]


Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serve(models_dir: Path) -> Serve:
    """`with serve(**settings) as url:` – a server in a thread with the toy model, as `python -m service`."""

    @contextmanager
    def serving(**settings: object) -> Iterator[str]:
        own = {"models_dir": models_dir, "model": "toy", "device": "cpu", "threads": 2} | settings
        app = create_app(Settings.model_validate(own))
        with in_thread(app) as server:
            yield url_of(server)

    return serving


@pytest.fixture(scope="session")
def live_url(serve: Serve) -> Iterator[str]:
    """Of a server with the usual settings."""
    with serve() as url:
        yield url
