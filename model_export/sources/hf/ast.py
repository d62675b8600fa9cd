"""The Audio Spectrogram Transformer (arXiv 2104.01778) of any size, as transformers has it.

    log-mel (B, n_mels, T) ─zeros up to max_length, before the normalisation─► patches, class and distillation
            token ─► layers ─► (B, 1, D): the mean of the two tokens

`--encoder ast` builds the published size by itself, and puts a shorter clip in the middle of the positions
(encoders/ast.py); here it is padded, as transformers does.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from encoders import frontend
from encoders.ast import ASTTags
from encoders.blocks import frame_mask
from encoders.fusion import checked_layers
from encoders.windows import Windows
from model_export.errors import ExportError

WIN_S, HOP_S = 0.025, 0.01  # of torchaudio's kaldi.fbank


class ASTEncoder(nn.Module):
    """`encoders.AnyEncoder` around ASTModel of transformers. fuse: layers counted from 1, each through the
    last LayerNorm.

    Called without `n_frames` it is the forward of transformers.
    """

    is_transformer = True
    pooling = "mean"

    def __init__(self, model: Any, extractor: Any, *, fuse: Sequence[int] = ()) -> None:
        """Raises ValueError for layers that cannot be fused, ExportError for another extractor."""
        super().__init__()
        config = model.config
        self.layers = tuple(range(1, config.num_hidden_layers + 1))
        self.fuse = checked_layers(fuse, self.layers, name=config.model_type) or (self.layers[-1],)
        if (extractor.num_mel_bins, extractor.max_length) != (config.num_mel_bins, config.max_length):
            raise ExportError(
                f"its network takes {config.num_mel_bins} bands of {config.max_length} frames, and "
                f"preprocessor_config.json makes {extractor.num_mel_bins} of {extractor.max_length}."
            )
        self.model = model
        self.embedding_size = config.hidden_size * len(self.fuse)
        self.frontend = frontend_of(int(extractor.sampling_rate), n_mels=int(extractor.num_mel_bins))
        self.n_mels = self.frontend.n_mels
        self.max_length = int(extractor.max_length)
        normalises = bool(extractor.do_normalize)
        self.mean, self.std = (float(extractor.mean), 2 * float(extractor.std)) if normalises else (0.0, 1.0)
        self.windows = Windows("independent", stride=1, frames=self.max_length)
        length = (self.max_length - 1) * self.frontend.hop_length
        self.frame_period_ms = self.max_length * self.frontend.hop_length * 1000 / self.frontend.sample_rate
        self.first_frame_centre_ms = (length + self.frontend.win_length) * 500 / self.frontend.sample_rate

    def forward(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (B, 1, n_mels, T) normalised, T <= max_length -> (B, 1, D). `n_frames` (B,): the valid ones."""
        values = self._padded(x[:, 0], n_frames).transpose(1, 2)  # (B, max_length, n_mels)
        if n_frames is None:
            states = self.model(values, output_hidden_states=True).hidden_states
            return self._joined([states[number] for number in self.fuse])
        tokens = self.model.embeddings(values)
        states = []
        for number, layer in enumerate(self.model.layers, start=1):
            tokens = layer(tokens, None)
            if number in self.fuse:
                states.append(tokens)
        return self._joined(states)

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) log-mel frames -> (B,) output frames: one."""
        return torch.ones_like(n_frames)

    @staticmethod
    def pool(frames: Tensor) -> Tensor:
        """(B, windows, D) -> (B, D): their mean."""
        return frames.mean(dim=1)

    def _padded(self, x: Tensor, n_frames: Tensor | None) -> Tensor:
        """(B, n_mels, T) -> (B, n_mels, max_length), behind the clip a log-mel of 0, normalised."""
        silence = x.new_full((x.shape[0], self.n_mels, self.max_length), -self.mean / self.std)
        if n_frames is not None:
            x = torch.where(frame_mask(n_frames, x.shape[2])[:, None, :], x, silence[:, :, :1])
        return torch.cat([x, silence], dim=2)[:, :, : self.max_length]

    def _joined(self, states: Sequence[Tensor]) -> Tensor:
        tokens = [self.model.layernorm(state)[:, :2] for state in states]
        return torch.cat([each.mean(dim=1, keepdim=True) for each in tokens], dim=2)


def frontend_of(sample_rate: int, *, n_mels: int) -> frontend.Frontend:
    """Of ASTFeatureExtractor: Kaldi's fbank."""
    win_length = round(sample_rate * WIN_S)
    return replace(
        frontend.AST,
        sample_rate=sample_rate,
        n_fft=1 << (win_length - 1).bit_length(),
        win_length=win_length,
        hop_length=round(sample_rate * HOP_S),
        n_mels=n_mels,
        f_max_hz=sample_rate / 2,
    )


def head_of(classifier: Any) -> ASTTags:
    """ASTMLPHead of transformers."""
    tags = ASTTags()
    tags.norm, tags.linear = classifier.layernorm, classifier.dense
    return tags
