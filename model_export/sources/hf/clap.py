"""CLAP's audio tower (arXiv 2211.06687), as transformers has it: ten seconds, shorter clips over and over.

    samples (B, n) ─repeated, zeros behind─► 10 s ─► dB of mel power (B, 1, 1001, 64) ─► patches of an image
                   ─► stages of a Swin transformer ─► mean ─projection─► (B, 1, D), of length 1

With fusion a checkpoint sees four log-mels of what is longer than ten seconds, three of them cut out at
random. Here long audio is cut into windows, each as transformers takes a clip of that length by itself: four
times the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.fusion import checked_layers
from encoders.windows import Windows
from model_export.errors import ExportError
from model_export.sources.hf.samples import Array, columns, in_a_row, one_clip
from model_export.sources.hf.spectrogram import MelSpectrogram

FLOOR = 1e-10  # of power, of ClapFeatureExtractor
CROPS = 3  # beside the whole: what fusion sees
PADDINGS = ("repeatpad", "repeat", "pad")


class ClapEncoder(nn.Module):
    """`encoders.AnyEncoder` around ClapModel or ClapAudioModelWithProjection. fuse: stages counted from 1,
    the mean over the places of each; without, the projection, as ClapModel.get_audio_features gives it.

    Called without `n_samples` it is transformers itself, extractor and all.
    """

    is_transformer = True
    pooling = "mean"
    mean, std = 0.0, 1.0

    def __init__(self, model: Any, extractor: Any, *, fuse: Sequence[int] = ()) -> None:
        """Raises ValueError for stages that cannot be fused, ExportError for another extractor."""
        super().__init__()
        self.audio, self.projection = model.audio_model, model.audio_projection
        config = self.audio.config
        self.layers = tuple(range(1, len(config.depths) + 1))
        self.fuse = checked_layers(fuse, self.layers, name="clap")
        self.is_fusion = bool(config.enable_fusion)
        _check(config, extractor)
        rate = int(extractor.sampling_rate)
        self.frontend = columns(rate)
        self.n_mels = self.frontend.hop_length
        self.n_samples = int(extractor.nb_max_samples)
        self.padding = str(extractor.padding)
        last = self.layers[-1] - 1
        sizes = [config.patch_embeds_hidden_size * 2 ** min(number, last) for number in self.fuse]
        self.embedding_size = sum(sizes) or int(config.projection_dim)
        self.windows = Windows("independent", stride=1, frames=self.n_samples // self.n_mels)
        self.frame_period_ms = self.n_samples * 1000 / rate
        self.first_frame_centre_ms = self.frame_period_ms / 2
        self._extractor = extractor
        self._mel = MelSpectrogram(
            extractor.mel_filters if self.is_fusion else extractor.mel_filters_slaney,
            n_fft=int(extractor.fft_window_size),
            hop_length=int(extractor.hop_length),
        )

    def forward(self, x: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """x (B, 1, column, T) of samples, n_samples (B,) of them valid -> (B, 1, D)."""
        if n_samples is None:
            return self._as_published(one_clip(x))
        features = self.features(self.filled(in_a_row(x).float(), n_samples)).to(x.dtype)
        states = self._stages(features)
        if self.fuse:
            return torch.cat([states[number - 1].mean(dim=1, keepdim=True) for number in self.fuse], dim=2)
        pooled = self.audio.audio_encoder.norm(states[-1]).mean(dim=1, keepdim=True)
        return functional.normalize(self.projection(pooled), dim=2)

    def filled(self, samples: Tensor, n: Tensor) -> Tensor:
        """(B, samples), n (B,) of them valid -> (B, n_samples), the clip over and over."""
        at = torch.arange(self.n_samples)[None, :]
        n = n[:, None]
        all_of_it = torch.full_like(n, self.n_samples)
        end = {"repeatpad": all_of_it - all_of_it % n, "repeat": all_of_it, "pad": n}[self.padding]
        return torch.where(at < end, samples.gather(1, at % n), samples.new_zeros(()))

    def features(self, samples: Tensor) -> Tensor:
        """(B, n_samples) float32 -> (B, 1, frames, n_mels) in dB, as ClapFeatureExtractor makes them."""
        return 10 * self._mel(samples).clamp(min=FLOOR).log10().transpose(1, 2)[:, None]

    def count(self, n_samples: Tensor) -> Tensor:
        """(B,) samples -> (B,) output frames: one."""
        return torch.ones_like(n_samples)

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, windows, D) -> (B, D): their mean."""
        return frames.mean(dim=1)

    def _stages(self, features: Tensor) -> list[Tensor]:
        """What each stage makes: (B, places, channels)."""
        encoder = self.audio.audio_encoder
        image = encoder.batch_norm(features.transpose(1, 3)).transpose(1, 3)
        x = self._patches(encoder.patch_embed, encoder.reshape_mel2img(image))
        states = []
        for stage, resolution in zip(encoder.layers, encoder.input_resolutions, strict=True):
            x = stage(x, resolution)[0]
            states.append(x)
        return states

    def _patches(self, embed: Any, image: Tensor) -> Tensor:
        """image (B, 1, size, size) -> (B, places, channels)."""
        x = embed.proj(image)
        if self.is_fusion:
            local = embed.mel_conv2d(image).repeat(1, 1, 1, CROPS)  # the crops side by side
            x = embed.fusion_model(x, functional.pad(local, (0, x.shape[3] - local.shape[3])))
        return embed.norm(x.flatten(start_dim=2).transpose(1, 2))

    def _as_published(self, samples: Array) -> Tensor:
        """(samples,) -> (1, 1, D) by transformers."""
        inputs = self._extractor(samples, sampling_rate=self.frontend.sample_rate, return_tensors="pt")
        outputs = self.audio(
            input_features=inputs.input_features.float(),
            is_longer=inputs.is_longer,
            output_hidden_states=True,
        )
        if self.fuse:
            states = [outputs.hidden_states[number].mean(dim=(2, 3)) for number in self.fuse]
            return torch.cat(states, dim=1)[:, None]
        return functional.normalize(self.projection(outputs.pooler_output), dim=1)[:, None]


def _check(config: Any, extractor: Any) -> None:
    """Raises ExportError."""
    if config.num_mel_bins != extractor.feature_size:
        raise ExportError(
            f"its network takes {config.num_mel_bins} bands, and preprocessor_config.json makes "
            f"{extractor.feature_size}."
        )
    if (extractor.truncation == "fusion") != bool(config.enable_fusion):
        raise ExportError(
            f"preprocessor_config.json says truncation {extractor.truncation!r}, and config.json "
            f"enable_fusion {config.enable_fusion}: they do not belong together."
        )
    if config.enable_fusion and config.fusion_type == "channel_map":
        raise ExportError("its fusion is of the kind channel_map, which is not known here.")
    if extractor.padding not in PADDINGS:
        raise ExportError(
            f"preprocessor_config.json says padding {extractor.padding!r}, none of {', '.join(PADDINGS)}."
        )
