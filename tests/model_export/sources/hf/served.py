"""A small checkpoint in, its folder as the server runs it out; and transformers' own answers beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor

from model_export.__main__ import main
from service.inference.model import Model
from service.inference.windows import cut, embed_pieces

Array = NDArray[np.float32]

SAME = 1e-4


def imported(source: Path, out: Path, *options: str) -> Model:
    command = ["import", "--encoder", "hf", "--weights", str(source), "--out", str(out), *options]
    assert main(command) == 0
    return Model.load(out, device="cpu")


@torch.no_grad()
def published(model: Any, source: Path, clip: Array) -> Any:
    """transformers' own output for a clip alone."""
    extractor = AutoFeatureExtractor.from_pretrained(source)
    inputs = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return model(**inputs, output_hidden_states=True)


def together(model: Model, clips: list[Array]) -> list[Array]:
    """Their embeddings, from one batch."""
    pieces = [piece for clip in clips for piece in cut([model.logmel(clip)], model.card.windows)]
    assert len(pieces) == len(clips)
    return [output.sum / output.count for output in embed_pieces(model.run, pieces)]


def assert_same(found: NDArray[np.floating], expected: NDArray[np.floating]) -> None:
    assert np.abs(found - expected).max() <= SAME * max(1, np.abs(expected).max())
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine >= 1 - SAME
