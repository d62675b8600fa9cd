"""A text tower's files in, texts to vectors out: in the space of the model's sounds.

    texts ─► text/tokenizer.json ─► token ids, as many as each text has ─► grouped by length, padded: (B, L)
          ─► text/encoder.onnx   ─► embeddings (B, D), not of unit length

A text of more tokens than the tower takes is an error that says how many there are: nothing is ever cut off.
The tokenizer is the package `tokenizers`, of the extra `text`; without it a folder is served, and its text
tower is off.
"""

import importlib.util
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.errors import BadRequest, ModelFolderError, TextTooLong
from service.inference.card import TEXT_GRAPH, TEXT_TOKENIZER, Card, TextTower

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Tokens = list[int]

PACKAGE = "tokenizers"
# Of one run, padding included: between two runs texts of others have their turn, and a caller who left is
# noticed.
RUN_TOKENS = 256
PADS = ("<pad>", "[PAD]")  # where the tokenizer does not tell
INPUTS = {"input_ids": "tensor(int64)", "attention_mask": "tensor(int64)"}
OUTPUT = "embedding"


def can_tokenize() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec(PACKAGE) is not None


class TextEncoder:
    """A loaded text tower. `tokens` and `embed` are called by one thread at a time.

    cache: vectors of prompts, for whoever keeps some (text_worker.py); they go when the model goes.
    """

    def __init__(
        self, tokenizer: Any, session: onnxruntime.InferenceSession, tower: TextTower, embedding_size: int
    ) -> None:
        self.tower = tower
        self.embedding_size = embedding_size
        self.cache: OrderedDict[str, Array] = OrderedDict()
        self._tokenizer = tokenizer
        self._session = session
        self._pad = _pad_of(tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def tokens(self, text: str, name: str) -> Tokens:
        """The ids of one text, the tokenizer's own marks included; name: of the text, for sentences. Raises
        TextTooLong, and BadRequest where nothing of it is a token."""
        try:
            # Other threads run meanwhile, as they do not with `encode`.
            tokens: Tokens = self._tokenizer.encode_batch([text])[0].ids
        except Exception as error:  # of a vocabulary that knows no unknown words; it has no class of its own
            raise BadRequest(f"{name} cannot be taken apart into tokens: {error}") from error
        most = self.tower.max_tokens
        if len(tokens) > most:
            raise TextTooLong(
                f"{name} has {len(tokens)} tokens, and the text tower takes {most}; shorten it, or send it "
                "in parts"
            )
        if not tokens:
            raise BadRequest(f"{name} holds nothing that the model's tokenizer knows; send words")
        return tokens

    def embed(self, texts: Sequence[Tokens]) -> Array:
        """One run: token ids (L_i,) -> (B, D). What pads the shorter ones is masked. Raises what onnxruntime
        raises."""
        length = max(map(len, texts))
        ids = np.full((len(texts), length), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, tokens in enumerate(texts):
            ids[i, : len(tokens)] = tokens
            mask[i, : len(tokens)] = 1
        (vectors,) = self._session.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})
        return np.asarray(vectors, dtype=np.float32)

    def embed_all(self, texts: Sequence[Tokens]) -> Array:
        """Any number of texts -> (n, D), group by group."""
        vectors = np.empty((len(texts), self.embedding_size), np.float32)
        for group in groups_of(texts):
            vectors[group] = self.embed([texts[i] for i in group])
        return vectors


def groups_of(texts: Sequence[Tokens]) -> Iterator[list[int]]:
    """Which texts run together, by their places: alike in length, RUN_TOKENS with their padding, or one."""
    group: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        if group and (len(group) + 1) * len(texts[i]) > RUN_TOKENS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def load_text(folder: Path, card: Card) -> TextEncoder | None:
    """The text tower of a model folder, tried out; None where it has none, or where it is off because the
    package is not installed, which the log tells. Raises ModelFolderError."""
    if card.text is None:
        return None
    if not can_tokenize():
        log.warning("the text tower of %s is off: %s", card.name, WITHOUT_PACKAGE)
        return None
    tokenizer = _load_tokenizer(folder / TEXT_TOKENIZER)
    encoder = TextEncoder(tokenizer, _open(folder / TEXT_GRAPH), card.text, card.embedding_size)
    _try_out(encoder, tokenizer)
    return encoder


WITHOUT_PACKAGE = (
    f"the package `{PACKAGE}` is missing; install the extra `text` (`pip install '.[cpu,text]'`) and start "
    "again"
)


def why_no_text(name: str, *, is_off: bool, elsewhere: Sequence[str] | None = None) -> str:
    """Of a model that embeds no texts. is_off: it has a text tower; elsewhere: the models that embed texts,
    where they are known."""
    if is_off:
        return f"the text tower of `{name}` is off: {WITHOUT_PACKAGE}"
    sentence = f"the model `{name}` has no text tower, so that words are nowhere among its sounds"
    if elsewhere is None:
        return sentence
    there = ", ".join(f"`{each}`" for each in elsewhere) or "no model here"
    return f"{sentence}; {there} has one"


def _load_tokenizer(path: Path) -> Any:
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # else its first call starts a thread for each core
    from tokenizers import Tokenizer  # where a folder needs it only

    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers' errors share no class but this
        raise ModelFolderError(f"{TEXT_TOKENIZER} is none of a tokenizer: {error}") from error


def _open(path: Path) -> onnxruntime.InferenceSession:
    """One thread: texts are short, and share the cores with sounds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no class but this
        raise ModelFolderError(f"{TEXT_GRAPH} cannot be loaded: {error}") from error
    inputs = {each.name: each.type for each in session.get_inputs()}
    outputs = {each.name: each.type for each in session.get_outputs()}
    if inputs != INPUTS or outputs.get(OUTPUT) != "tensor(float)":
        raise ModelFolderError(
            f"{TEXT_GRAPH} must make `{OUTPUT}`, float32, of `input_ids` and `attention_mask`, int64; it "
            f"makes {outputs} of {inputs}"
        )
    return session


def _try_out(encoder: TextEncoder, tokenizer: Any) -> None:
    """The longest text that is let in, of the highest token that there is, and two short ones: what is too
    much for the graph would be so for a request. Raises ModelFolderError."""
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    most, D = encoder.tower.max_tokens, encoder.embedding_size
    try:
        encoder.embed([[highest] * most])
        vectors = encoder.embed([[highest], [highest]])
    except Exception as error:  # of onnxruntime
        raise ModelFolderError(
            f"{TEXT_GRAPH} cannot read {most} tokens (`text.max_tokens` of the card) up to the id {highest}, "
            f"the highest of {TEXT_TOKENIZER}: {error}"
        ) from error
    if vectors.shape != (2, D) or not np.isfinite(vectors).all():
        raise ModelFolderError(
            f"{TEXT_GRAPH} makes {vectors.shape} of two texts, not (2, {D}) finite numbers, as many as the "
            "card's embedding_size"
        )


def _pad_of(tokenizer: Any) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    return next((id for pad in PADS if (id := tokenizer.token_to_id(pad)) is not None), 0)
