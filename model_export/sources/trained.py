"""What is exported, wherever it comes from: an encoder with its weights, and what is known of its training.

Weights are read strictly: every key of the encoder must be there, and no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor, nn

import encoders
from encoders import AnyEncoder, Student, torch_file
from encoders.byola_2020 import AudioNTT2020
from encoders.byola_2022 import AudioNTT2022
from encoders.byola_layers import BYOLALayers
from encoders.efficientat import EfficientAT
from model_export.errors import ExportError
from service.inference.card import TextTower


@dataclass(frozen=True)
class Text:
    """tower: (input_ids, attention_mask), both (B, L) int64, -> (B, D) float32; tokenizer: a file in the form
    of the library `tokenizers`; n_tokens: that the tower knows; card: how both are used."""

    tower: nn.Module
    tokenizer: str
    n_tokens: int
    card: TextTower


@dataclass(frozen=True)
class Trained:
    """`encoder` is in eval mode on the CPU, in float32; mean and std normalise its log-mels.

    tags: (…, embedding_size) -> (…, 527) logits of AudioSet's classes, where the published file has them; or
    those of any labels, where a graph that was brought along has them. head: their name in the folder.
    arrays: window and filterbank, where they are not those of the encoder's front-end. text: what embeds
    texts in the same space.
    """

    name: str  # of the encoder
    parameters: dict[str, JsonValue]
    encoder: AnyEncoder
    mean: float
    std: float
    training: dict[str, JsonValue]
    tags: nn.Module | None = None
    head: str = "audioset"
    task: Literal["multilabel", "multiclass"] = "multilabel"
    labels: tuple[str, ...] | None = None
    arrays: Mapping[str, NDArray[np.float32]] | None = None
    text: Text | None = None


def load_weights(path: Path) -> Any:
    """What torch.save or safetensors wrote, by the name of the file. Raises ExportError."""
    if not path.is_file():
        raise ExportError(f"{path} does not exist.")
    if path.suffix != ".safetensors":
        return load_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} cannot be read as a safetensors file: {error}") from error


def load_file(path: Path) -> Any:
    """What torch.save wrote: tensors, numbers, strings, lists and dicts, no code. Raises ExportError."""
    if not path.is_file():
        raise ExportError(f"{path} does not exist.")
    try:
        return torch_file.load(path)
    except torch_file.TorchFileError as error:
        raise ExportError(f"{path} cannot be read as a file of torch.save: {error}") from error


def build_encoder(name: str, parameters: dict[str, Any], state: Mapping[str, Any], source: Path) -> Student:
    """The encoder with exactly these weights. Raises ExportError that names every key which does not fit."""
    try:
        encoder = encoders.build_student(name, **parameters)
    except ValueError as error:
        raise ExportError(f"{source}: {error}") from error
    complaints = list(_complaints(encoder.state_dict(), state))
    if complaints:
        raise ExportError(f"{source} does not hold the weights of {name}: {'; '.join(complaints)}.")
    encoder.load_state_dict({key: value.float() for key, value in state.items()})
    return encoder.eval().requires_grad_(False)


def fused(trained: Trained, fuse: Sequence[int]) -> Trained:
    """With an encoder that gives these of its layers side by side; unchanged where none is named.

    Raises ExportError, which says what layers there are.
    """
    if not fuse:
        return trained
    if not isinstance(trained.encoder, AudioNTT2020 | AudioNTT2022 | EfficientAT):
        raise ExportError(f"--fuse: {trained.name} gives its last layer alone: leave the option out.")
    try:
        encoder = layers_of(trained.encoder, fuse).eval()
    except ValueError as error:
        raise ExportError(f"--fuse: {error}") from error
    return replace(trained, encoder=encoder, parameters={**trained.parameters, "fuse": [*encoder.fuse]})


def layers_of(
    encoder: AudioNTT2020 | AudioNTT2022 | EfficientAT, fuse: Sequence[int]
) -> BYOLALayers | EfficientAT:
    """The encoder's layers side by side. Raises ValueError, which says what layers there are."""
    if not isinstance(encoder, EfficientAT):
        return BYOLALayers(encoder, fuse)
    layered = EfficientAT(encoder.width, fuse)
    wanted = layered.state_dict().keys()
    layered.load_state_dict({key: value for key, value in encoder.state_dict().items() if key in wanted})
    return layered.requires_grad_(False)


def checked_statistics(mean: float, std: float, source: Path | str) -> tuple[float, float]:
    if not (abs(mean) < float("inf") and 0 < std < float("inf")):
        raise ExportError(f"{source}: mean {mean} and std {std} normalise nothing; std must be positive.")
    return mean, std


def _complaints(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> list[str]:
    missing = [key for key in expected if key not in found]
    unexpected = [str(key) for key in found if key not in expected]
    complaints = []
    if missing:
        complaints.append(f"it lacks {', '.join(missing)}")
    if unexpected:
        complaints.append(f"it has {', '.join(unexpected)}, which the encoder has not")
    for key in expected.keys() & found.keys():
        complaint = _complaint_on(expected[key], found[key])
        if complaint:
            complaints.append(f"{key} {complaint}")
    return complaints


def _complaint_on(expected: Tensor, found: Any) -> str | None:
    if not isinstance(found, Tensor):
        return f"is a {type(found).__name__}, not a tensor"
    if found.shape != expected.shape:
        return f"has the shape {list(found.shape)}, not {list(expected.shape)}"
    if not bool(torch.isfinite(found).all()):
        return "holds NaN or infinite values"
    return None
