"""Small checkpoints with random weights, written by transformers itself."""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray

Array = NDArray[np.float32]

RATE = 16_000
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),  # the published ones have seven; a frame of theirs sees 400 samples, too
    "conv_kernel": (10, 23, 8),
    "conv_stride": (5, 8, 8),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 12,
    "vocab_size": 8,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
# name -> the configuration's class, that of the network, that with a head, what differs, do_normalize
WAVEFORM: dict[str, tuple[str, str, str, dict[str, Any], bool]] = {
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model", "Wav2Vec2ForSequenceClassification", {}, True),
    "wav2vec2-stable": ("Wav2Vec2Config", "Wav2Vec2Model", "Wav2Vec2ForSequenceClassification", STABLE, True),
    "hubert": (
        "HubertConfig",
        "HubertModel",
        "HubertForSequenceClassification",
        {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False},
        False,
    ),
    "wavlm": ("WavLMConfig", "WavLMModel", "WavLMForSequenceClassification", {}, False),
    "wavlm-stable": ("WavLMConfig", "WavLMModel", "WavLMForSequenceClassification", STABLE, True),
    "data2vec": (
        "Data2VecAudioConfig",
        "Data2VecAudioModel",
        "Data2VecAudioForSequenceClassification",
        {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5},
        True,
    ),
}


def write_waveform(folder: Path, name: str, *, with_head: bool = False, **changes: Any) -> Any:
    """The folder of one of WAVEFORM; what was written."""
    config_kind, model_kind, head_kind, differs, normalises = WAVEFORM[name]
    config = getattr(transformers, config_kind)(**(SMALL | differs | changes))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalises)
    return written(folder, getattr(transformers, head_kind if with_head else model_kind), config, extractor)


def written(folder: Path, kind: Any, config: Any, extractor: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval().requires_grad_(False)
    for key, value in model.state_dict().items():  # as if trained: not the initial zeros and ones
        if key.endswith("running_mean"):
            value.copy_(0.2 * torch.rand_like(value))
        elif key.endswith("running_var"):
            value.copy_(0.5 + torch.rand_like(value))
        elif value.is_floating_point() and (value == value.flatten()[0]).all():
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# small\n", encoding="utf-8")
    return model


def noises(*seconds: float, rate: int = RATE) -> list[Array]:
    """Noise that grows, with a tone in it."""
    random = np.random.default_rng(0)
    clips = []
    for duration_s in seconds:
        t = np.arange(int(duration_s * rate)) / rate
        noise = random.normal(size=len(t)) * np.linspace(0.02, 0.2, len(t))
        clips.append((noise + 0.1 * np.sin(2 * np.pi * 440 * t)).astype(np.float32))
    return clips


def write_whisper(folder: Path, *, with_head: bool = False, **changes: Any) -> Any:
    """Of three seconds in place of thirty."""
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        num_mel_bins=40,
        max_source_positions=150,
        classifier_proj_size=12,
        **changes,
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=3)
    kind = transformers.WhisperForAudioClassification if with_head else transformers.WhisperModel
    return written(folder, kind, config, extractor)


def write_ast(folder: Path, *, with_head: bool = False, **changes: Any) -> Any:
    """Of a bit more than two seconds in place of ten."""
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_length=216,
        num_mel_bins=36,
        **changes,
    )
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=36, max_length=216)
    kind = transformers.ASTForAudioClassification if with_head else transformers.ASTModel
    return written(folder, kind, config, extractor)


CLAP_RATE = 8_000


WORDS = [
    "this",
    "is",
    "a",
    "sound",
    "of",
    ".",
    "rain",
    "dog",
    "barks",
    "twice",
    "then",
    "an",
    "engine",
    "far",
]


def write_tokenizer(folder: Path) -> None:
    """A word is a token; the marks are RoBERTa's."""
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*marks, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=30, model_input_names=MASKED, **names
    )
    fast.save_pretrained(folder)


MASKED = ["input_ids", "attention_mask"]


def write_clap(folder: Path, *, fusion: bool = False, padding: str = "repeatpad") -> Any:
    """Of two seconds at 8 kHz in place of ten at 48."""
    write_tokenizer(folder)
    audio = transformers.ClapAudioConfig(
        window_size=4,
        num_mel_bins=32,
        spec_size=128,
        patch_size=4,
        patch_stride=[4, 4],
        depths=[1, 2],
        num_attention_heads=[2, 4],
        patch_embeds_hidden_size=16,
        hidden_size=32,
        projection_dim=24,
        enable_fusion=fusion,
        fusion_type="aff_2d" if fusion else None,
    )
    text = transformers.ClapTextConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=34,
        projection_dim=24,
    )
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=24)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=CLAP_RATE,
        hop_length=40,
        max_length_s=2,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=3500,
        truncation="fusion" if fusion else "rand_trunc",
        padding=padding,
    )
    return written(folder, transformers.ClapModel, config, extractor)
