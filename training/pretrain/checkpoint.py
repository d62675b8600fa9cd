"""A run's checkpoint: all that is needed to go on as if nothing had happened, and to export the encoder.

In and out: `<run>/checkpoint.pt`, replaced as a whole, so that a killed process or a full disk leaves the
one before. Random states need no place in it: every draw is seeded by the recipe's seed and the step.
"""

import io
from pathlib import Path
from typing import Any

import torch

from training.clips import write_whole

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
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {why_unreadable(error)}") from error
    return state


def why_unreadable(error: Exception) -> str:
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
