"""Which device, with which options, and the sentence where it is not there."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service.errors import ModelFolderError
from service.inference import session as session_module
from service.inference.session import (
    Session,
    TensorRT,
    candidates,
    is_failure_of_device,
    obstacle,
    providers_of,
    run_bound,
)

ENGINE = TensorRT(n_mels=64, shortest=8, longest=1000, batch=32, half=False, cache=Path("/var/engines"))
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def session(toy_folder: Path) -> Session:
    return Session(toy_folder / "encoder.onnx", device="cpu", threads=1, tensorrt=ENGINE)


def feed() -> dict[str, np.ndarray]:
    return {"logmel": np.zeros((2, 16, 24), dtype=np.float32), "n_frames": np.array([24, 20])}


def test_a_session_that_was_opened_again_gives_the_same(session: Session) -> None:
    before = session.run(["sum", "count"], feed())
    session.reopen()
    for a, b in zip(session.run(["sum", "count"], feed()), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_session_that_cannot_be_opened_again_stays_closed(toy_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes((toy_folder / "encoder.onnx").read_bytes())
    session = Session(path, device="cpu", threads=1, tensorrt=ENGINE)
    path.write_bytes(b"no graph")
    with pytest.raises(ModelFolderError, match="cannot be loaded"):
        session.reopen()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(["sum"], feed())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("length", [24, 600])
@pytest.mark.parametrize("is_large", [False, True])
def test_a_batch_in_parts_gives_what_it_gives_in_one(
    toy_folder: Path, n: int, length: int, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(n)
    batch = {
        "logmel": random.normal(size=(n, 16, length)).astype(np.float32),
        "n_frames": random.integers(8, length + 1, size=n),
    }
    names = ["sum", "max", "count", "frames"]
    whole = Session(toy_folder / "encoder.onnx", device="cpu", threads=1, tensorrt=ENGINE)
    if is_large:
        monkeypatch.setattr(session_module, "LARGE_GRAPH_BYTES", 0)
    split = Session(toy_folder / "encoder.onnx", device="cpu", threads=3, tensorrt=ENGINE)
    split.reopen()
    for a, b in zip(split.run(names, batch), whole.run(names, batch), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_an_error_in_a_part_is_the_batchs_error(toy_folder: Path) -> None:
    split = Session(toy_folder / "encoder.onnx", device="cpu", threads=2, tensorrt=ENGINE)
    wrong = {"logmel": np.zeros((4, 7, 24), dtype=np.float32), "n_frames": np.array([24] * 4)}
    with pytest.raises(Exception, match="Got: 7 Expected: 16"):
        split.run(["sum"], wrong)
    assert len(split.run(["sum"], feed())[0]) == 2  # and it goes on


def test_io_binding_gives_what_a_plain_run_gives(toy_folder: Path) -> None:
    """As far as the CPU's provider can show it: on a GPU the server runs by binding."""
    plain = onnxruntime.InferenceSession(toy_folder / "encoder.onnx", providers=["CPUExecutionProvider"])
    for a, b in zip(
        run_bound(plain, ["max", "count"], feed()), plain.run(["max", "count"], feed()), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_auto_takes_the_cpu_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    session_module._logged_obstacle.cache_clear()
    caplog.set_level("INFO")
    assert candidates("auto") == ["cpu"]
    assert candidates("auto") == ["cpu"]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["device"], "once"
    assert "cpu, because this onnxruntime offers only" in caplog.text


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_a_device_that_is_not_there_is_refused_with_what_to_install() -> None:
    for device in ("cuda", "tensorrt"):
        with pytest.raises(ModelFolderError, match=f"device {device} was asked for, but .*extra `gpu`"):
            candidates(device)  # type: ignore[arg-type]


def test_without_a_driver_cuda_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime built with CUDA, on a machine without a GPU."""

    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(session_module.ctypes, "CDLL", no_library)
    obstacle.cache_clear()
    assert obstacle("cuda") == "no NVIDIA driver is installed (there is no libcuda.so.1)"
    obstacle.cache_clear()


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_a_provider_that_does_not_start_is_an_error_not_a_slow_server(toy_folder: Path) -> None:
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(ModelFolderError, match="could not start its CUDAExecutionProvider"),
    ):
        Session(toy_folder / "encoder.onnx", device="cuda", threads=1, tensorrt=ENGINE)


def test_cuda_searches_by_heuristics_and_grows_by_what_is_asked_for() -> None:
    (cuda, options), (last, _) = providers_of("cuda", ENGINE)
    assert (cuda, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}


def test_tensorrt_builds_one_engine_for_all_shapes_and_keeps_it() -> None:
    (name, options), *others = providers_of("tensorrt", ENGINE)
    assert name == "TensorrtExecutionProvider"
    assert [other for other, _ in others] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert options["trt_profile_min_shapes"] == "logmel:1x64x8,n_frames:1"
    assert options["trt_profile_opt_shapes"] == "logmel:32x64x104,n_frames:32"
    assert options["trt_profile_max_shapes"] == "logmel:32x64x1000,n_frames:32"
    assert options["trt_engine_cache_path"] == "/var/engines"
    assert options["trt_fp16_enable"] == "False"


@pytest.mark.parametrize(
    ("sentence", "is_of_device"),
    [
        ("CUDA failure 700: an illegal memory access was encountered", True),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9", True),
        ("CUDNN_STATUS_EXECUTION_FAILED", True),
        ("Non-zero status code returned while running Reshape node: Input shape:{1,2}", False),
    ],
)
def test_a_failure_of_the_device_is_known_by_its_words(sentence: str, is_of_device: bool) -> None:
    assert is_failure_of_device(RuntimeError(sentence)) is is_of_device
    assert is_failure_of_device(MemoryError())
