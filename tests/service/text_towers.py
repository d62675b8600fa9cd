"""A toy model folder with a text tower, and what it makes of a text, worked out by hand with NumPy.

embedding = mean over the text's own tokens of tanh(table[token]) * (1 + position / 10): order counts, and so
would padding.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from service.inference.card import TEXT_GRAPH, TEXT_TOKENIZER, TextTower, load_card, sha256_of, write_card
from tests.service.conftest import D, write_toy

WORDS = "a barks cat dog doorbell is of on rain rings roof sound the this . {"
VOCABULARY = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS.split()])}
TOWER = TextTower(max_tokens=12, logit_scale=5.0, template="This is a sound of {}.")
TABLE = np.random.default_rng(7).normal(size=(len(VOCABULARY), D)).astype(np.float32)
TABLE[0] = 1e6  # of what pads: whoever does not mask it notices


def write_text_toy(folder: Path, tower: TextTower = TOWER, **changes: Any) -> Path:
    """The toy of conftest.py with a text tower. changes: to the card."""
    write_toy(folder, **changes)
    (folder / "text").mkdir()
    onnx.save(text_graph(), folder / TEXT_GRAPH)
    tokenizer().save(str(folder / TEXT_TOKENIZER))
    return list_text_files(folder, tower)


def list_text_files(folder: Path, tower: TextTower | None = TOWER) -> Path:
    """In the card, with their SHA-256."""
    card = load_card(folder)
    files = card.files | {name: sha256_of(folder / name) for name in (TEXT_GRAPH, TEXT_TOKENIZER)}
    write_card(folder, card.model_copy(update={"files": files, "text": tower}))
    return folder


def tokens_of(text: str) -> list[int]:
    """By hand, for texts of words and dots between blanks."""
    words = text.lower().replace(".", " . ").split()
    unknown = VOCABULARY["[UNK]"]
    return [VOCABULARY["[CLS]"], *(VOCABULARY.get(word, unknown) for word in words), VOCABULARY["[SEP]"]]


def vector_of(text: str) -> np.ndarray:
    """(D,) in float64"""
    tokens = tokens_of(text)
    turns = 1 + np.arange(len(tokens))[:, None] / 10
    return np.asarray((np.tanh(TABLE[tokens].astype(np.float64)) * turns).mean(axis=0))


def tokenizer(*, truncated: bool = True) -> Tokenizer:
    """As tools save them: with truncation and padding of their own, which the server must not obey."""
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    if truncated:
        made.enable_truncation(4)
        made.enable_padding(length=6, pad_id=0, pad_token="[PAD]")
    return made


def text_graph() -> onnx.ModelProto:
    constants = {
        "table": TABLE,
        "one": np.float32(1),
        "ten": np.float32(10),
        "first": np.int64(0),
        "step": np.int64(1),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "axes_02": np.array([0, 2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["rows"]),
        node("Tanh", ["rows"], ["bent"]),
        node("Shape", ["input_ids"], ["length_row"], start=1, end=2),
        node("Squeeze", ["length_row"], ["length"]),
        node("Range", ["first", "length", "step"], ["positions"]),
        node("Cast", ["positions"], ["positions_float"], to=TensorProto.FLOAT),
        node("Div", ["positions_float", "ten"], ["tenths"]),
        node("Add", ["tenths", "one"], ["turns_row"]),
        node("Unsqueeze", ["turns_row", "axes_02"], ["turns"]),
        node("Mul", ["bent", "turns"], ["turned"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "axis_2"], ["mask_column"]),
        node("Mul", ["turned", "mask_column"], ["own"]),
        node("ReduceSum", ["own", "axis_1"], ["sum"], keepdims=0),
        node("ReduceSum", ["mask", "axis_1"], ["count"], keepdims=1),
        node("Div", ["sum", "count"], ["embedding"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "text",
        [value(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask")],
        [value("embedding", TensorProto.FLOAT, ["batch", D])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
