"""A run's checkpoint: all that is needed to go on as if nothing had happened, and to export the encoder.

In and out: `<run>/checkpoint.pt`, replaced as a whole, so that a killed process or a full disk leaves the
one before. Random states need no place in it: every draw is seeded by the recipe's seed and the step.
"""

import io
from pathlib import Path
from typing import Any

import torch

from encoders import torch_file
from service.process.files import write_whole

FILE_NAME = "checkpoint.pt"


class CheckpointError(RuntimeError):
    """The checkpoint is missing, is no checkpoint, or belongs to another recipe or other clips."""


def save(run: Path, state: dict[str, Any]) -> None:
    """Raises OSError where the disk is full; the checkpoint before stays."""
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(run / FILE_NAME, content.getbuffer())


def load(run: Path) -> dict[str, Any]:
    """The state that `save` was given: tensors on the CPU, numbers, strings, lists and dicts alone."""
    path = run / FILE_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: {run} is not the folder of a pre-training run.")
    try:
        state: dict[str, Any] = torch_file.load(path)
    except torch_file.TorchFileError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    return state
