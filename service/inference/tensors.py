"""A safetensors file in, its arrays out, each checked for shape, type and finite values."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from service.errors import ModelFolderError

Array = NDArray[np.float32]


def read_tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """A safetensors file: its arrays and its metadata."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path.name} is no safetensors file: {error}") from error


def checked_tensor(path: Path, tensors: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> Array:
    if name not in tensors:
        raise ModelFolderError(f"{path.name} holds no tensor `{name}`")
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.shape != shape:
        raise ModelFolderError(f"{path.name}: `{name}` is {tensor.dtype} {tensor.shape}, not float32 {shape}")
    if not np.isfinite(tensor).all():
        raise ModelFolderError(f"{path.name}: `{name}` holds NaN or infinite values")
    return tensor
