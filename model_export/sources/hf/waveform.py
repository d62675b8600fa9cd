"""Wav2Vec2, HuBERT, WavLM and Data2VecAudio, as transformers has them, with masks that keep padding out.

    samples (B, n) ─zero mean, unit variance, where the checkpoint says so─► convolutions ─► (B, T', 512)
            ─projection─► + convolution of positions ─► layers ─► hidden states (B, T', D), one per 20 ms

In transformers a clip in a padded batch may differ from the clip alone: the group norm of the first layer
(wav2vec 2.0 base, HuBERT base) averages over the padding, and stacked convolutions of positions (data2vec)
carry what is made of it back. Here both see the clip's own frames alone, so that a batch gives what
transformers gives for the clip by itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from encoders.blocks import frame_mask
from encoders.fusion import checked_layers
from encoders.windows import Windows
from model_export.sources.hf.samples import Array, columns, in_a_row, one_clip, weighted

WINDOW_S = 15.0  # wav2vec 2.0 was trained with crops of 15.6 s (arXiv 2006.11477, section 4.2)
VARIANCE_EPS = 1e-7  # of Wav2Vec2FeatureExtractor


class WaveformEncoder(nn.Module):
    """`encoders.AnyEncoder` around one of the models. model: in eval mode, without a head; extractor: its
    feature extractor. fuse: layers counted from 1; layer_weights: (layers + 1,), by which a checkpoint's
    head weighs the hidden states, the input of the first layer among them; else the last one is given.

    Called without `n_samples` it is transformers itself, extractor and all: what the graph is held against.
    """

    is_transformer = True
    pooling = "mean"
    mean, std = 0.0, 1.0

    def __init__(
        self, model: Any, extractor: Any, *, fuse: Sequence[int] = (), layer_weights: Tensor | None = None
    ) -> None:
        """Raises ValueError for layers that cannot be fused."""
        super().__init__()
        config = model.config
        self.layers = tuple(range(1, config.num_hidden_layers + 1))
        self.fuse = checked_layers(fuse, self.layers, name=config.model_type)
        self.convolutions = tuple(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.normalises = bool(extractor.do_normalize)
        self.is_stable = bool(getattr(config, "do_stable_layer_norm", False))
        self.embedding_size = config.hidden_size * max(1, len(self.fuse))
        stride = int(np.prod(config.conv_stride))
        self.frontend = columns(int(extractor.sampling_rate))
        self.n_mels = column = self.frontend.hop_length
        self.windows = Windows(
            "independent",
            stride=-(-stride // column),
            frames=int(WINDOW_S * extractor.sampling_rate) // column,
            min_frames=-(-self.field // column),
        )
        self.frame_period_ms = stride * 1000 / extractor.sampling_rate
        self.first_frame_centre_ms = self.field * 500 / extractor.sampling_rate
        self._extractor = extractor
        self.model = without_parametrizations(model)
        self.layer_weights = None if layer_weights is None else layer_weights.softmax(dim=-1)
        attention = self.model.encoder.layers[0].attention
        self._buckets = None
        if hasattr(attention, "rel_attn_embed"):  # WavLM
            # As a table: logarithms that are rounded in another way might move a distance to the next bucket.
            self._furthest = far = int(self.count(torch.tensor(self.windows.frames * column)))
            self._buckets = attention._relative_positions_bucket(torch.arange(1 - far, far))

    @property
    def field(self) -> int:
        """Samples that one output frame sees."""
        size = 1
        for kernel, stride in reversed(self.convolutions):
            size = (size - 1) * stride + kernel
        return size

    def forward(self, x: Tensor, n_samples: Tensor | None = None) -> Tensor:
        """x (B, 1, column, T) of samples, n_samples (B,) of them valid -> (B, T', D)."""
        if n_samples is None:
            return self._joined(self._as_published(one_clip(x, shortest=self.field)))
        samples, n_samples = in_a_row(x), n_samples.clamp(min=self.field)
        if self.normalises:
            samples = normalised(samples.float(), n_samples).to(samples.dtype)
        features = self._features(samples, n_samples)
        valid = frame_mask(self.count(n_samples), features.shape[1])
        return self._joined(self._hidden_states(features, valid))

    def count(self, n_samples: Tensor) -> Tensor:
        """(B,) samples -> (B,) output frames, one at least: zeros fill it up."""
        n_samples = n_samples.clamp(min=self.field)
        for kernel, stride in self.convolutions:
            n_samples = torch.div(n_samples - kernel, stride, rounding_mode="floor") + 1
        return n_samples

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D): their mean."""
        return frames.mean(dim=1)

    def _features(self, samples: Tensor, n: Tensor) -> Tensor:
        """(B, samples), n (B,) of them valid -> (B, T', C), what the convolutions make of them."""
        x = samples[:, None]
        for layer in self.model.feature_extractor.conv_layers:
            if isinstance(norm := getattr(layer, "layer_norm", None), nn.GroupNorm):
                n = torch.div(n - layer.conv.kernel_size[0], layer.conv.stride[0], rounding_mode="floor") + 1
                x = layer.activation(group_norm(layer.conv(x), n, norm))
            else:
                x = layer(x)
        return x.transpose(1, 2)

    def _hidden_states(self, features: Tensor, valid: Tensor) -> list[Tensor]:
        """features (B, T', C), valid (B, T') -> the input of the first layer and what each layer makes."""
        encoder = self.model.encoder
        projected = self.model.feature_projection(features)
        x = projected[0] if isinstance(projected, tuple) else projected
        x = masked(x, valid)
        x = x + self._positions(x, valid)
        if not self.is_stable:
            x = encoder.layer_norm(x)
        states = [x]
        if self._buckets is not None:
            bias = self._distances(x.shape[1])
            bias = bias[None].expand(x.shape[0], -1, -1, -1).flatten(end_dim=1)
            for layer in encoder.layers:
                x = layer(x, attention_mask=valid.long(), position_bias=bias)[0]
                states.append(x)
        else:
            lowest = x.new_full((), torch.finfo(x.dtype).min)
            mask = torch.where(valid, x.new_zeros(()), lowest)[:, None, None, :]
            for layer in encoder.layers:
                x = layer(x, attention_mask=mask)
                states.append(x)
        return [*states, encoder.layer_norm(x) if self.is_stable else x]

    def _positions(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T', D): the convolution, or several, that tells where a frame is."""
        embed = self.model.encoder.pos_conv_embed
        x = x.transpose(1, 2)
        for layer in getattr(embed, "layers", [embed]):
            if (norm := getattr(layer, "batch_norm", None)) is not None:
                x = norm(x)
            x = torch.where(valid[:, None, :], x, x.new_zeros(()))
            x = layer.padding(layer.conv(x))
            if hasattr(layer, "layer_norm"):
                x = layer.layer_norm(x.transpose(1, 2)).transpose(1, 2)
            x = layer.activation(x)
        return x.transpose(1, 2)

    def _distances(self, length: int) -> Tensor:
        """(heads, T', T'): WavLM's bias of each distance."""
        assert self._buckets is not None
        values = self.model.encoder.layers[0].attention.rel_attn_embed(self._buckets)  # (2 far - 1, heads)
        at = torch.arange(length)
        return values[at[None, :] - at[:, None] + self._furthest - 1].permute(2, 0, 1)

    def _joined(self, states: list[Tensor]) -> Tensor:
        """The hidden states, and the last one as the model gives it, -> what is asked for."""
        if self.fuse:
            return torch.cat([states[number] for number in self.fuse], dim=2)
        if self.layer_weights is None:
            return states[-1]
        return weighted(states[:-1], self.layer_weights)

    def _as_published(self, samples: Array) -> list[Tensor]:
        """(samples,) -> as `_hidden_states`, by transformers."""
        inputs = self._extractor(samples, sampling_rate=self.frontend.sample_rate, return_tensors="pt")
        outputs = self.model(inputs.input_values, output_hidden_states=True)
        return [*outputs.hidden_states, outputs.last_hidden_state]


def normalised(samples: Tensor, n: Tensor) -> Tensor:
    """(B, samples), the first n (B,) of each valid -> of mean 0 and variance 1 over those, zero behind."""
    valid = frame_mask(n, samples.shape[1])
    zero, n_of = samples.new_zeros(()), n[:, None].to(samples.dtype)
    mean = torch.where(valid, samples, zero).sum(dim=1, keepdim=True) / n_of
    centred = torch.where(valid, samples - mean, zero)
    variance = centred.square().sum(dim=1, keepdim=True) / n_of
    return centred / torch.sqrt(variance + VARIANCE_EPS)


def group_norm(x: Tensor, n: Tensor, norm: nn.GroupNorm) -> Tensor:
    """x (B, C, T), the first n (B,) frames of each valid: a group per channel, over those frames alone."""
    assert norm.num_groups == norm.num_channels
    valid = frame_mask(n, x.shape[2])[:, None, :]
    wide = x.float()
    zero, n_of = wide.new_zeros(()), n[:, None, None].float()
    mean = torch.where(valid, wide, zero).sum(dim=2, keepdim=True) / n_of
    centred = torch.where(valid, wide - mean, zero)
    variance = centred.square().sum(dim=2, keepdim=True) / n_of
    scaled = (centred / torch.sqrt(variance + norm.eps)).to(x.dtype)
    return scaled * norm.weight[:, None] + norm.bias[:, None]


def masked(x: Tensor, valid: Tensor) -> Tensor:
    """x (B, T, D) with zeros where valid (B, T) is not."""
    return torch.where(valid[:, :, None], x, x.new_zeros(()))


def without_parametrizations(model: Any) -> Any:
    """The model, whose weights, those of weight normalisation among them, are plain tensors from now on."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return model
