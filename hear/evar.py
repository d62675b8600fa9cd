"""A model folder as EVAR's linear evaluation calls an audio representation: one object, made from its config.

precompute(device, data_loader)     before the embeddings: for models that measure the task's statistics
forward(batch_audio)                (B, samples) -> (B, D)
encode_frames(batch_audio)          (B, samples) -> (B, D, T')
"""

from typing import Any, Protocol

from torch import Tensor, nn

from . import load_model


class Config(Protocol):
    """What is read of EVAR's YAML: `weight_file`, a model folder, and `sample_rate`, the task's."""

    weight_file: str
    sample_rate: int


class AR_Viola(nn.Module):  # noqa: N801 - EVAR's names begin so
    """The served pipeline in float32. Raises ModelFolderError, or ValueError for sounds of another rate."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = load_model(cfg.weight_file)
        if cfg.sample_rate != self.model.sample_rate:
            raise ValueError(
                f"{cfg.weight_file} takes {self.model.sample_rate} Hz, not {cfg.sample_rate}: set "
                "sample_rate, and take the task's sounds at that rate."
            )

    def precompute(self, device: Any, data_loader: Any) -> None:
        """Nothing: the statistics are the model's own, so that an embedding is the same in every task."""

    def forward(self, batch_audio: Tensor) -> Tensor:
        """(B, samples) -> (B, D): the clips' vectors."""
        vectors: Tensor = self.model(batch_audio)
        return vectors

    def encode_frames(self, batch_audio: Tensor) -> Tensor:
        """(B, samples) -> (B, D, T'): the frames, time last."""
        frames, _ = self.model.timestamps(batch_audio)
        return frames.mT
