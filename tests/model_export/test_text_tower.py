"""A text tower as transformers computes it, small and random, behind the server's own class."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapTextConfig, ClapTextModelWithProjection

from model_export.quiet import quiet
from service.inference.card import TEXT_GRAPH, TEXT_TOKENIZER, TextTower
from service.inference.model import Model
from service.inference.text import TextEncoder
from tests.service.conftest import D, write_toy
from tests.service.text_towers import list_text_files

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"word{i}" for i in range(96))]
TEXTS = ["word1", "word2 word3 word4", " ".join(f"word{i}" for i in range(20)), "nothing known here"]


class TextSide(torch.nn.Module):
    """What `text/encoder.onnx` is: tokens in, the projected embedding out, not of unit length."""

    def __init__(self, model: ClapTextModelWithProjection) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).text_embeds


@pytest.fixture(scope="module")
def clap() -> ClapTextModelWithProjection:
    torch.manual_seed(0)
    config = ClapTextConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=34,
        projection_dim=D,
        attn_implementation="eager",
    )
    return ClapTextModelWithProjection(config).eval()


@pytest.fixture(scope="module")
def encoder(clap: Any, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = write_toy(tmp_path_factory.mktemp("models") / "toy")
    (folder / "text").mkdir()
    example = torch.ones(2, 7, dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    with quiet():
        program = torch.onnx.export(
            TextSide(clap),
            (example + 3, example),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["vector"],
            dynamic_shapes={name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")},
        )
        assert program is not None
        program.save(str(folder / TEXT_GRAPH))
    name_the_output(folder / TEXT_GRAPH)
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.save(str(folder / TEXT_TOKENIZER))
    tower = TextTower(max_tokens=32, logit_scale=1.0, template="This is a sound of {}.")
    found = Model.load(list_text_files(folder, tower), device="cpu").text
    assert found is not None
    return found


def name_the_output(path: Path) -> None:
    """`embedding`, which the exporter itself calls what a table of tokens gives."""
    graph = onnx.load(path)
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = ["rows" if name == "embedding" else name for name in names]
            names[:] = ["embedding" if name == "vector" else name for name in names]
    graph.graph.output[0].name = "embedding"
    del graph.graph.value_info[:]
    onnx.save(graph, path)


def test_a_text_becomes_what_transformers_makes_of_it(clap: Any, encoder: TextEncoder) -> None:
    tokens = [encoder.tokens(text, "it") for text in TEXTS]
    together = encoder.embed(tokens)
    for row, each in zip(together, tokens, strict=True):
        ids = torch.tensor([each])
        with torch.no_grad():
            expected = clap(input_ids=ids, attention_mask=torch.ones_like(ids)).text_embeds[0].numpy()
        np.testing.assert_allclose(row, expected, atol=1e-4 * np.abs(expected).max())


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    tokens = [encoder.tokens(text, "it") for text in TEXTS]
    alone = np.concatenate([encoder.embed([each]) for each in tokens])
    np.testing.assert_allclose(encoder.embed(tokens), alone, atol=1e-5)
