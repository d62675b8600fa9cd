"""What is exported, wherever it comes from: an encoder with its weights, and what is known of its training.

The strict part of reading weights is here: every key of the encoder must be there, and nothing else.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor, nn

import encoders
from encoders import AnyEncoder, Encoder
from encoders.byola_2020 import AudioNTT2020
from encoders.byola_2022 import AudioNTT2022
from encoders.byola_layers import BYOLALayers

from .errors import ExportError


@dataclass(frozen=True)
class Trained:
    """`encoder` is in eval mode on the CPU, in float32; mean and std normalise its log-mels.

    tags: (…, embedding_size) -> (…, 527) logits of AudioSet's classes, where the published file has them.
    """

    name: str  # of the encoder
    parameters: dict[str, JsonValue]
    encoder: AnyEncoder
    mean: float
    std: float
    training: dict[str, JsonValue]
    tags: nn.Module | None = None


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
    mmap = zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch names no class for what can be wrong with a file
        raise ExportError(f"{path} cannot be read as a file of torch.save: {_first_line(error)}") from error


def build_encoder(name: str, parameters: dict[str, int], state: Mapping[str, Any], source: Path) -> Encoder:
    """The encoder with exactly these weights. Raises ExportError that names every key which does not fit."""
    try:
        encoder = encoders.build(name, **parameters)
    except ValueError as error:
        raise ExportError(f"{source}: {error}") from error
    complaints = list(_complaints(encoder.state_dict(), state))
    if complaints:
        raise ExportError(f"{source} does not hold the weights of {name}: {'; '.join(complaints)}.")
    encoder.load_state_dict({key: value.float() for key, value in state.items()})
    return encoder.eval().requires_grad_(False)


def fused(trained: Trained, fuse: Sequence[int]) -> Trained:
    """Layers of a BYOL-A encoder side by side, in its place; as it is where none is named.

    Raises ExportError with the layers that there are.
    """
    if not fuse:
        return trained
    assert isinstance(trained.encoder, AudioNTT2020 | AudioNTT2022)
    try:
        encoder = BYOLALayers(trained.encoder, fuse).eval()
    except ValueError as error:
        raise ExportError(f"--fuse: {error}") from error
    return replace(trained, encoder=encoder, parameters={**trained.parameters, "fuse": [*encoder.fuse]})


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
