"""A file of torch.save in; tensors on the CPU, numbers, strings, lists and dicts out, never code."""

import zipfile
from pathlib import Path
from typing import Any

import torch


class TorchFileError(ValueError):
    """Why a file is none, in a clause."""


def load(path: Path) -> Any:
    """Mapped into memory, not read. Raises TorchFileError, and FileNotFoundError where there is none."""
    mmap = zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch names no class for what can be wrong with a file
        raise TorchFileError(_why_unreadable(error)) from error


def _why_unreadable(error: Exception) -> str:
    """In our words: torch advises to load such a file with `weights_only=False`, which runs what is in it."""
    text = str(error)
    if "Unsupported" in text or "TorchScript" in text:
        return (
            "it holds Python objects or a program beside tensors, and loading those would run whatever code "
            "they name; save the weights alone (a state_dict), where you trust the file"
        )
    if isinstance(error, OSError | RuntimeError) and "weights_only" not in text:
        return text.partition("\n")[0]
    return "it is no such file, or it is damaged"
