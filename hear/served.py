"""A model folder as a torch module: tensors of audio in, the embeddings that the server gives out.

    audio (n_sounds, n_samples) ─► log-mels ─► windows ─► onnxruntime ─► pooled ─► (n_sounds, D)

Front-end, windows and pooling are the server's own: sounds may have any length, and an embedding does not
depend on its batch. The module has no parameters and passes no gradient.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from service.inference.model import Model, Precision
from service.inference.session import Device
from service.inference.threads import usable_cores

from .source import Folder


class Served(nn.Module):
    """`sample_rate` in Hz; the two sizes are the numbers in a vector."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.folder = Folder(model)
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
        return torch.from_numpy(self.folder.vectors(sounds_of(audio))).to(audio.device)

    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(n_sounds, n_samples) -> frames (n_sounds, T', D) and their centres in milliseconds (n_sounds, T').

        A frame whose centre lies beyond the end of the audio is left out; where a short sound has only one
        frame, its centre is that of the sound.
        """
        frames, times_s = self.folder.frames(sounds_of(audio))
        times_ms = torch.from_numpy((1000 * times_s).astype(np.float32)).repeat(len(frames), 1)
        return torch.from_numpy(frames).to(audio.device), times_ms.to(audio.device)


def sounds_of(audio: Tensor) -> list[np.ndarray]:
    """(n_sounds, n_samples) -> the sounds, (n_samples,) float32 each. Raises ValueError for what is no batch
    of sounds."""
    if audio.dim() != 2 or not audio.is_floating_point() or 0 in audio.shape:
        raise ValueError(
            f"The audio is {audio.dtype} {list(audio.shape)}: give floating-point samples in [-1, 1] as "
            "(n_sounds, n_samples), at least one of each."
        )
    return list(audio.detach().to("cpu", torch.float32).numpy())
