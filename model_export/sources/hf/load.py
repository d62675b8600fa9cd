"""A checkpoint of transformers in, its audio network out, ready to export; which networks, stands here.

    config.json ─ model_type ─► Family ─► waveform.py      Wav2Vec2, HuBERT, WavLM, Data2VecAudio
                                          whisper.py       Whisper's encoder
                                          ast.py           AST
                                          clap.py, text.py CLAP's audio tower and its text tower

The head of a checkpoint for classification becomes a linear one of the vector: its projection and the mean
over the frames can change places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from encoders import AnyEncoder
from model_export.errors import ExportError
from model_export.sources.hf.ast import ASTEncoder, head_of
from model_export.sources.hf.checkpoint import Checkpoint, open_checkpoint
from model_export.sources.hf.clap import ClapEncoder
from model_export.sources.hf.text import text_of
from model_export.sources.hf.waveform import WaveformEncoder
from model_export.sources.hf.whisper import WhisperEncoder
from model_export.sources.trained import Text, Trained

Task = Literal["multilabel", "multiclass"]

N_AUDIOSET = 527


@dataclass(frozen=True)
class Asked:
    """fuse: layers, counted from 1; with_head: whether the checkpoint's head is to be served, too."""

    fuse: Sequence[int]
    with_head: bool


@dataclass(frozen=True)
class Family:
    """model: the class of the network alone; classifier: of it with a head; build: the encoder, of either."""

    model: str
    classifier: str | None
    build: Callable[[Any, Any, Asked], AnyEncoder]
    unused: tuple[str, ...] = ()


def _waveform(model: Any, extractor: Any, asked: Asked) -> AnyEncoder:
    if getattr(model.config, "add_adapter", False):
        raise ExportError("its adapter, which makes longer steps of the frames, is not known here.")
    if extractor.feature_size != 1:
        raise ExportError(f"it takes {extractor.feature_size} numbers per step, not samples.")
    weights = getattr(model, "layer_weights", None) if asked.with_head else None
    return WaveformEncoder(model.base_model, extractor, fuse=asked.fuse, layer_weights=weights)


def _whisper(model: Any, extractor: Any, asked: Asked) -> AnyEncoder:
    encoder = model.get_encoder() if hasattr(model, "get_encoder") else model.encoder
    weights = getattr(model, "layer_weights", None) if asked.with_head else None
    return WhisperEncoder(
        encoder, extractor, fuse=asked.fuse, of_window=asked.with_head, layer_weights=weights
    )


def _ast(model: Any, extractor: Any, asked: Asked) -> AnyEncoder:
    return ASTEncoder(model.base_model, extractor, fuse=asked.fuse)


def _clap(model: Any, extractor: Any, asked: Asked) -> AnyEncoder:
    return ClapEncoder(model, extractor, fuse=asked.fuse)


def _of_waveform(name: str) -> Family:
    return Family(f"{name}Model", f"{name}ForSequenceClassification", _waveform)


FAMILIES = {
    "wav2vec2": _of_waveform("Wav2Vec2"),
    "hubert": _of_waveform("Hubert"),
    "wavlm": _of_waveform("WavLM"),
    "data2vec-audio": _of_waveform("Data2VecAudio"),
    "whisper": Family("WhisperModel", "WhisperForAudioClassification", _whisper, unused=("decoder.",)),
    "audio-spectrogram-transformer": Family("ASTModel", "ASTForAudioClassification", _ast),
    "clap": Family("ClapModel", None, _clap),
    "clap_audio_model": Family("ClapAudioModelWithProjection", None, _clap),
}


