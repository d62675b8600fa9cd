"""Small encoders with weights that look trained, the run that they come from, and real clips."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import encoders
from encoders import Encoder
from model_export.clips import FIXTURES, read_clips
from model_export.export import About
from model_export.sources.trained import Trained

MEAN, STD = -9.0, 5.0
SMALL: dict[str, dict[str, int]] = {
    "byola-2020": {"n_mels": 64, "d": 512},
    "byola-2022": {"n_mels": 64, "d": 1280},
}
ABOUT = About("small", "1.0.0", "a small one", "CC0-1.0", "tests", "knows nothing")


def random_encoder(name: str, **parameters: int) -> Encoder:
    """With statistics and gains of batch normalisation that are not the initial zeros and ones."""
    torch.manual_seed(0)
    encoder = encoders.build(name, **(parameters or SMALL[name]))
    for key, value in encoder.state_dict().items():
        if key.endswith("running_mean"):
            value.copy_(0.2 * torch.rand_like(value))
        elif key.endswith("running_var") or (key.endswith("weight") and value.dim() == 1):
            value.copy_(0.5 + torch.rand_like(value))
    return encoder.eval()


def random_trained(name: str) -> Trained:
    return Trained(name, SMALL[name], random_encoder(name), MEAN, STD, {})


@pytest.fixture(scope="session", params=list(SMALL))
def trained(request: pytest.FixtureRequest) -> Trained:
    """Each of the two encoders."""
    return random_trained(request.param)


@pytest.fixture(scope="session")
def clips() -> list[NDArray[np.float32]]:
    """All valid fixtures, at 16 kHz, at most 10 s of each."""
    return read_clips(FIXTURES, sample_rate=16_000, at_most=100)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(**changes to the checkpoint) writes a run folder as pre-training does and returns it."""

    def make(average_decay: float = 0.0, **changes: Any) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        last, average = random_encoder("byola-2022"), random_encoder("byola-2022")
        average.state_dict()["fc.0.bias"].add_(1.0)
        state = {
            "format": 1,
            "recipe": {
                "encoder": {"name": "byola-2022", **SMALL["byola-2022"]},
                "optimisation": {"average_decay": average_decay, "epochs": 1.0},
            },
            "step": 20,
            "segments_seen": 2560,
            "statistics": {"mean": MEAN, "std": STD},
            "model": {
                **{f"online.encoder.{key}": value for key, value in last.state_dict().items()},
                "online.projector.0.weight": torch.zeros(4, 4),
                "target.encoder.fc.0.bias": torch.zeros(4),
            },
            "average": average.state_dict(),
            "optimiser": {},
            "memory": torch.zeros(0),
        }
        torch.save(state | changes, run / "checkpoint.pt")
        (run / "data.json").write_text(
            '{"clips": 5, "hours": 0.1, "commit": "abc",'
            ' "unreadable": [{"path": "/home/me/x.wav", "reason": "empty"}]}'
        )
        return run

    return make
