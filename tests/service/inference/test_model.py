import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from service import model as model_module
from service.errors import ModelFolderError, Overloaded
from service.model import (
    Card,
    Head,
    Model,
    load_card,
    padded_length,
    padded_lengths,
    sha256_of,
    write_card,
)
from service.selftest import SelfTest, fingerprint
from service.session import Session, TensorRT

MakeToy = Callable[..., Path]


def log_mels(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(-8, 4, (16, n)).astype(np.float32) for n in lengths]


def change_card(folder: Path, **changes: object) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def accept_changed_file(folder: Path, name: str) -> None:
    """As an exporter would: the file is another one, and the card knows."""
    card = load_card(folder)
    write_card(folder, card.model_copy(update={"files": card.files | {name: sha256_of(folder / name)}}))


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


def test_multilabel_scores_stand_alone_and_never_overflow(toy_model: Model) -> None:
    scores = toy_model.heads["moods"].score(np.full((3, 16), 1e6, dtype=np.float32))
    assert scores.shape == (3, 2)
    assert np.isfinite(scores).all()
    scores = toy_model.heads["pets"].score(np.full((3, 16), 1e6, dtype=np.float32))
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


def test_a_card_is_written_and_read_back_the_same(toy_folder: Path, tmp_path: Path) -> None:
    card = load_card(toy_folder)
    write_card(tmp_path, card)
    assert load_card(tmp_path) == card
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_int8_is_taken_on_a_cpu_when_it_is_there(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    (folder / "encoder.int8.onnx").write_bytes((folder / "encoder.onnx").read_bytes())
    accept_changed_file(folder, "encoder.int8.onnx")
    assert Model.load(folder, device="cpu").precision == "int8"
    assert Model.load(folder, device="cpu", precision="float32").precision == "float32"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"embedding_size": "many"}, "embedding_size: Input should be a valid integer"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"name": "../etc"}, "name: String should match"),
        ({"min_samples": 300}, "min_samples = 300 gives 2 log-mel frames"),
        (
            {"windows": {"kind": "exact", "stride": 4, "frames": 200, "min_frames": 96}},
            "gives 5 log-mel frames, fewer than the 96",
        ),
        ({"windows": {"kind": "exact", "stride": 4, "context": 1, "frames": 8}}, "keeps none of its output"),
        ({"files": {}}, "lists no frontend.safetensors"),
        ({"embedding_size": 17}, r"`scaler_mean` is float32 \(16,\), not float32 \(17,\)"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_with_a_sentence(
    change: dict[str, object], sentence: str, make_toy: MakeToy, tmp_path: Path
) -> None:
    folder = make_toy(tmp_path / "toy")
    change_card(folder, **change)
    with pytest.raises(ModelFolderError, match=sentence):
        Model.load(folder)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"card.json cannot be read: No such file"):
        Model.load(tmp_path)


def test_a_file_that_is_missing_or_another_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    with (folder / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelFolderError, match=r"encoder.onnx is not the file of the card: its SHA-256 is"):
        Model.load(folder)
    (folder / "encoder.onnx").unlink()
    with pytest.raises(ModelFolderError, match=r"encoder.onnx is missing"):
        Model.load(folder)


def test_a_card_cannot_point_outside_its_folder(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    change_card(folder, files=load_card(folder).files | {"../secret": "0"})
    with pytest.raises(ModelFolderError, match="outside the folder"):
        Model.load(folder)


def test_a_front_end_of_another_shape_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    arrays = load_file(folder / "frontend.safetensors")
    save_file(arrays | {"window": np.ones(400, dtype=np.float32)}, folder / "frontend.safetensors")
    accept_changed_file(folder, "frontend.safetensors")
    with pytest.raises(ModelFolderError, match=r"`window` is float32 \(400,\), not float32 \(512,\)"):
        Model.load(folder)


def test_a_graph_with_other_outputs_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    graph = onnx.load(folder / "encoder.onnx")
    del graph.graph.output[3]
    onnx.save(graph, folder / "encoder.onnx")
    accept_changed_file(folder, "encoder.onnx")
    with pytest.raises(
        ModelFolderError, match=r"encoder.onnx has the outputs \['frames', 'sum', 'max'\], not"
    ):
        Model.load(folder)


def test_a_graph_for_other_mel_bands_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    graph = onnx.load(folder / "encoder.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 20
    onnx.save(graph, folder / "encoder.onnx")
    accept_changed_file(folder, "encoder.onnx")
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


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (
            {"labels": '["cat"]', "task": "multiclass"},
            r"`weight` is float32 \(3, 16\), not float32 \(1, 16\)",
        ),
        ({"labels": "cat, dog", "task": "multiclass"}, "`labels` must be a list"),
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


def test_a_precision_that_the_folder_has_not_is_refused(toy_folder: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"toy has no encoder.int8.onnx; choose"):
        Model.load(toy_folder, precision="int8")


def test_a_card_is_frozen(toy_folder: Path) -> None:
    card: Card = load_card(toy_folder)
    with pytest.raises(ValueError, match="frozen"):
        card.name = "other"  # type: ignore[misc]


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
    graph = onnx.load(folder / "encoder.onnx")
    weight = next(each for each in graph.graph.initializer if each.name == "weight2")
    damaged = onnx.numpy_helper.to_array(weight).copy()
    damaged[0, 0, 0, 0] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(damaged, "weight2"))
    onnx.save(graph, folder / "encoder.onnx")
    accept_changed_file(folder, "encoder.onnx")
    assert "of its norm from the one in the card" in str(Model.load(folder, device="cpu").probe())

    folder = with_self_test(make_toy(tmp_path / "other"))
    arrays = load_file(folder / "frontend.safetensors")
    save_file(arrays | {"window": arrays["window"] ** 2}, folder / "frontend.safetensors")
    accept_changed_file(folder, "frontend.safetensors")
    assert "of its norm from the one in the card" in str(Model.load(folder, device="cpu").probe())


def test_a_card_without_a_self_test_is_tested_for_nan(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    assert Model.load(folder, device="cpu").probe() is None
    graph = onnx.load(folder / "encoder.onnx")
    bias = next(each for each in graph.graph.initializer if each.name == "bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.nan, dtype=np.float32), "bias"))
    onnx.save(graph, folder / "encoder.onnx")
    accept_changed_file(folder, "encoder.onnx")
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
