"""A model folder as a torch module: tensors of audio in, the embeddings that the server gives out.

    audio (n_sounds, n_samples) ─► log-mels ─► windows ─► onnxruntime ─► pooled ─► (n_sounds, D)

The way is the server's own, front-end, windows and pooling included, so that sounds of any length will do and
an embedding does not depend on its batch. It has no parameters and passes no gradient.
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.model import Device, Model, Precision
from service.offline import BATCH_FRAMES
from service.threads import usable_cores
from service.windows import Embedding, Pool, cut, embed_pieces


class Served(nn.Module):
    """`sample_rate` in Hz; the two sizes are the numbers in a vector."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.sample_rate: int = model.card.sample_rate
        self.scene_embedding_size: int = model.card.embedding_size
        self.timestamp_embedding_size: int = model.card.embedding_size

    @classmethod
    def load(cls, folder: Path, *, precision: Precision = "float32", device: Device = "auto") -> "Served":
        """Raises ModelFolderError."""
        cores, _ = usable_cores()
        return cls(Model.load(folder, precision=precision, device=device, threads=cores))

    def forward(self, audio: Tensor) -> Tensor:
        """(n_sounds, n_samples) -> (n_sounds, D) float32, where the audio lies."""
        vectors = [embedding.vector for embedding in self._embed(audio, frames=False)]
        return torch.from_numpy(np.stack(vectors)).to(audio.device)

    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(n_sounds, n_samples) -> frames (n_sounds, T', D) and their centres in milliseconds (n_sounds, T').

        A frame that is centred behind the audio's end is left out; the only one of a short sound is centred
        on the sound.
        """
        embeddings = self._embed(audio, frames=True)
        times_ms = 1000 * cast(NDArray[np.float64], embeddings[0].times_s)
        duration_ms = audio.shape[1] * 1000 / self.sample_rate
        times_ms[0] = min(times_ms[0], duration_ms / 2)
        times_ms = times_ms[times_ms <= duration_ms]
        frames = np.stack([cast(NDArray[np.float32], one.frames)[: len(times_ms)] for one in embeddings])
        times = torch.from_numpy(times_ms.astype(np.float32)).repeat(len(embeddings), 1)
        return torch.from_numpy(frames).to(audio.device), times.to(audio.device)

    def _embed(self, audio: Tensor, *, frames: bool) -> list[Embedding]:
        """One embedding per sound; equally long, they have equal windows, which share batches."""
        sounds = checked(audio).detach().to("cpu", torch.float32).numpy()
        card = self.model.card
        pools = [Pool(card, frames=frames) for _ in sounds]
        pieces = [cut(self.model.logmel_blocks([samples]), card.windows) for samples in sounds]
        for of_one_window in zip(*pieces, strict=True):
            size = max(1, BATCH_FRAMES // self.model.padded_length(of_one_window[0].logmel.shape[1]))
            for first in range(0, len(pools), size):
                batch = of_one_window[first : first + size]
                outputs = embed_pieces(self.model.run, batch, frames=frames)
                for pool, piece, output in zip(pools[first : first + size], batch, outputs, strict=True):
                    pool.add(piece.window, output)
        return [pool.result() for pool in pools]


def checked(audio: Tensor) -> Tensor:
    """Raises ValueError for what is no batch of sounds."""
    if audio.dim() != 2 or not audio.is_floating_point() or 0 in audio.shape:
        raise ValueError(
            f"The audio is {audio.dtype} {list(audio.shape)}: give floating-point samples in [-1, 1] as "
            "(n_sounds, n_samples), at least one of each."
        )
    return audio
