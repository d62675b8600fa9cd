from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from model_export.errors import ExportError
from model_export.sources.own import OwnEncoder, load_own
from model_export.sources.own_scores import OwnScores
from model_export.sources.trained import Trained
from tests.model_export.own_graphs import (
    LOGMEL,
    MELS,
    PATCH,
    WAVEFORM,
    C,
    D,
    patch_graph,
    waveform_graph,
    write_own,
)

SCORES = '\n[scores]\noutput = "scores"\nlabels = ["a", "b", "c"]\n'


def loaded(folder: Path, graph: onnx.ModelProto, text: str) -> Trained:
    return load_own(*write_own(folder, graph, text))[0]


def encoder_of(folder: Path, graph: onnx.ModelProto, text: str) -> OwnEncoder:
    encoder = loaded(folder, graph, text).encoder
    assert isinstance(encoder, OwnEncoder)
    return encoder


def test_patches_lie_where_the_description_says(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, patch_graph(), LOGMEL)
    assert (encoder.embedding_size, encoder.per_patch, encoder.batching) == (D, 1, "padded")
    assert (encoder.windows.kind, encoder.windows.stride, encoder.windows.reach) == ("exact", 10, 10)
    assert encoder.windows.frames == 1010  # ten seconds of patches, and the end of the last one
    assert encoder.frame_period_ms == 100
    assert encoder.first_frame_centre_ms == (19 * 160 + 400) / 2 / 16  # half of what a patch is made of
    assert encoder.count(torch.tensor([19, 20, 29, 30, 1010])).tolist() == [0, 1, 1, 2, 100]


