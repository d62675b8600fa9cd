"""What is put around a graph that somebody brings: the folder is written, verified and served."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from model_export.clips import FIXTURES, read_clips
from model_export.errors import ExportError
from model_export.export import export
from model_export.sources.own import load_own
from service.inference.card import load_card
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.waveform import Waveform
from tests.model_export.conftest import ABOUT
from tests.model_export.own_graphs import (
    LOGMEL,
    MELS,
    PATCH,
    WAVEFORM,
    D,
    patch_graph,
    waveform_graph,
    write_own,
)

SCORES = '\n[scores]\noutput = "scores"\nlabels = ["a", "b", "c"]\nname = "letters"\n'
FRAMES = (
    'frames = "frames"\nlayout = ["batch", "numbers", "frames"]\nframe_period_ms = 10\n'
    "first_frame_centre_ms = 12.5"
)


def served(folder: Path, graph: onnx.ModelProto, text: str, **options: Any) -> Model:
    trained, _ = load_own(*write_own(folder, graph, text))
    clips = read_clips(FIXTURES, sample_rate=16_000, at_most=10)
    export(trained, folder / "out", about=ABOUT, clips=clips, labels=trained.labels, **options)
    return Model.load(folder / "out", device="cpu")


def noise(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(-3, 2, (MELS, n)).astype(np.float32) for n in lengths]


def by_hand(graph: onnx.ModelProto, patches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The brought graph itself, patch by patch: vectors, scores."""
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    found = [session.run(["vector", "scores"], {"logmel": ((p.T + 3) / 2)[None]}) for p in patches]
    return np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])


def test_overlapping_patches_are_the_graphs_own_and_one_batch_holds_any_length(tmp_path: Path) -> None:
    model = served(tmp_path, patch_graph(), LOGMEL + SCORES)
    logmels = noise(20, 29, 30, 333, 1010)
    outputs = model.run(logmels, frames=True)
    for logmel, output in zip(logmels, outputs, strict=True):
        starts = range(0, logmel.shape[1] - PATCH + 1, 10)
        vectors, scores = by_hand(patch_graph(), [logmel[:, start : start + PATCH] for start in starts])
        assert output.count == len(vectors)
        np.testing.assert_allclose(output.frames, vectors, atol=1e-6)
        np.testing.assert_allclose(output.sum, vectors.sum(axis=0), atol=1e-4)
        np.testing.assert_allclose(output.max, vectors.max(axis=0), atol=1e-6)
        np.testing.assert_allclose(model.heads["letters"].score(vectors), scores, atol=1e-6)
    assert model.heads["letters"].labels == ("a", "b", "c")


