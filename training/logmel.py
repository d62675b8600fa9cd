"""The log-mel on the training device: the only module of training that needs torchaudio.

In: waveforms (B, samples) float32 in [-1, 1] at the front-end's rate. Out: log-mels (B, 1, n_mels, T).
"""

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from encoders.frontend import Frontend


class LogMel(nn.Module):
    """The front-end of `encoders.frontend` as a torch module; T = 1 + samples // hop_length."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        self.log_floor = frontend.log_floor
        self.mel_spectrogram = MelSpectrogram(
            sample_rate=frontend.sample_rate,
            n_fft=frontend.n_fft,
            win_length=frontend.win_length,
            hop_length=frontend.hop_length,
            f_min=frontend.f_min_hz,
            f_max=frontend.f_max_hz,
            n_mels=frontend.n_mels,
            mel_scale="slaney",
            norm="slaney",
            power=2.0,
            center=True,
            pad_mode="reflect",
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        mel: Tensor = self.mel_spectrogram(waveforms)
        return torch.log(mel + self.log_floor)[:, None]
