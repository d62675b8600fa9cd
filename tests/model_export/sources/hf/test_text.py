"""CLAP's text tower in a model folder, against transformers itself."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tokenizers
import torch
from transformers import AutoTokenizer

from model_export.errors import ExportError
from model_export.sources.hf.load import load_hf
from service.inference.windows import embed
from tests.model_export.sources.hf.checkpoints import CLAP_RATE, noises, write_clap
from tests.model_export.sources.hf.served import SAME, imported

SENTENCES = ["This is a sound of rain.", "dog", "then an engine starts far away and the dog barks twice"]


def test_sentences_are_where_get_text_features_puts_them(tmp_path: Path) -> None:
    reference = write_clap(tmp_path / "source")
    model = imported(tmp_path / "source", tmp_path / "model")
    tower = model.card.text
    assert tower is not None
    assert {"text/encoder.onnx", "text/tokenizer.json"} <= model.card.files.keys()
    assert (tower.max_tokens, tower.template) == (30, "This is a sound of {}.")

    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "model" / "text" / "tokenizer.json"))
    encoded = [tokenizer.encode(sentence).ids for sentence in SENTENCES]
    ids = np.full((len(SENTENCES), max(map(len, encoded)) + 2), 3, np.int64)  # not even the mark of padding
    mask = np.zeros_like(ids)
    for row, valid, tokens in zip(ids, mask, encoded, strict=True):
        row[: len(tokens)], valid[: len(tokens)] = tokens, 1
    session = onnxruntime.InferenceSession(tmp_path / "model" / "text" / "encoder.onnx")
    (vectors,) = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    assert vectors.shape == (3, model.card.embedding_size)

    theirs = AutoTokenizer.from_pretrained(tmp_path / "source")
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for unit, sentence, tokens in zip(units, SENTENCES, encoded, strict=True):
        inputs = theirs(sentence, return_tensors="pt")
        assert inputs.input_ids[0].tolist() == tokens
        expected = reference.get_text_features(**inputs).pooler_output[0].numpy()
        np.testing.assert_allclose(unit, expected, atol=SAME)

    inputs = theirs(SENTENCES, return_tensors="pt", padding=True)
    (clip,) = noises(1.37, rate=CLAP_RATE)
    sound = torch.from_numpy(embed(model.run, model.card, [model.logmel(clip)]).vector)[None]
    text = reference.get_text_features(**inputs).pooler_output
    expected = (sound @ text.T * reference.logit_scale_a.exp()).softmax(dim=1)[0].numpy()
    cosines = units @ sound[0].numpy() / np.linalg.norm(sound)
    scores = np.exp(tower.logit_scale * cosines)
    np.testing.assert_allclose(scores / scores.sum(), expected, atol=SAME)


def test_fused_stages_are_no_place_for_sentences(tmp_path: Path) -> None:
    write_clap(tmp_path)
    trained, _ = load_hf(str(tmp_path), fuse=(1, 2))
    assert trained.text is None
    assert trained.encoder.embedding_size == 64


def test_a_checkpoint_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    write_clap(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ExportError, match=r"has no tokenizer\.json, by which"):
        load_hf(str(tmp_path))