def test_a_long_clip_is_the_mean_of_all_its_patches(tmp_path: Path) -> None:
    model = served(tmp_path, patch_graph(), LOGMEL)
    (logmel,) = noise(5 * 1010 + 27)
    starts = range(0, logmel.shape[1] - PATCH + 1, 10)
    vectors, _ = by_hand(patch_graph(), [logmel[:, start : start + PATCH] for start in starts])
    embedding = embed(model.run, model.card, [logmel], frames=True)
    np.testing.assert_allclose(embedding.vector, vectors.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(embedding.frames, vectors, atol=1e-6)
    assert embedding.times_s is not None
    np.testing.assert_allclose(np.diff(embedding.times_s), 0.1)


def test_nothing_behind_a_clip_changes_a_bit(tmp_path: Path) -> None:
    served(tmp_path, patch_graph(), LOGMEL)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "encoder.onnx")
    (logmel,) = noise(64)
    n_frames = np.array([47, 64])
    clean = session.run(None, {"logmel": np.stack([logmel, logmel]), "n_frames": n_frames})
    dirty = np.stack([logmel, logmel])
    dirty[0, :, 47:] = np.nan
    for mine, theirs in zip(session.run(None, {"logmel": dirty, "n_frames": n_frames}), clean, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_last_patch_is_filled_up_with_silence_and_weighs_by_its_length(tmp_path: Path) -> None:
    model = served(tmp_path, patch_graph(), LOGMEL.replace("hop = 10", "shortest = 4"))
    assert (model.card.windows.kind, model.card.windows.frames) == ("independent", PATCH)
    (logmel,) = noise(26)
    silence = np.full((MELS, PATCH - 6), np.log(0.001), np.float32)
    vectors, _ = by_hand(patch_graph(), [logmel[:, :20], np.concatenate([logmel[:, 20:], silence], axis=1)])
    expected = (20 * vectors[0] + 6 * vectors[1]) / 26
    np.testing.assert_allclose(embed(model.run, model.card, [logmel]).vector, expected, atol=1e-6)
    (too_short,) = noise(23)  # three frames more are no patch
    np.testing.assert_allclose(
        embed(model.run, model.card, [too_short]).vector,
        by_hand(patch_graph(), [too_short[:, :20]])[0][0],
        atol=1e-6,
    )


@pytest.mark.parametrize("outputs", ['vector = "vector"', FRAMES], ids=["vector", "frames"])
@pytest.mark.parametrize("shape", [["n", "t"], ["t"], [1, "t"]], ids=["batch", "none", "one"])
def test_samples_reach_a_graph_as_they_are(shape: list[str | int], outputs: str, tmp_path: Path) -> None:
    text = WAVEFORM.replace('vector = "vector"', outputs)
    if len(shape) == 1:
        text = text.replace('"batch", "samples"', '"samples"')
    graph = waveform_graph(shape=shape)
    model = served(tmp_path, graph, text)
    assert model.card.frontend == Waveform(kind="waveform", hop_length=160)
    assert not (tmp_path / "out" / "frontend.safetensors").exists()
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    clips = [
        0.1 * np.random.default_rng(n).normal(size=n).astype(np.float32) for n in (480, 9_999, 16_000, 16_000)
    ]
    found = model.run([model.logmel(clip) for clip in clips], frames=True)
    for clip, output in zip(clips, found, strict=True):
        samples = clip[: len(clip) // 160 * 160]
        frames, vector = session.run(
            ["frames", "vector"], {"logmel": samples if len(shape) == 1 else samples[None]}
        )
        expected = frames[0].T if outputs == FRAMES else vector
        assert output.count == len(expected)
        np.testing.assert_allclose(output.frames, expected, atol=1e-5)


def test_a_network_that_bends_its_scores_is_served_with_them(tmp_path: Path) -> None:
    model = served(tmp_path, patch_graph(head="deep"), LOGMEL + SCORES)
    assert "heads/letters.onnx" in model.card.files
    (logmel,) = noise(PATCH)
    vectors, scores = by_hand(patch_graph(head="deep"), [logmel])
    np.testing.assert_allclose(model.heads["letters"].score(vectors), scores, atol=1e-6)


def test_the_card_says_what_may_share_a_batch(tmp_path: Path) -> None:
    assert served(tmp_path / "a", patch_graph(batch=1), LOGMEL).card.batching == "alone"
    assert served(tmp_path / "b", waveform_graph(shape=["n", "t"]), WAVEFORM).card.batching == "equal"
    card = load_card(tmp_path / "a" / "out")
    assert card.encoder.name == "onnx"
    assert card.windows.frames == PATCH
    assert card.self_test is not None


def test_eight_bits_are_measured_and_sixteen_refused(tmp_path: Path) -> None:
    model = served(tmp_path / "a", patch_graph(), LOGMEL, int8=True, least_cosine=0.99)
    assert model.precision == "int8"
    assert set(model.card.variants["int8"]) == {"cosine_mean", "cosine_min", "clips", "calibration_clips"}
    with pytest.raises(ExportError, match="no 16-bit one is made"):
        served(tmp_path / "b", patch_graph(), LOGMEL, float16=True)
    assert not (tmp_path / "b" / "out").exists()


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_graphs_of_other_opsets_keep_theirs(opset: int, tmp_path: Path) -> None:
    model = served(tmp_path, patch_graph(opset=opset), LOGMEL)
    assert onnx.load(tmp_path / "out" / "encoder.onnx").opset_import[0].version == opset
    assert model.probe() is None


def test_any_value_within_a_graph_may_be_the_vector(tmp_path: Path) -> None:
    graph = patch_graph()
    del graph.graph.output[0]  # only scores are left
    model = served(tmp_path, graph, LOGMEL + SCORES)
    assert model.card.embedding_size == D
    assert model.heads["letters"].score(np.zeros((1, D), np.float32)).shape == (1, 3)
