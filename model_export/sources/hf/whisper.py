"""Whisper's encoder (arXiv 2212.04356), as transformers has it: always 30 s, silence behind what is shorter.

    samples (B, n) ─zeros up to 30 s─► log10 of mel power (B, 80, 3000), no more than 8 below its highest
                   ─► layers ─► (B, 1500, D), one per 20 ms ─► those of the clip

A head of transformers reads the mean over all 1500, silence included: with it there is one vector per window.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.fusion import checked_layers
from encoders.windows import Windows
from model_export.errors import ExportError
from model_export.sources.hf.samples import Array, columns, in_a_row, one_clip, weighted
from model_export.sources.hf.spectrogram import MelSpectrogram

FLOOR = 1e-10  # of power; FLOOR, RANGE and the scale are those of WhisperFeatureExtractor
RANGE = 8.0  # in powers of ten
STRIDE = 2  # log-mel frames per output frame


class WhisperEncoder(nn.Module):
    """`encoders.AnyEncoder` around WhisperEncoder of transformers. fuse: layers counted from 1. of_window:
    one vector per window, by way of all its frames; layer_weights: as in waveform.py.

    Called without `n_samples` it is transformers itself, extractor and all.
    """

    is_transformer = True
    pooling = "mean"
    mean, std = 0.0, 1.0

    def __init__(
        self,
        model: Any,
        extractor: Any,
        *,
        fuse: Sequence[int] = (),
        of_window: bool = False,
        layer_weights: Tensor | None = None,
    ) -> None:
        """Raises ValueError for layers that cannot be fused, ExportError for another extractor."""
        super().__init__()
        config = model.config
        self.layers = tuple(range(1, config.encoder_layers + 1))
        self.fuse = checked_layers(fuse, self.layers, name=config.model_type)
        n_outputs = config.max_source_positions
        if (extractor.feature_size, extractor.nb_max_frames) != (config.num_mel_bins, STRIDE * n_outputs):
            raise ExportError(
                f"its network takes {config.num_mel_bins} bands of {STRIDE * n_outputs} frames, and "
                f"preprocessor_config.json makes {extractor.feature_size} of {extractor.nb_max_frames}."
            )
        if extractor.dither:
            raise ExportError("preprocessor_config.json adds noise (dither), another each time: set it to 0.")
        self.model = model
        self.of_window = of_window
        self.layer_weights = None if layer_weights is None else layer_weights.softmax(dim=-1)
        self.embedding_size = config.d_model * max(1, len(self.fuse))
        rate = int(extractor.sampling_rate)
        self.frontend = columns(rate)
        self.n_mels = self.frontend.hop_length
        self.n_samples = int(extractor.n_samples)
        self.step = STRIDE * int(extractor.hop_length)  # samples from one output frame to the next
        self.windows = Windows("independent", stride=1, frames=self.n_samples // self.n_mels)
        self.frame_period_ms = (self.n_samples if of_window else self.step) * 1000 / rate
        self.first_frame_centre_ms = self.frame_period_ms / 2 if of_window else 0.0  # centred on sample 0
        self._extractor = extractor
        self._mel = MelSpectrogram(
            extractor.mel_filters, n_fft=int(extractor.n_fft), hop_length=int(extractor.hop_length)
        )

    def forward(self, x: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """x (B, 1, column, T) of samples, zero behind n_samples (B,) -> (B, T', D)."""
        if n_samples is None:
            return self._as_published(one_clip(x))
        samples = in_a_row(x)
        silence = samples.new_zeros(samples.shape[0], self.n_samples)
        samples = torch.cat([samples, silence], dim=1)[:, : self.n_samples]
        return self._joined(self._hidden_states(self.features(samples.float()).to(x.dtype)))

    def features(self, samples: Tensor) -> Tensor:
        """(B, n_samples) float32 -> (B, n_mels, frames), as WhisperFeatureExtractor makes them."""
        power = self._mel(samples)[..., :-1]
        levels = power.clamp(min=FLOOR).log10()
        return (torch.maximum(levels, levels.amax(dim=(1, 2), keepdim=True) - RANGE) + 4) / 4

    def count(self, n_samples: Tensor) -> Tensor:
        """(B,) samples -> (B,) output frames."""
        if self.of_window:
            return torch.ones_like(n_samples)
        return torch.div(n_samples + self.step - 1, self.step, rounding_mode="floor").clamp(min=1)

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D): their mean."""
        return frames.mean(dim=1)

    def _hidden_states(self, features: Tensor) -> list[Tensor]:
        """The input of the first layer and what each layer makes, of the last one normalised."""
        encoder = self.model
        x = functional.gelu(encoder.conv1(features))
        x = functional.gelu(encoder.conv2(x)).transpose(1, 2) + encoder.embed_positions.weight
        states = [x]
        for layer in encoder.layers:
            x = layer(x, None)
            states.append(x)
        return [*states[:-1], encoder.layer_norm(x)]

    def _joined(self, states: Sequence[Tensor]) -> Tensor:
        if self.fuse:
            frames = torch.cat([states[number] for number in self.fuse], dim=2)
        elif self.layer_weights is None:
            frames = states[-1]
        else:
            frames = weighted(states, self.layer_weights)
        return frames.mean(dim=1, keepdim=True) if self.of_window else frames

    def _as_published(self, samples: Array) -> Tensor:
        """(samples,) -> (1, T', D) by transformers."""
        inputs = self._extractor(samples, sampling_rate=self.frontend.sample_rate, return_tensors="pt")
        frames = self._joined(self.model(inputs.input_features, output_hidden_states=True).hidden_states)
        return frames[:, : int(self.count(torch.tensor(len(samples))))]
