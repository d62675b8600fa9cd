"""What an encoder is to the rest of the program, and its network as it is exported (docs/model_folder.md).

logmel (B, n_mels, T) ─normalise, mask─► (B, 1, n_mels, T) ─encoder─► frames (B, T', D) ─► sum, max (B, D)
n_frames (B,)         ─► masks, count (B,)
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from .blocks import frame_mask
from .frontend import Frontend
from .windows import Windows


class AnyEncoder(Protocol):
    """A torch module; what is said once of all encoders is said in encoders/__init__.py."""

    n_mels: int
    embedding_size: int
    frame_period_ms: float
    first_frame_centre_ms: float
    pooling: str

    @property
    def frontend(self) -> Frontend: ...

    @property
    def windows(self) -> Windows: ...

    def __call__(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor: ...

    def count(self, n_frames: Tensor) -> Tensor: ...

    def pool(self, frames: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...


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

    def forward(self, logmel: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = (logmel - self.mean) / self.std
        zero = x.new_zeros(())
        x = torch.where(frame_mask(n_frames, x.shape[2])[:, None, :], x, zero)
        frames = self.encoder(x[:, None].to(self.dtype), n_frames).float()
        count = self.encoder.count(n_frames)
        valid = frame_mask(count, frames.shape[1])[:, :, None]
        frames = torch.where(valid, frames, zero)
        lowest = x.new_full((), torch.finfo(x.dtype).min)
        highest = torch.where(valid, frames, lowest).amax(dim=1)
        return frames, frames.sum(dim=1), highest, count
