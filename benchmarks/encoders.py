"""What each encoder costs: parameters, multiply-adds and CPU time per second of sound, in float32 and int8.

The weights are random, which changes no time; each encoder is exported and run by the server's own Model,
log-mel included, with one thread, on ten seconds of real sound. Multiply-adds are those of convolutions,
linear layers and attention, counted by torch.utils.flop_counter. A variant that the exporter refuses is left
out, with its reason. The precision of random weights says nothing of trained ones: no distance is told.

Out: results/encoders.json, and the table in docs/encoders.md.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import Result, markdown, middle, say, write
from benchmarks.servers import ROOT
from encoders import AnyEncoder, build_any
from model_export.clips import read_clips
from model_export.errors import ExportError
from model_export.export import About, Samples, export
from model_export.weights import Trained
from service.audio import decode
from service.model import Card, Model, Precision

FIXTURES = ROOT / "tests" / "fixtures"
SOUND = FIXTURES / "birds_30s_16k_mono.opus"
SOUND_S = 10
CLIPS = 12  # to verify and calibrate with
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")
ANY_DISTANCE = -1.0  # of random weights

# In a process without torch, as the server is one: other libraries' threads would be counted, too.
SERVED = """
import json, sys, time
from service.audio import decode
from service.model import Model
from service.windows import embed
folder, precision, sound, seconds, rounds = sys.argv[1:]
from pathlib import Path
model = Model.load(Path(folder), device="cpu", precision=precision, threads=1)
samples = decode(Path(sound), sample_rate=16_000).samples[: 16_000 * int(seconds)]
took = []
for _ in range(int(rounds) + 2):  # two to warm up
    started = time.process_time()
    embed(model.run, model.card, [model.logmel(samples)])
    took.append(time.process_time() - started)
print(json.dumps(took[2:]))
"""


@dataclass(frozen=True)
class Entry:
    """One row. fuse: layers by the paper's numbers."""

    name: str
    fuse: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.name, *(f"#{layer}" for layer in self.fuse)])


ENTRIES = (
    Entry("logmel-stats"),
    Entry("byola-2020"),
    Entry("byola-2022"),
    Entry("vggish"),
    Entry("vggish-4k"),
    Entry("vggish", (10, 15)),
    Entry("cnn14"),
    Entry("cnn14", (3, 6)),
    Entry("ast"),
    Entry("ast", (5, 12)),
    Entry("msm-mae"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoders", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    clips = list(read_clips(FIXTURES, sample_rate=16_000, at_most=CLIPS))
    sound = decode(SOUND, sample_rate=16_000).samples[: 16_000 * SOUND_S]
    rows = []
    for entry in ENTRIES:
        rows.append(measure(entry, clips, sound, arguments.rounds))
        say(f"{rows[-1]}")
        gc.collect()
    say(f"{write('encoders', rows, rounds=arguments.rounds)} written")


def measure(entry: Entry, clips: Sequence[Samples], sound: Samples, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    encoder = build_any(entry.name, fuse=entry.fuse)
    assert isinstance(encoder, nn.Module)
    encoder.eval().requires_grad_(False)
    mean, std = getattr(encoder, "mean", 0.0), getattr(encoder, "std", 1.0)
    trained = Trained(entry.name, {}, encoder, mean, std, {})
    row: dict[str, Any] = {"encoder": str(entry), "parameters": sum(p.numel() for p in encoder.parameters())}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        try:
            card = _export(trained, folder, clips, int8=True)
        except ExportError as error:
            row["int8_refused"] = str(error)
            card = _export(trained, folder, clips, int8=False)
        row["multiply_adds_per_s"] = multiply_adds(encoder, Model.load(folder, precision="float32"), sound)
        for precision in PRECISIONS:
            if precision == "float32" or "int8_refused" not in row:
                row[precision] = cpu_ms_per_s(folder, precision, rounds)
    return row | {
        "embedding_size": card.embedding_size,
        "frame_period_ms": card.frame_period_ms,
        "shortest_ms": round(1000 * card.min_samples / card.sample_rate, 1),
        "windows": card.windows.kind,
    }


def _export(trained: Trained, folder: Path, clips: Sequence[Samples], *, int8: bool) -> Card:
    about = About("model", "0", "random weights", "none", "none", "none")
    return export(trained, folder, about=about, clips=clips, int8=int8, least_cosine=ANY_DISTANCE, force=True)


def multiply_adds(encoder: AnyEncoder, model: Model, sound: Samples) -> float:
    """Per second of sound, of one pass over SOUND_S seconds."""
    x = torch.from_numpy(model.logmel(sound))[None, None]
    assert isinstance(encoder, nn.Module)
    # Fused attention is not counted, its plain form is.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder(x)
    return counter.get_total_flops() / 2 / SOUND_S


def cpu_ms_per_s(folder: Path, precision: Precision, rounds: int) -> dict[str, float]:
    """Milliseconds of one core for a second of sound: log-mel, graph, pooling."""
    words = [sys.executable, "-c", SERVED, str(folder), precision, str(SOUND), str(SOUND_S), str(rounds)]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return middle([1000 * seconds / SOUND_S for seconds in json.loads(told)])


def table(result: Result) -> str:
    """For docs/encoders.md."""
    header = ["encoder", "numbers", "one per", "parameters", "multiply-adds per s", "shortest clip"]
    header += ["long audio", "CPU ms per s: float32", "int8"]
    return markdown(header, [_cells(each) for each in result["rows"]])


def _cells(each: dict[str, Any]) -> list[object]:
    return [
        each["encoder"],
        each["embedding_size"],
        f"{each['frame_period_ms']:g} ms",
        f"{each['parameters'] / 1e6:.2f} M",
        f"{each['multiply_adds_per_s'] / 1e9:.3f} G",
        f"{each['shortest_ms']:g} ms",
        each["windows"],
        *(f"{each[name]['median']:.2f}" if name in each else "–" for name in PRECISIONS),
    ]


if __name__ == "__main__":
    main()
