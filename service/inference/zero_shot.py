"""Labels in words in, a head that scores them out: zero-shot tags, of a model that has a text tower.

    label     ─► template ─► text tower ─► unit length (C, D) ─┐
    embedding ─► unit length ──────────────────────────────────┴─► cosines ─► * logit_scale ─► softmax

That is a linear head on embeddings of unit length, so that long clips, timelines and segments are those of
any head of one label. Its scores say which of the labels fits best: of one label alone the score would be 1
for every sound, and two are the fewest.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.card import LABEL_PLACE, TEXT_GRAPH, TEXT_TOKENIZER
from service.inference.heads import Head
from service.inference.model import Model
from service.inference.projection import unit_length
from service.inference.text import TextEncoder
from service.inference.text_worker import TextVectors, TextWorker

Array = NDArray[np.float32]

HEAD = "zero-shot"  # what answers call it


class ZeroShot:
    """The labels of a request; a head, once `prepare` was awaited for a model.

    encoder_of: the text tower of a model, or NoText; template: with {} where the label goes, None for the
    model's own.
    """

    def __init__(
        self,
        worker: TextWorker,
        encoder_of: Callable[[Model], TextEncoder],
        labels: Sequence[str],
        template: str | None,
    ) -> None:
        self._worker = worker
        self._encoder_of = encoder_of
        self._labels = tuple(labels)
        self._template = template
        self._heads: dict[int, Head] = {}

    def check(self, model: Model) -> None:
        """Raises NoText."""
        self._encoder_of(model)

    async def prepare(self, model: Model) -> TextVectors:
        """Embeds the labels. Raises NoText, TextTooLong or Overloaded."""
        encoder = self._encoder_of(model)
        prompts, names = prompts_of(self._labels, self._template, encoder)
        made = await self._worker.prompts(model, encoder, prompts, names)
        self._heads[id(model)] = zero_shot_head(self._labels, made.vectors, encoder.tower.logit_scale)
        return made

    def __call__(self, model: Model) -> Head:
        return self._heads[id(model)]


def head_of_labels(model: Model, labels: Sequence[str], template: str | None) -> Head:
    """The same head for one who shares the model with nobody. Raises NoText, TextTooLong or BadRequest."""
    encoder = model.text_encoder()
    prompts, names = prompts_of(labels, template, encoder)
    vectors = encoder.embed_all([*map(encoder.tokens, prompts, names)])
    return zero_shot_head(labels, unit_length(vectors), encoder.tower.logit_scale)


def prompts_of(
    labels: Sequence[str], template: str | None, encoder: TextEncoder
) -> tuple[list[str], list[str]]:
    """What is embedded of each label, and what sentences call it."""
    if template is None:
        template = encoder.tower.template
    prompts = [template.replace(LABEL_PLACE, label) for label in labels]
    return prompts, [f"the label `{label}` in its template" for label in labels]


def hash_of_labels(
    labels: Sequence[str], template: str | None, tower: Mapping[str, Any], files: Mapping[str, str]
) -> str:
    """A SHA-256 of all that such a head is made of. tower: the card's `text`; files: with their SHA-256."""
    made_of = [list(labels), template, dict(tower), files[TEXT_GRAPH], files[TEXT_TOKENIZER]]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def zero_shot_head(labels: Sequence[str], vectors: Array, logit_scale: float) -> Head:
    """vectors: (C, D), of unit length."""
    D = vectors.shape[1]
    return Head(
        name=HEAD,
        labels=tuple(labels),
        task="multiclass",
        scaler_mean=np.zeros(D, np.float32),
        scaler_std=np.ones(D, np.float32),
        weight=np.asarray(vectors * np.float32(logit_scale), dtype=np.float32),
        bias=np.zeros(len(labels), np.float32),
        hidden=unit_length,
    )