def load_hf(
    source: str, *, fuse: Sequence[int] = (), with_head: bool = False, labels: Sequence[str] | None = None
) -> tuple[Trained, Checkpoint]:
    """source: a folder, or OWNER/NAME[@REVISION] at the hub; labels: of the head, in place of the
    checkpoint's. Raises ExportError."""
    checkpoint = open_checkpoint(source)
    config = checkpoint.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ExportError(
            f"{checkpoint.name} is a {config.model_type}, which is no audio network known here; known are "
            f"{', '.join(FAMILIES)}. Others can be brought along as ONNX graphs: --encoder onnx."
        )
    has_head = family.classifier is not None and checkpoint.architecture == family.classifier
    if with_head:
        _check_head(checkpoint, family, has_head=has_head, fuse=fuse)
    extractor = checkpoint.extractor()
    kind = family.classifier if has_head and family.classifier else family.model
    model = checkpoint.model(kind, unused=family.unused)
    try:
        encoder = family.build(model, extractor, Asked(fuse, with_head))
    except ValueError as error:  # ExportError among them
        where = f"{checkpoint.name}:" if isinstance(error, ExportError) else "--fuse:"
        raise ExportError(f"{where} {error}") from error
    parameters: dict[str, JsonValue] = {"architecture": checkpoint.architecture}
    if fuse:
        parameters["fuse"] = [*sorted(fuse)]
    trained = Trained(
        name=config.model_type,
        parameters=parameters,
        encoder=encoder.eval().requires_grad_(False),  # type: ignore[attr-defined]  # a torch module
        mean=encoder.mean,  # type: ignore[attr-defined]
        std=encoder.std,  # type: ignore[attr-defined]
        training=checkpoint.facts(),
        tags=_head_of(model) if with_head else None,
        head="audioset" if is_audioset(config) else "scores",
        task=task_of(config),
        labels=labels_of(checkpoint, labels) if with_head else None,
        text=_text(model, checkpoint, fuse),
    )
    return trained, checkpoint


def _text(model: Any, checkpoint: Checkpoint, fuse: Sequence[int]) -> Text | None:
    """Of a checkpoint that has a text tower, for embeddings of its space. Raises ExportError."""
    if fuse or not hasattr(model, "text_projection"):
        return None
    try:
        return text_of(model, checkpoint.tokenizer())
    except ExportError as error:
        raise ExportError(f"{checkpoint.name}: {str(error).removeprefix(f'{checkpoint.name}: ')}") from error


def is_audioset(config: Any) -> bool:
    """AST's checkpoints of AudioSet do not say that several classes may be heard at once."""
    return config.model_type == "audio-spectrogram-transformer" and config.num_labels == N_AUDIOSET


def task_of(config: Any) -> Task:
    if config.problem_type is None:
        return "multilabel" if is_audioset(config) else "multiclass"
    return "multilabel" if config.problem_type == "multi_label_classification" else "multiclass"


def labels_of(checkpoint: Checkpoint, given: Sequence[str] | None = None) -> tuple[str, ...]:
    """In the order of the head's outputs: the checkpoint's own, or those given. Raises ExportError."""
    names, n = checkpoint.config.id2label, checkpoint.config.num_labels
    labels = tuple(given) if given is not None else tuple(str(names[key]) for key in sorted(names, key=int))
    if len(labels) != n:
        raise ExportError(f"{len(labels)} labels for the {n} scores of {checkpoint.name}.")
    if len(set(labels)) < len(labels) or not all(labels):
        raise ExportError(
            f"{checkpoint.name}: its labels (id2label in config.json) are not all names of their own: give "
            "others with --labels."
        )
    return labels


@torch.no_grad()
def _head_of(model: Any) -> nn.Module:
    """Of the mean over the frames: (…, D) -> (…, C) logits."""
    if hasattr(model, "projector"):
        return chained(model.projector, model.classifier)
    return head_of(model.classifier)


def chained(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """One layer for both."""
    weight: Tensor = second.weight.double() @ first.weight.double()
    bias: Tensor = second.weight.double() @ first.bias.double() + second.bias.double()
    both = nn.Linear(first.in_features, second.out_features)
    both.weight.copy_(weight.float())
    both.bias.copy_(bias.float())
    return both.requires_grad_(False)


def _check_head(checkpoint: Checkpoint, family: Family, *, has_head: bool, fuse: Sequence[int]) -> None:
    config = checkpoint.config
    if fuse:
        raise ExportError("--head: the head of a checkpoint reads the plain embedding, not fused layers.")
    if not has_head:
        kind = checkpoint.architecture or config.model_type
        with_one = f"; a {family.classifier} has one" if family.classifier else ""
        raise ExportError(f"--head: {checkpoint.name} is a {kind} and has no head of labels{with_one}.")
    if config.num_labels < 2 or config.problem_type == "regression":
        raise ExportError(f"--head: {checkpoint.name} gives a number, not the scores of labels.")
