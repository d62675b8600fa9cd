"""Texts to vectors, against NumPy by hand; and text towers that are refused, or off."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.errors import BadRequest, ModelFolderError, TextTooLong
from service.inference import text
from service.inference.card import TEXT_GRAPH, TEXT_TOKENIZER, TextTower, load_card, write_card
from service.inference.model import Model
from service.inference.text import TextEncoder, groups_of
from tests.service.conftest import D, write_toy
from tests.service.text_towers import TOWER, list_text_files, tokenizer, tokens_of, vector_of, write_text_toy

TEXTS = ["a dog barks", "rain on the roof . a cat .", "doorbell", "zebra", "The DOORBELL rings"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_toy(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    found = Model.load(folder, device="cpu").text
    assert found is not None
    return found


def test_a_text_becomes_the_vector_worked_out_by_hand(encoder: TextEncoder) -> None:
    tokens = [encoder.tokens(each, "it") for each in TEXTS]
    assert tokens == list(map(tokens_of, TEXTS))
    np.testing.assert_allclose(encoder.embed(tokens), list(map(vector_of, TEXTS)), atol=1e-6)


def test_a_text_alone_and_in_a_padded_batch_has_one_vector(encoder: TextEncoder) -> None:
    tokens = [encoder.tokens(each, "it") for each in TEXTS]
    alone = np.concatenate([encoder.embed([each]) for each in tokens])
    np.testing.assert_allclose(encoder.embed(tokens), alone, atol=1e-6)


def test_what_the_tokenizers_file_says_of_cutting_and_padding_is_not_obeyed(encoder: TextEncoder) -> None:
    assert len(encoder.tokens("a a a a a a a a", "it")) == 10
    assert len(encoder.tokens("a", "it")) == 3


def test_a_text_of_too_many_tokens_is_never_cut(encoder: TextEncoder) -> None:
    assert len(encoder.tokens("a " * 10, "it")) == 12
    with pytest.raises(TextTooLong, match=r"`input` has 13 tokens, and the text tower takes 12; shorten it"):
        encoder.tokens("a " * 11, "`input`")


def test_texts_run_with_those_of_their_length_in_groups_that_are_bounded() -> None:
    lengths = [3, 500, 10, 4, 700, 90, 12, *[8] * 100]
    groups = list(groups_of([[1] * length for length in lengths]))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert len(group) == 1 or len(group) * longest <= text.RUN_TOKENS
    assert [4] in groups  # one that is longer than a run goes alone
    assert list(groups_of([])) == []


def test_without_the_package_the_folder_is_served_and_the_log_tells_that_texts_are_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(text, "PACKAGE", "a_package_that_is_not_there")
    with caplog.at_level(logging.WARNING):
        model = Model.load(folder, device="cpu")
    assert model.text is None
    assert "the text tower of toy is off: the package `tokenizers` is missing" in caplog.text


def test_a_folder_without_a_text_tower_has_none(toy_model: Model) -> None:
    assert toy_model.text is None


# ── The card ──


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{0}", ""])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(ValueError, match=r"the template holds \{\} [02] times; it must hold it once"):
        TextTower(max_tokens=77, logit_scale=1, template=template)


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"logit_scale": 0}, {"logit_scale": float("inf")}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TextTower.model_validate({"max_tokens": 77, "logit_scale": 1.0, "template": "{}"} | wrong)


def test_files_and_field_need_each_other(tmp_path: Path) -> None:
    folder = write_text_toy(tmp_path / "toy")
    card = load_card(folder)
    write_card(folder, card.model_copy(update={"text": None}))
    with pytest.raises(ModelFolderError, match=r"a text tower is text/encoder\.onnx, text/tokenizer\.json"):
        Model.load(folder, device="cpu")
    files = {name: sha for name, sha in card.files.items() if name != TEXT_TOKENIZER}
    write_card(folder, card.model_copy(update={"files": files}))
    with pytest.raises(ModelFolderError, match=r"here text/encoder\.onnx is listed, and `text` is there"):
        Model.load(folder, device="cpu")


def test_a_card_without_a_text_tower_says_nothing_of_one(tmp_path: Path) -> None:
    assert load_card(write_toy(tmp_path / "toy")).text is None


# ── Folders that are refused when they are loaded, not when the first text comes ──


def spoil_the_tokenizer(folder: Path) -> TextTower:
    (folder / TEXT_TOKENIZER).write_text("{}")
    return TOWER


def tell_of_more_words_than_the_table_has(folder: Path) -> TextTower:
    more = tokenizer()
    more.add_tokens(["further"])
    more.save(str(folder / TEXT_TOKENIZER))
    return TOWER


def spoil_the_graph(folder: Path) -> TextTower:
    (folder / TEXT_GRAPH).write_bytes(b"no graph")
    return TOWER


def rename_an_output(folder: Path) -> TextTower:
    graph = onnx.load(folder / TEXT_GRAPH)
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "pooled"
    onnx.save(graph, folder / TEXT_GRAPH)
    return TOWER


def narrow_the_output(folder: Path) -> TextTower:
    graph = onnx.load(folder / TEXT_GRAPH)
    graph.graph.node[-1].output[0] = "wide"
    graph.graph.node.append(onnx.helper.make_node("ReduceMax", ["wide", "axis_1"], ["embedding"], keepdims=1))
    graph.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["batch", 1])
    )
    onnx.save(graph, folder / TEXT_GRAPH)
    return TOWER


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_the_tokenizer, "text/tokenizer.json is none of a tokenizer"),
        (tell_of_more_words_than_the_table_has, r"cannot read 12 tokens .* up to the id \d+, the highest of"),
        (spoil_the_graph, "text/encoder.onnx cannot be loaded"),
        (rename_an_output, "must make `embedding`, float32"),
        (narrow_the_output, rf"makes \(2, 1\) of two texts, not \(2, {D}\) finite numbers"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    spoil: Callable[[Path], TextTower], sentence: str, tmp_path: Path
) -> None:
    folder = write_text_toy(tmp_path / "toy")
    list_text_files(folder, spoil(folder))
    with pytest.raises(ModelFolderError, match=sentence):
        Model.load(folder, device="cpu")


def test_a_vocabulary_that_knows_no_unknown_words_refuses_those(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = write_text_toy(tmp_path / "toy")
    bare = Tokenizer(models.WordLevel({"dog": 0}))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bare.save(str(folder / TEXT_TOKENIZER))
    encoder = Model.load(list_text_files(folder), device="cpu").text
    assert encoder is not None
    assert encoder.tokens("dog dog", "it") == [0, 0]
    with pytest.raises(BadRequest, match="it "):
        encoder.tokens("cat", "it")
