from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from service.errors import ModelFolderError, Overloaded
from service.inference import model as model_module
from service.inference.card import load_card, write_card
from service.inference.model import Model, padded_length, padded_lengths
from service.inference.selftest import SelfTest, fingerprint
from service.inference.session import Session, TensorRT
from tests.service.inference.test_card import MakeToy, accept_changed_file, change_card


def log_mels(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(-8, 4, (16, n)).astype(np.float32) for n in lengths]


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """As another export would have written it."""
    graph = onnx.load(folder / "encoder.onnx")
    change(graph)
    onnx.save(graph, folder / "encoder.onnx")
    accept_changed_file(folder, "encoder.onnx")


def change_constant(graph: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    constant = next(each for each in graph.graph.initializer if each.name == name)
    constant.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(constant)), name))


def test_a_folder_is_loaded_with_its_card_and_heads(toy_model: Model) -> None:
    assert toy_model.card.name == "toy"
    assert (toy_model.device, toy_model.precision) == ("cpu", "float32")
    assert sorted(toy_model.heads) == ["moods", "pets"]
    assert toy_model.heads["pets"].labels == ("cat", "dog", "fish")


def test_an_output_holds_the_sum_and_maximum_of_its_frames(toy_model: Model) -> None:
    (output,) = toy_model.run(log_mels(101), frames=True)
    assert output.count == 25
    assert output.frames is not None
    assert output.frames.shape == (25, 16)
    np.testing.assert_allclose(output.sum, output.frames.sum(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(output.max, output.frames.max(axis=0))


def test_frames_come_only_if_asked_for(toy_model: Model) -> None:
    assert toy_model.run(log_mels(101))[0].frames is None


def test_an_embedding_does_not_depend_on_its_batch(toy_model: Model) -> None:
    clips = log_mels(4, 7, 50, 101, 103, 200)
    together = toy_model.run(clips, frames=True)
    for clip, output in zip(clips, together, strict=True):
        (alone,) = toy_model.run([clip], frames=True)
        assert alone.count == output.count
        np.testing.assert_allclose(output.sum, alone.sum, rtol=1e-5)
        np.testing.assert_allclose(output.max, alone.max, rtol=1e-5)
        np.testing.assert_allclose(output.frames, alone.frames, rtol=1e-5, atol=1e-6)


def test_a_clip_of_10_ms_is_padded_to_the_shortest_input(toy_model: Model) -> None:
    click = np.full(160, 0.5, dtype=np.float32)
    padded = np.concatenate([click, np.zeros(480, dtype=np.float32)])
    assert toy_model.card.min_samples == 640
    np.testing.assert_array_equal(toy_model.logmel(click), toy_model.logmel(padded))


def test_a_log_mel_in_blocks_is_that_of_the_whole_clip(toy_model: Model) -> None:
    samples = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    blocks = toy_model.logmel_blocks(np.array_split(samples, 7))
    np.testing.assert_array_equal(np.concatenate(list(blocks), axis=1), toy_model.logmel(samples))


@given(n=st.integers(1, 5000))
def test_padding_costs_less_than_an_eighth(n: int) -> None:
    assert 0 <= padded_length(n, longest=1000) - n < max(8, n / 8)


def test_lengths_are_few_and_a_full_window_is_one() -> None:
    lengths = {padded_length(n, longest=1000) for n in range(1, 1001)}
    assert len(lengths) == 40
    assert padded_lengths(1000) == sorted(lengths)
    assert padded_lengths(1000, shortest=96) == sorted(length for length in lengths if length >= 96)
    assert padded_length(101, longest=1000) == 104
    assert padded_length(999, longest=1000) == 1000


def test_int8_is_taken_on_a_cpu_when_it_is_there(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    (folder / "encoder.int8.onnx").write_bytes((folder / "encoder.onnx").read_bytes())
    accept_changed_file(folder, "encoder.int8.onnx")
    assert Model.load(folder, device="cpu").precision == "int8"
    assert Model.load(folder, device="cpu", precision="float32").precision == "float32"


def test_a_front_end_of_another_shape_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    arrays = load_file(folder / "frontend.safetensors")
    save_file(arrays | {"window": np.ones(400, dtype=np.float32)}, folder / "frontend.safetensors")
    accept_changed_file(folder, "frontend.safetensors")
    with pytest.raises(ModelFolderError, match=r"`window` is float32 \(400,\), not float32 \(512,\)"):
        Model.load(folder)


def test_a_graph_with_other_outputs_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    change_graph(folder, lambda graph: graph.graph.output.pop())
    with pytest.raises(
        ModelFolderError, match=r"encoder.onnx has the outputs \['frames', 'sum', 'max'\], not"
    ):
        Model.load(folder)


def test_a_graph_for_other_mel_bands_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")

    def take_20_bands(graph: onnx.ModelProto) -> None:
        graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 20

    change_graph(folder, take_20_bands)
    with pytest.raises(
        ModelFolderError, match=r"input `logmel` is .* 20, .*, not tensor\(float\) \['any', 16"
    ):
        Model.load(folder)


def test_a_file_that_is_no_graph_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    (folder / "encoder.onnx").write_bytes(b"not a graph")
    accept_changed_file(folder, "encoder.onnx")
    with pytest.raises(ModelFolderError, match=r"encoder.onnx cannot be loaded"):
        Model.load(folder)


def test_a_precision_that_the_folder_has_not_is_refused(toy_folder: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"toy has no encoder.int8.onnx; choose"):
        Model.load(toy_folder, precision="int8")


# ── The self-test ──


def with_self_test(folder: Path) -> Path:
    """As an exporter would write it."""
    card = load_card(folder)
    vector = Model.load(folder, device="cpu").probe_vector()
    write_card(
        folder, card.model_copy(update={"self_test": SelfTest(expected={"float32": fingerprint(vector)})})
    )
    return folder


def test_a_model_that_computes_what_its_card_says_passes(make_toy: MakeToy, tmp_path: Path) -> None:
    model = Model.load(with_self_test(make_toy(tmp_path / "toy")), device="cpu")
    assert model.probe() is None
    assert model.self_test() is None


def test_other_weights_or_another_front_end_are_noticed(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = with_self_test(make_toy(tmp_path / "toy"))

    def damaged(weight: np.ndarray) -> np.ndarray:
        weight = weight.copy()
        weight[0, 0, 0, 0] += 1.0
        return weight

    change_graph(folder, lambda graph: change_constant(graph, "weight2", damaged))
    assert "of its norm from the one in the card" in str(Model.load(folder, device="cpu").probe())

    folder = with_self_test(make_toy(tmp_path / "other"))
    arrays = load_file(folder / "frontend.safetensors")
    save_file(arrays | {"window": arrays["window"] ** 2}, folder / "frontend.safetensors")
    accept_changed_file(folder, "frontend.safetensors")
    assert "of its norm from the one in the card" in str(Model.load(folder, device="cpu").probe())


def test_a_card_without_a_self_test_is_tested_for_nan(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    assert Model.load(folder, device="cpu").probe() is None
    change_graph(
        folder, lambda graph: change_constant(graph, "bias", lambda bias: np.full_like(bias, np.nan))
    )
    assert "NaN or infinite values" in str(Model.load(folder, device="cpu").probe())


# ── A session that fails ──


class FailingSession:
    """The toy's own session, which raises `error` while `broken` says so for this feed."""

    device = "cpu"

    def __init__(self, folder: Path, error: Exception) -> None:
        engine = TensorRT(n_mels=16, shortest=8, longest=200, batch=8, half=False)
        self._open = lambda: Session(folder / "encoder.onnx", device="cpu", threads=1, tensorrt=engine)
        self._session = self._open()
        self._error = error
        self.broken: Callable[[np.ndarray], bool] = lambda logmel: False
        self.heals = True
        self.opened = 1

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.broken(feed["logmel"]):
            raise self._error
        return self._session.run(names, feed)

    def reopen(self) -> None:
        self.opened += 1
        self._session = self._open()
        if self.heals:
            self.broken = lambda logmel: False


@pytest.fixture
def failing(toy_folder: Path, toy_model: Model) -> Callable[[Exception], tuple[Model, FailingSession]]:
    def make(error: Exception) -> tuple[Model, FailingSession]:
        session = FailingSession(toy_folder, error)
        model = Model(toy_folder, toy_model.card, toy_model._logmel, session, {}, "float32")
        return model, session

    return make


MakeFailing = Callable[[Exception], tuple[Model, FailingSession]]
CUDA = RuntimeError("CUDA failure 700: an illegal memory access was encountered")


def test_after_a_failure_of_the_device_the_session_is_opened_again_and_the_batch_run_once_more(
    failing: MakeFailing, toy_model: Model
) -> None:
    model, session = failing(CUDA)
    session.broken = lambda logmel: True
    outputs = model.run(log_mels(101, 50))
    assert session.opened == 2
    assert model.failure is None
    for output, expected in zip(outputs, toy_model.run(log_mels(101, 50)), strict=True):
        np.testing.assert_array_equal(output.max, expected.max)


def test_an_error_that_the_test_signal_shares_is_the_sessions_fault(failing: MakeFailing) -> None:
    model, session = failing(RuntimeError("unspecified"))
    session.broken = lambda logmel: True
    assert len(model.run(log_mels(101))) == 1
    assert session.opened == 2


def test_an_error_that_the_test_signal_does_not_share_is_the_inputs_fault(failing: MakeFailing) -> None:
    model, session = failing(RuntimeError("Reshape: the shapes do not fit"))
    session.broken = lambda logmel: logmel.shape[2] == 56
    with pytest.raises(RuntimeError, match="Reshape"):
        model.run(log_mels(50))
    assert session.opened == 1
    assert model.failure is None
    assert len(model.run(log_mels(101))) == 1


def test_memory_that_is_too_small_for_one_batch_opens_the_session_once_not_for_each(
    failing: MakeFailing,
) -> None:
    model, session = failing(RuntimeError("Failed to allocate memory for requested buffer of size 9"))
    session.heals = False
    session.broken = lambda logmel: logmel.shape[0] > 1
    for _ in range(3):
        with pytest.raises(RuntimeError, match="allocate"):
            model.run(log_mels(101, 101))
    assert session.opened == 2
    assert model.failure is None, "a batch of one still runs"
    assert len(model.run(log_mels(101))) == 1


def test_a_session_that_stays_broken_is_not_tried_with_every_request(
    failing: MakeFailing, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, session = failing(CUDA)
    session.heals = False
    session.broken = lambda logmel: True
    for _ in range(3):
        with pytest.raises(Overloaded, match="could not be opened again: its graph fails on the test signal"):
            model.run(log_mels(101))
    assert session.opened == 2
    assert "CUDA failure 700" in str(model.failure)
    assert model.self_test() == model.failure

    monkeypatch.setattr(model_module, "REOPEN_EVERY_S", 0.0)  # some seconds later
    session.heals = True
    assert model.self_test() is None
    assert (model.failure, session.opened) == (None, 3)
    assert len(model.run(log_mels(101))) == 1


def test_a_folder_that_was_exchanged_meanwhile_is_not_opened_in_its_place(
    make_toy: MakeToy, tmp_path: Path, toy_model: Model
) -> None:
    folder = make_toy(tmp_path / "toy")
    session = FailingSession(folder, CUDA)
    model = Model(folder, load_card(folder), toy_model._logmel, session, {}, "float32")
    with (folder / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    session.broken = lambda logmel: True
    with pytest.raises(Overloaded, match=r"encoder.onnx is not the file of the card"):
        model.run(log_mels(101))
    assert session.opened == 1


def test_nothing_shorter_than_the_shortest_input_is_run_to_warm_up(
    make_toy: MakeToy, tmp_path: Path, toy_model: Model
) -> None:
    windows = {"kind": "exact", "stride": 4, "context": 1, "frames": 200, "min_frames": 96}
    folder = make_toy(tmp_path / "toy", windows=windows, min_samples=16_000)
    session = Counting()
    Model(folder, load_card(folder), toy_model._logmel, session, {}, "float32").warm_up(
        max_batch_frames=400, max_batch_items=8
    )
    assert min(shape[2] for shape in session.shapes) == 96


class Counting:
    """A session on a GPU, as far as its shapes go."""

    device = "cuda"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.shapes.append(feed["logmel"].shape)
        n = len(feed["logmel"])
        return [np.zeros((n, 16), np.float32), np.zeros((n, 16), np.float32), np.ones(n, np.int64)]

    def reopen(self) -> None: ...


def test_on_a_gpu_every_padded_length_is_run_alone_and_as_a_full_batch(
    toy_folder: Path, toy_model: Model
) -> None:
    session = Counting()
    model = Model(toy_folder, toy_model.card, toy_model._logmel, session, {}, "float32")
    model.warm_up(max_batch_frames=400, max_batch_items=8)
    lengths = padded_lengths(200)
    assert {shape[2] for shape in session.shapes} == set(lengths)
    assert (8, 16, 8) in session.shapes
    assert (2, 16, 200) in session.shapes
    assert len(session.shapes) == 2 * len(lengths)


# ── Networks that cannot tell sound from padding ──


class Recording(Counting):
    """Its sums tell which item of which run an output comes from: the item's own first number."""

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        super().run(names, feed)
        first = np.repeat(feed["logmel"][:, 0, :1], 16, axis=1)
        assert (feed["n_frames"] == feed["logmel"].shape[2]).all(), "nothing is padded"
        return [first, first, np.ones(len(first), np.int64)]


@pytest.mark.parametrize(
    ("batching", "runs"),
    [
        ("equal", [(2, 16, 7), (2, 16, 50), (1, 16, 101)]),
        ("alone", [(1, 16, n) for n in (7, 50, 101, 7, 50)]),
    ],
)
def test_a_batch_holds_what_the_card_allows(
    batching: str, runs: list[tuple[int, ...]], toy_folder: Path, toy_model: Model
) -> None:
    session = Recording()
    card = toy_model.card.model_copy(update={"batching": batching})
    model = Model(toy_folder, card, toy_model._logmel, session, {}, "float32")
    clips = log_mels(7, 50, 101, 7, 50)
    outputs = model.run(clips)
    assert session.shapes == runs
    assert [float(output.sum[0]) for output in outputs] == [float(clip[0, 0]) for clip in clips]
    assert model.padded_length(101) == 101


def test_of_what_is_not_padded_only_full_windows_are_run_to_warm_up(
    toy_folder: Path, toy_model: Model
) -> None:
    session = Counting()
    card = toy_model.card.model_copy(update={"batching": "equal"})
    model = Model(toy_folder, card, toy_model._logmel, session, {}, "float32")
    model.warm_up(max_batch_frames=400, max_batch_items=8)
    assert session.shapes == [(1, 16, 200), (2, 16, 200)]


def test_a_network_may_take_samples_and_has_no_log_mel(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    (folder / "frontend.safetensors").unlink()
    files = {name: sha for name, sha in load_card(folder).files.items() if name != "frontend.safetensors"}
    change_card(
        folder,
        frontend={"kind": "waveform", "hop_length": 16},
        files=files,
        min_samples=64,
    )
    model = Model.load(folder)
    samples = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(model.logmel(samples).T.ravel(), samples[:992])
    blocks = list(model.logmel_blocks(np.array_split(samples, 7)))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), model.logmel(samples))
    assert model.logmel(samples[:10]).shape == (16, 4)
    assert model.probe() is None
    assert model.run([model.logmel(samples)])[0].count == 15


def test_a_front_end_of_neither_kind_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    change_card(folder, frontend={"kind": "spectrum", "hop_length": 16})
    with pytest.raises(ModelFolderError, match=r"frontend.waveform.kind: Input should be 'waveform'"):
        load_card(folder)
    change_card(folder, frontend={"hop_length": 16})
    with pytest.raises(ModelFolderError, match=r"frontend.logmel.n_fft: Field required"):
        load_card(folder)
