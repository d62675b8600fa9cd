"""What an encoder is to the rest of the program, and its network as it is exported (docs/model_folder.md).

logmel (B, n_mels, T) ─normalise, mask─► (B, 1, n_mels, T) ─encoder─► frames (B, T', D) ─► sum, max (B, D)
n_frames (B,)         ─► masks, count (B,)

An encoder whose `batching` is `equal` has no masks, and batches of clips of one length: a small network is
more than twice as fast so.

Of samples whose last column is filled up with NaN (`Waveform.rest`), an encoder is told their number, and not
that of the columns.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from .blocks import frame_mask
from .frontend import Frontend, Waveform
from .windows import Windows


class AnyEncoder(Protocol):
    """A torch module; what is said once of all encoders is said in encoders/__init__.py."""

    n_mels: int
    embedding_size: int
    frame_period_ms: float
    first_frame_centre_ms: float
    pooling: str

    @property
    def frontend(self) -> Frontend | Waveform: ...

    @property
    def windows(self) -> Windows: ...

    def __call__(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor: ...

    def count(self, n_frames: Tensor) -> Tensor: ...

    def pool(self, frames: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...


Batching = Literal["padded", "equal", "alone"]


def batching_of(encoder: AnyEncoder) -> Batching:
    """How it is served: its batches padded to the longest clip, where it says nothing else."""
    batching: Batching = getattr(encoder, "batching", "padded")
    return batching


class Contract(nn.Module):
    """(logmel (B, n_mels, T), n_frames (B,)) -> frames, sum, max, count; `encoder` is in eval mode.

    dtype: of the encoder's weights, float32 or float16; what is around it is float32 in either case.
    """

    def __init__(
        self, encoder: AnyEncoder, *, mean: float, std: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.encoder: AnyEncoder = encoder  # a torch module
        self.mean = mean
        self.std = std
        self.dtype = dtype
        frontend = encoder.frontend
        self.counts_samples = isinstance(frontend, Waveform) and frontend.rest == "nan"

    def forward(self, logmel: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = (logmel - self.mean) / self.std
        if batching_of(self.encoder) == "equal" and not self.counts_samples:
            frames = self.encoder(x[:, None].to(self.dtype)).float()
            return frames, frames.sum(dim=1), frames.amax(dim=1), self.encoder.count(n_frames)
        zero = x.new_zeros(())
        x = torch.where(frame_mask(n_frames, x.shape[2])[:, None, :], x, zero)
        lengths = n_frames
        if self.counts_samples:
            lengths = n_frames * x.shape[1] - x.isnan().sum(dim=(1, 2))
            x = torch.where(x.isnan(), zero, x)
        frames = self.encoder(x[:, None].to(self.dtype), lengths).float()
        count = self.encoder.count(lengths)
        valid = frame_mask(count, frames.shape[1])[:, :, None]
        frames = torch.where(valid, frames, zero)
        lowest = x.new_full((), torch.finfo(x.dtype).min)
        highest = torch.where(valid, frames, lowest).amax(dim=1)
        return frames, frames.sum(dim=1), highest, count
