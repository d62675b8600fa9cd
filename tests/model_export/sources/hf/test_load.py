"""Heads, licences, labels and complaints of `import --encoder hf`."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from model_export.__main__ import main
from model_export.errors import ExportError
from model_export.sources.hf.load import load_hf
from service.inference.windows import embed
from tests.model_export.sources.hf.checkpoints import noises, write_ast, write_waveform, write_whisper
from tests.model_export.sources.hf.served import SAME, imported, published

NAMES = {0: "dog", 1: "door", 2: "rain"}


def wav2vec2(folder: Path, **changes: Any) -> Any:
    return write_waveform(folder, "wav2vec2", with_head=True, id2label=NAMES, **changes)


def hubert(folder: Path) -> Any:
    return write_waveform(
        folder, "hubert", with_head=True, id2label=NAMES, problem_type="multi_label_classification"
    )


def whisper(folder: Path) -> Any:
    return write_whisper(folder, with_head=True, id2label=NAMES, use_weighted_layer_sum=True)


def ast(folder: Path) -> Any:
    return write_ast(folder, with_head=True, id2label={i: f"class {i}" for i in range(527)})


@pytest.mark.parametrize(
    ("write", "task", "head"),
    [
        (lambda folder: wav2vec2(folder, use_weighted_layer_sum=True), "multiclass", "scores"),
        (hubert, "multilabel", "scores"),
        (whisper, "multiclass", "scores"),
        (ast, "multilabel", "audioset"),
    ],
)
def test_a_head_gives_the_scores_of_transformers(
    write: Callable[[Path], Any], task: str, head: str, tmp_path: Path
) -> None:
    reference = write(tmp_path / "source")
    model = imported(tmp_path / "source", tmp_path / "model", "--head")
    assert list(model.heads) == [head]
    assert model.heads[head].task == task
    assert model.heads[head].labels == tuple(reference.config.id2label.values())
    for clip in noises(0.3137, 2.0):
        logits = published(reference, tmp_path / "source", clip).logits
        expected = (logits.softmax(dim=-1) if task == "multiclass" else logits.sigmoid()).numpy()
        vector = embed(model.run, model.card, [model.logmel(clip)]).vector
        np.testing.assert_allclose(model.heads[head].score(vector[None]), expected, atol=SAME)


def test_long_audio_is_the_mean_of_its_windows_by_their_length(tmp_path: Path) -> None:
    reference = write_ast(tmp_path / "source")
    model = imported(tmp_path / "source", tmp_path / "model", "--licence", "CC0-1.0")
    assert model.card.licence == "CC0-1.0"
    logmel = model.logmel(noises(5.0)[0])
    n_frames = [216, 216, logmel.shape[1] - 432]
    starts = np.cumsum([0, *n_frames])
    vectors = []
    for start, stop in pairwise(starts):
        values = np.zeros((1, 216, 36), np.float32)
        values[0, : stop - start] = logmel[:, start:stop].T
        values = (values + 4.2677393) / (2 * 4.5689974)
        vectors.append(reference(torch.from_numpy(values)).pooler_output[0].numpy())
    expected = np.average(vectors, axis=0, weights=n_frames)
    np.testing.assert_allclose(embed(model.run, model.card, [logmel]).vector, expected, atol=SAME)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def forget(key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        del weights[key]
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def configure(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(said | changes), encoding="utf-8")

    return change


def bert(folder: Path) -> None:
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    config.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "asked", "sentence"),
    [
        (remove("config.json"), {}, "is no checkpoint of transformers: it has no config.json"),
        (remove("model.safetensors"), {}, "holds no weights"),
        (remove("preprocessor_config.json"), {}, "has no preprocessor_config.json, which tells how"),
        (
            bert,
            {},
            "is a bert, which is no audio network known here; known are wav2vec2, hubert",
        ),
        (forget("encoder.layers.1.final_layer_norm.weight"), {}, "lacks encoder.layers.1.final_layer_norm.w"),
        (
            configure("config.json", hidden_size=64),
            {},
            "cannot be read as those of Wav2Vec2Model|other sh",
        ),
        (configure("config.json", add_adapter=True), {}, "lacks|adapter"),
        (lambda folder: None, {"fuse": (1, 3)}, "--fuse: wav2vec2 has no layer 3 to fuse, only 1, 2"),
        (
            lambda folder: None,
            {"with_head": True},
            "no head of labels; a Wav2Vec2ForSequenceCl",
        ),
        (lambda folder: None, {"with_head": True, "fuse": (1,)}, "reads the plain embedding"),
    ],
)
def test_what_does_not_fit_is_said(
    change: Callable[[Path], None], asked: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_waveform(tmp_path, "wav2vec2")
    change(tmp_path)
    with pytest.raises(ExportError, match=sentence):
        load_hf(str(tmp_path), **asked)


@pytest.mark.parametrize(
    ("changes", "labels", "sentence"),
    [
        ({"problem_type": "regression"}, None, "gives a number, not the scores of labels"),
        ({}, ["dog"], "1 labels for the 3 scores"),
        ({}, ["dog", "dog", "rain"], "not all names of their own"),
    ],
)
def test_a_head_that_cannot_be_served_is_refused(
    changes: dict[str, Any], labels: list[str] | None, sentence: str, tmp_path: Path
) -> None:
    wav2vec2(tmp_path, **changes)
    with pytest.raises(ExportError, match=sentence):
        load_hf(str(tmp_path), with_head=True, labels=labels)


def test_a_checkpoint_for_transcription_is_one_of_the_network_beneath(tmp_path: Path) -> None:
    write_waveform(tmp_path / "plain", "wav2vec2")
    base = transformers.Wav2Vec2Model.from_pretrained(tmp_path / "plain")
    model = transformers.Wav2Vec2ForCTC(base.config)
    model.wav2vec2.load_state_dict(base.state_dict())
    model.save_pretrained(tmp_path / "ctc")
    (tmp_path / "plain" / "preprocessor_config.json").rename(tmp_path / "ctc" / "preprocessor_config.json")
    trained, checkpoint = load_hf(str(tmp_path / "ctc"))
    assert checkpoint.architecture == "Wav2Vec2ForCTC"
    assert checkpoint.licence() is None
    assert trained.encoder.embedding_size == 32


def test_the_command_asks_for_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_waveform(tmp_path / "source", "wav2vec2")
    (tmp_path / "source" / "README.md").unlink()
    command = ["import", "--encoder", "hf", "--out", str(tmp_path / "model")]
    for options, sentence in [
        ([], "--encoder hf needs --weights"),
        (["--weights", "x", "--mean", "1"], "--mean: with --encoder hf the checkpoint tells that"),
        (["--weights", str(tmp_path / "source")], "--licence is needed"),
        (["--weights", str(tmp_path / "absent")], "is no folder, and no repository of the hub"),
    ]:
        assert main([*command, *options]) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
