"""A model folder or a running server as X-ARES calls an audio encoder: waveforms in, frames out.

    waveforms (B, n_samples) ─► frames (B, T', D), one every `hop_size_in_ms`

    HEAR_MODEL=models/byola python -m xares.run --max-jobs 0 hear/xares.py tasks/esc50_task.py

X-ARES takes the one name of a module that ends with `Encoder`, calls it without arguments, and keeps what it
encoded and scored in folders that are named after the class: every model needs a class of its own name.
"""

import os
import re

import torch
from torch import Tensor, nn

from .served import sounds_of
from .source import Source, open_source

DEFAULT = "models/byola"  # seen from the repository's root, where X-ARES finds this file, too


class Frames(nn.Module):
    """sampling_rate in Hz; output_dim: the numbers in a frame; hop_size_in_ms: from a frame to the next."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.sampling_rate: int = source.card.sample_rate
        self.output_dim: int = source.card.embedding_size
        self.hop_size_in_ms: float = source.card.frame_period_ms

    def forward(self, audio: Tensor) -> Tensor:
        """(B, n_samples) -> (B, T', D) float32, where the audio lies. Sounds of any length. Raises ValueError
        for what is no batch of sounds, and what a server answers."""
        frames, _ = self.source.frames(sounds_of(audio))
        return torch.from_numpy(frames).to(audio.device)


def class_name(source: Source) -> str:
    """Of an encoder: name, version, graph and precision of its model, so that two never share results."""
    card = source.card
    words = (card.name, card.version, card.files["encoder.onnx"][:8], source.precision)
    return re.sub(r"\W", "_", "_".join(words)) + "_Encoder"


def ViolaEncoder() -> Frames:  # noqa: N802 - X-ARES asks for a name that ends so
    """The model of the environment's HEAR_MODEL, a folder or a server's address; else models/byola."""
    source = open_source(os.environ.get("HEAR_MODEL", DEFAULT))
    made: Frames = type(class_name(source), (Frames,), {})(source)
    return made
