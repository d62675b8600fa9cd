"""What is told of a run while it trains: numbers of a step in, lines, curves and sentences out.

    runs/<run>/log.jsonl      one line per logged step
               tensorboard/   the same as curves

A disk that is full stops neither the run nor its progress bar.
"""

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from service.process.files import write_whole


class RunLog:
    """Goes on after `step`, the run's last: lines that were written after its checkpoint are dropped."""

    def __init__(self, folder: Path, step: int, *, active: bool) -> None:
        self.active = active
        self.path = folder / "log.jsonl"
        self.curves: SummaryWriter | None = None
        if active:
            lines = self.path.read_text().splitlines() if self.path.is_file() else []
            kept = [line for line in lines if step_of(line) <= step]
            write_whole(self.path, "".join(f"{line}\n" for line in kept).encode())
            self.curves = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self.curves:
            with suppress(OSError):  # a full disk at the very end: the checkpoint says so
                self.curves.close()

    def write(self, line: dict[str, float]) -> None:
        if not self.active:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            say(f"The log of step {line['step']} could not be written ({error}); training goes on.")
        self.draw(line)

    def draw(self, line: dict[str, float]) -> None:
        if self.curves is None:
            return
        try:
            for name, value in line.items():
                self.curves.add_scalar(name, value, int(line["step"]))
        except OSError as error:
            self.curves = None  # its writer does not recover
            say(f"TensorBoard's curves end at step {line['step']} ({error}); training goes on.")


def step_of(line: str) -> float:
    """The step of a line of log.jsonl; infinite for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def say(sentence: str) -> None:
    """Above the progress bar; where not even that can be written, training goes on."""
    with suppress(OSError):
        tqdm.write(sentence, file=sys.stderr)


class Clock:
    """Seconds of a step's parts; waits for the device only where it is active."""

    def __init__(self, device: torch.device, *, active: bool) -> None:
        self.device, self.active = device, active
        self.laps: dict[str, float] = {}
        self.began = self.now() if active else 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def lap(self, name: str) -> None:
        if self.active:
            self.laps[name] = self.now() - self.began - sum(self.laps.values())

    def speed(self, segments: int, teachers_share_of_wait: float = 0.0) -> dict[str, float]:
        """Of a step of so many segments, with the share of its time in the laps "wait" and "data"; of a wait
        for teachers, whose networks are no data, their part is told apart."""
        seconds = sum(self.laps.values())
        teachers_s = self.laps["wait"] * teachers_share_of_wait
        data_s = self.laps["wait"] + self.laps["data"] - teachers_s
        speed = {"segments_per_s": segments / seconds, "data_share": data_s / seconds}
        return speed | ({"teachers_share": teachers_s / seconds} if teachers_share_of_wait else {})


def embedding_std(embedding: Tensor) -> float:
    """How far apart the embeddings (B, D) of a batch are, in [0, 1]: 0 when all point the same way.

    The std over the batch of the L2-normalised embeddings, times sqrt(D).
    """
    unit = nn.functional.normalize(embedding.float(), dim=-1)
    return float(unit.var(dim=0, correction=0).sum().sqrt())
