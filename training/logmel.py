"""The log-mel on the training device.

In: waveforms (B, samples) float32 in [-1, 1] at the front-end's rate. Out: log-mels (B, 1, n_mels, T).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.frontend import Frontend, mel_filterbank, window_of


class LogMel(nn.Module):
    """The front-end of an encoder that is trained here, as a torch module: centred frames, their power, ln of
    what lies above the floor. T = 1 + samples // hop_length, of the samples that a pre-emphasis leaves."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        assert frontend.centred
        assert (frontend.power, frontend.log, frontend.remove_frame_mean) == (2, "ln_add", False)
        assert frontend.preemphasis == 0 or frontend.preemphasis_of == "waveform"
        self.frontend = frontend
        self.register_buffer("window", torch.from_numpy(window_of(frontend)), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filterbank(frontend)), persistent=False)
        self.window: Tensor
        self.filters: Tensor

    def frames(self, samples: int) -> int:
        """T of so many samples."""
        return 1 + (samples - bool(self.frontend.preemphasis)) // self.frontend.hop_length

    def forward(self, waveforms: Tensor) -> Tensor:
        if factor := self.frontend.preemphasis:
            waveforms = waveforms[:, 1:] - factor * waveforms[:, :-1]
        half = self.frontend.n_fft // 2
        spectra = torch.stft(
            F.pad(waveforms, (half, half), mode="reflect"),
            self.frontend.n_fft,
            self.frontend.hop_length,
            self.frontend.win_length,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = torch.view_as_real(spectra).square().sum(dim=-1)  # (B, bins, T)
        return torch.log(self.filters.T @ power + self.frontend.log_floor)[:, None]