def test_what_the_graph_is_given_is_what_its_makers_would_give_it(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, patch_graph(), LOGMEL)
    x = np.random.default_rng(0).normal(size=(MELS, 40)).astype(np.float32)
    weight = next(each for each in encoder.graph.model.graph.initializer if each.name == "own/weight")
    patches = [x[:, start : start + PATCH].T.ravel() for start in (0, 10, 20)]
    expected = np.tanh(np.stack(patches) @ onnx.numpy_helper.to_array(weight))
    np.testing.assert_allclose(encoder(torch.from_numpy(x)[None, None])[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("graph", "text", "batching", "why"),
    [
        (lambda: patch_graph(batch=1), LOGMEL, "alone", "takes one clip at a time"),
        (lambda: waveform_graph(shape=["n", "t"]), WAVEFORM, "equal", ""),
        (
            lambda: waveform_graph(shape=["n", "t"], leaks=True),
            WAVEFORM,
            "alone",
            "another vector than alone",
        ),
        (
            lambda: waveform_graph(shape=["t"]),
            WAVEFORM.replace('"batch", "samples"', '"samples"'),
            "alone",
            "no axis for a batch",
        ),
    ],
)
def test_what_may_share_a_batch_is_found_out(
    graph: Callable[[], Any], text: str, batching: str, why: str, tmp_path: Path
) -> None:
    encoder = encoder_of(tmp_path, graph(), text)
    assert encoder.batching == batching
    assert why in encoder.why_alone
    if encoder.patch:
        assert encoder.windows.frames == PATCH  # one patch at a time


def test_a_clip_of_any_length_gives_one_vector_or_frames(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, waveform_graph(shape=["n", "t"]), WAVEFORM)
    assert (encoder.windows.kind, encoder.windows.frames, encoder.windows.min_frames) == (
        "independent",
        200,
        3,
    )
    assert (encoder.frame_period_ms, encoder.first_frame_centre_ms) == (2000, 1000)
    frames = WAVEFORM.replace(
        'vector = "vector"',
        'frames = "frames"\nlayout = ["batch", "numbers", "frames"]\npooling = "mean+max"\n'
        "frame_period_ms = 10",
    )
    encoder = encoder_of(tmp_path, waveform_graph(shape=["n", "t"]), frames)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 160, 10)).astype(np.float32))
    assert encoder(x).shape == (1, 1 + (1600 - 400) // 160, D)
    torch.testing.assert_close(encoder.pool(encoder(x)), encoder(x).mean(dim=1) + encoder(x).amax(dim=1))


@pytest.mark.parametrize(
    ("graph", "text", "sentence"),
    [
        (lambda: patch_graph(), LOGMEL.replace("patch = 20", "patch = 24"), "takes 20 frames, and .* is 24"),
        (
            lambda: patch_graph(),
            LOGMEL.replace("patch = 20\nhop = 10", "longest = 20"),
            r"takes 20 frames, always: give \[window\] patch = 20",
        ),
        (lambda: patch_graph(batch=4), LOGMEL, "always 4 clips at once"),
        (
            lambda: patch_graph(),
            LOGMEL.replace('"frames", "mels"', '1, "frames", "mels"'),
            r"has 3 axes, \(any, 20, 16\), and the layout names 4: batch, 1, frames, mels",
        ),
        (lambda: patch_graph(), LOGMEL.replace("n_mels = 16", "n_mels = 32"), "of 16 mel bands; .* is 32"),
        (
            lambda: patch_graph(),
            LOGMEL.replace('"vector"', '"embedding"'),
            "its outputs are `vector`, `scores`",
        ),
        (
            lambda: patch_graph(frames="t"),
            LOGMEL.replace("patch = 20", "patch = 24"),
            r"The graph fails on an input of the shape \[1, 24, 16\]",
        ),
        (
            lambda: waveform_graph(shape=["n", "t"]),
            WAVEFORM.replace(
                'vector = "vector"', 'frames = "frames"\nlayout = ["batch", "numbers", "frames"]'
            ),
            "frame_period_ms is needed",
        ),
        (
            lambda: waveform_graph(shape=["n", "t"]),
            WAVEFORM.replace('vector = "vector"', 'frames = "frames"\nframe_period_ms = 20'),
            r"not free of its length|lie .* ms apart",
        ),
        (
            lambda: waveform_graph(shape=["n", "t"]),
            WAVEFORM.replace("shortest = 400", "shortest = 100"),
            r"fails on an input of the shape \[1, 160\]",
        ),
        (
            lambda: waveform_graph(shape=["n", "t"]),
            WAVEFORM.replace('vector = "vector"', 'frames = "vector"'),
            r"`vector` has the shape \[1, 6\], not the 3 axes",
        ),
        (
            lambda: patch_graph(),
            LOGMEL.replace('kind = "logmel"', 'kind = "logmel"\nname = "x"'),
            "has no input `x`, only `logmel`",
        ),
    ],
)
def test_a_graph_that_is_not_what_was_said_is_refused(
    graph: Callable[[], Any], text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        loaded(tmp_path, graph(), text)


def another(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    graph = patch_graph()
    change(graph)
    return graph


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda m: m.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n"])),
            "takes `logmel`, `mask`: it must take the sound and nothing else",
        ),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT16),
            "`logmel` is of float16, not of float32",
        ),
        (
            lambda m: setattr(m.graph.node[2], "domain", "my.own"),
            r"needs `my.own.Tanh`, operators of somebody",
        ),
        (lambda m: setattr(m.graph.node[2], "op_type", "Tanhh"), "is no valid ONNX: .*Tanhh"),
        (lambda m: m.graph.ClearField("node"), "is no ONNX file, or its graph is empty"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "is no valid ONNX|cannot open the graph"),
    ],
)
def test_a_graph_that_cannot_be_run_is_refused(
    change: Callable[[onnx.ModelProto], object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        loaded(tmp_path, another(change), LOGMEL)


def test_weights_beside_the_graph_are_taken_in_or_missed(tmp_path: Path) -> None:
    graph, describe = write_own(tmp_path, patch_graph(), LOGMEL)
    onnx.save(patch_graph(), graph, save_as_external_data=True, location="own.data", size_threshold=0)
    trained, _ = load_own(graph, describe)
    assert isinstance(trained.encoder, OwnEncoder)
    assert not any(
        onnx.external_data_helper.uses_external_data(t) for t in trained.encoder.graph.model.graph.initializer
    )
    (tmp_path / "own.data").unlink()
    with pytest.raises(ExportError, match="keeps its weights in another file, which cannot be read"):
        load_own(graph, describe)
    graph.write_bytes(b"no graph at all")
    with pytest.raises(ExportError, match="is no ONNX file"):
        load_own(graph, describe)
    with pytest.raises(ExportError, match="does not exist"):
        load_own(tmp_path / "none.onnx", describe)


def test_an_older_graph_is_brought_up_to_date(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, patch_graph(opset=11), LOGMEL)
    assert encoder.graph.model.opset_import[0].version == 18


# ── Scores ──


def scores_of(folder: Path, graph: onnx.ModelProto, text: str) -> OwnScores:
    tags = loaded(folder, graph, text).tags
    assert isinstance(tags, OwnScores)
    return tags


def test_linear_scores_are_measured_whatever_computes_them(tmp_path: Path) -> None:
    tags = scores_of(tmp_path, patch_graph(), LOGMEL + SCORES)
    assert (tags.task, tags.n_labels) == ("multilabel", C)  # of the sigmoid
    assert tags.linear is not None
    weight, bias = tags.linear
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in patch_graph().graph.initializer}
    np.testing.assert_allclose(weight, constants["scores_weight"].T, atol=1e-6)
    np.testing.assert_allclose(bias, constants["scores_bias"], atol=1e-7)


def test_scores_that_bend_are_told_from_linear_ones(tmp_path: Path) -> None:
    tags = scores_of(tmp_path, patch_graph(head="deep"), LOGMEL + SCORES)
    assert tags.linear is None
    vectors = np.random.default_rng(0).normal(size=(2, D)).astype(np.float32)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in patch_graph().graph.initializer}
    expected = np.abs(vectors) @ constants["scores_weight"] + constants["scores_bias"]
    np.testing.assert_allclose(tags(torch.from_numpy(vectors)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "text", "sentence"),
    [
        ("wide", LOGMEL + SCORES, "is not computed from `vector` alone"),
        ("linear", LOGMEL + SCORES.replace('"c"', '"c", "d"'), "4 names for 3 scores"),
        ("linear", LOGMEL + SCORES.replace('"scores"', '"logits"'), "task is needed: `logits` does not come"),
        (
            "linear",
            LOGMEL + SCORES + 'task = "multiclass"\n',
            "task is multiclass, and the graph .* multilabel",
        ),
        (
            "linear",
            LOGMEL + SCORES.replace('"scores"', '"tags"'),
            r"\[scores\] output: the graph has no `tags`",
        ),
        (
            "linear",
            LOGMEL + SCORES.replace('"scores"', '"sum"'),
            "is not computed from `vector` alone|task is needed",
        ),
    ],
)
def test_scores_that_cannot_be_a_head_are_refused(
    head: str, text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        loaded(tmp_path, patch_graph(head=head), text)


def test_scores_need_a_vector(tmp_path: Path) -> None:
    text = WAVEFORM.replace(
        'vector = "vector"',
        'frames = "frames"\nlayout = ["batch", "numbers", "frames"]\nframe_period_ms = 10',
    )
    with pytest.raises(ExportError, match="are read from the vector: name it"):
        loaded(tmp_path, waveform_graph(shape=["n", "t"]), text + SCORES.replace('"scores"', '"vector"'))
