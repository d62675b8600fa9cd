"""The descriptions that are shipped: each fits a graph of the form that it speaks of, with random weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchaudio
from onnx import TensorProto, helper, numpy_helper

from encoders.frontend import EFFICIENTAT, MSM_MAE, Frontend, Waveform, mel_filterbank, window_of
from model_export.export import served_frontend
from model_export.sources.description import Description, frontend_of, read_description, statistics_of
from model_export.sources.own import OwnEncoder, load_own
from service.sound import logmel as served

DESCRIBE = Path(__file__).parents[2] / "model_export" / "describe"
NAMES = sorted(path.stem for path in DESCRIBE.glob("*.toml"))
N_LABELS = {"yamnet": 521, "passt": 527}


def said(name: str) -> Description:
    return read_description(DESCRIBE / f"{name}.toml")


def graph_for(description: Description) -> onnx.ModelProto:
    """Mean over all axes but the batch, or over pieces of time, times a random row: of the form, no more."""
    window, outputs = description.window, description.outputs
    time = "frames" if description.input.kind == "logmel" else "samples"
    sizes = {"batch": "n", "mels": description.frontend.get("n_mels"), 1: 1, time: window.patch or "t"}
    shape = [sizes[axis] for axis in description.input.layout]
    row = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    constants = {"row": row, "flat": np.array([0, -1], np.int64), "one": np.array([1], np.int64)}
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["all"])]
    if outputs.frames is None:
        nodes.append(helper.make_node("ReduceMean", ["all", "one"], ["mean"], keepdims=1))
        nodes.append(helper.make_node("MatMul", ["mean", "row"], [str(outputs.vector)]))
    else:
        assert outputs.frame_period_ms is not None
        n_mels = int(description.frontend["n_mels"])
        piece = round(outputs.frame_period_ms / 10 * n_mels)  # numbers of the log-mel in a frame
        constants["pieces"] = np.array([0, -1, piece], np.int64)
        constants["last"] = np.array([2], np.int64)
        nodes.append(helper.make_node("Reshape", ["all", "pieces"], ["cut"]))
        nodes.append(helper.make_node("ReduceMean", ["cut", "last"], ["mean"], keepdims=1))
        nodes.append(helper.make_node("MatMul", ["mean", "row"], [outputs.frames]))
    names = [outputs.vector or outputs.frames]
    if description.scores is not None:
        constants["scores"] = np.random.default_rng(1).normal(size=(8, N_LABELS["passt"])).astype(np.float32)
        constants["scores"] = constants["scores"][:, : 521 if "emb" in names else 527]
        nodes.append(helper.make_node("MatMul", [str(names[0]), "scores"], [description.scores.output]))
        names.append(description.scores.output)
    graph = helper.make_graph(
        nodes,
        "form",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["n", *["t"] * (name == outputs.frames), "d"]
            )
            for name in names
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_description_fits_a_graph_of_its_form(name: str, tmp_path: Path) -> None:
    description = said(name)
    onnx.save(graph_for(description), tmp_path / "graph.onnx")
    labels = None
    if description.scores is not None:
        labels = tmp_path / "labels.txt"
        labels.write_text("".join(f"label {i}\n" for i in range(N_LABELS[name])))
    trained, _ = load_own(tmp_path / "graph.onnx", DESCRIBE / f"{name}.toml", labels=labels)
    assert isinstance(trained.encoder, OwnEncoder)
    assert trained.encoder.batching in ("padded", "equal")
    assert trained.encoder.embedding_size == 8


def normalised(name: str, waveform: np.ndarray) -> np.ndarray:
    """(n_mels, T): what the network of this description is given, by the server's own routine."""
    description = said(name)
    frontend = frontend_of(description)
    assert isinstance(frontend, Frontend)
    own = served_frontend(frontend)
    assert isinstance(own, served.Frontend)
    mean, std = statistics_of(description)
    logmel = served.LogMel(own, window_of(frontend), mel_filterbank(frontend))
    return (logmel(waveform) - mean) / std


def sound() -> np.ndarray:
    random = np.random.default_rng(0)
    return (0.1 * random.normal(size=16_000) * np.linspace(1, 0.01, 16_000)).astype(np.float32)


def test_the_front_end_of_beats_is_kaldis() -> None:
    waveform = torch.from_numpy(sound())[None] * 2**15
    fbank = torchaudio.compliance.kaldi.fbank(
        waveform, num_mel_bins=128, sample_frequency=16_000, frame_length=25, frame_shift=10
    )
    expected = (fbank.numpy().T - 15.41663) / (2 * 6.55582)
    # The lowest bands are sums of a bin or two, where float32 of another order differs by 1e-3 of a nat.
    np.testing.assert_allclose(normalised("beats", sound()), expected, atol=1e-3)


def test_the_front_end_of_atst_is_torchaudios_but_for_what_is_80_db_below() -> None:
    mel = torchaudio.transforms.MelSpectrogram(
        16_000, f_min=60, f_max=7800, hop_length=160, win_length=1024, n_fft=1024, n_mels=64
    )(torch.from_numpy(sound()))
    decibels = torchaudio.transforms.AmplitudeToDB(stype="power", top_db=80)(mel).numpy()
    expected = (decibels + 79.6482) / (50.6842 + 79.6482) * 2 - 1
    # torchaudio's triangles are linear in Hz, ours on this scale in mel: 0.05 dB for noise; 65 dB are 1 here.
    np.testing.assert_allclose(normalised("atst", sound()), expected, atol=1.5e-3)


def test_front_ends_of_one_family_are_the_same() -> None:
    assert frontend_of(said("passt")) == EFFICIENTAT
    assert frontend_of(said("m2d")) == MSM_MAE
    assert frontend_of(said("openl3")) == Waveform(48_000, 480)
