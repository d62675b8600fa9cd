"""What each encoder costs: parameters, multiply-adds and CPU time per second of sound, in float32 and int8.

The weights are random, which changes no time; each encoder is exported and run by the server's own Model,
log-mel included, with one thread, on ten seconds of real sound. Multiply-adds are those of convolutions,
linear layers and attention, counted by torch.utils.flop_counter. A variant that the exporter refuses is left
out, with its reason, and so is EfficientAT's int8, which is refused with the published weights. How far int8
is from float32 is not told: random weights say nothing of trained ones.

Out: results/encoders.json, and the table in docs/encoders.md.
"""

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

from benchmarks.harness import options
from benchmarks.harness.results import Result, markdown, middle, say, write
from benchmarks.harness.servers import ROOT
from benchmarks.harness.sounds import BIRDS, FIXTURES
from encoders import AnyEncoder, build_any
from model_export.clips import read_clips
from model_export.errors import ExportError
from model_export.export import About, Samples, export
from model_export.sources.trained import Trained
from service.inference.card import Card
from service.inference.model import GRAPH_FILES, Model, Precision
from service.sound.audio import decode

SOUND_S = 10  # of birdsong
CLIPS = 12  # to verify and calibrate with
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")
ANY_DISTANCE = -1.0  # of random weights

# In a process without torch, as the server is one: other libraries' threads would be counted, too.
SERVED = """
import json, sys, time
from service.sound.audio import decode
from service.inference.model import Model
from service.inference.windows import embed
folder, precision, sound, seconds, rounds = sys.argv[1:]
from pathlib import Path
model = Model.load(Path(folder), device="cpu", precision=precision, threads=1)
rate = model.card.sample_rate
samples = decode(Path(sound), sample_rate=rate).samples[: rate * int(seconds)]
took = []
for _ in range(int(rounds) + 2):  # two to warm up
    started = time.process_time()
    embed(model.run, model.card, [model.logmel(samples)])
    took.append(time.process_time() - started)
print(json.dumps(took[2:]))
"""


@dataclass(frozen=True)
class Entry:
    """One row. fuse: layers by the paper's numbers; width: of EfficientAT."""

    name: str
    fuse: tuple[int, ...] = ()
    width: float | None = None

    def __str__(self) -> str:
        size = [] if self.width is None else [f"{self.width:g}"]
        return " ".join([self.name, *size, *(f"#{layer}" for layer in self.fuse)])


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
    Entry("efficientat", width=0.4),
    Entry("efficientat", (9, 15), width=0.4),
    Entry("efficientat", (7, 13, 16), width=0.4),
    Entry("efficientat", width=1.0),
)


def main() -> None:
    run("encoders", ENTRIES, about=__doc__)


def run(name: str, entries: Sequence[Entry], *, about: str | None) -> None:
    """The command `python -m benchmarks.NAME`: the entries' rows into results/NAME.json."""
    parser = options.command(name, about)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for entry in entries:
        rows.append(measure(entry, arguments.rounds))
        say(f"{rows[-1]}")
        gc.collect()
    say(f"{write(name, rows, rounds=arguments.rounds)} written")


def measure(entry: Entry, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    parameters: dict[str, Any] = {} if entry.width is None else {"width": entry.width}
    encoder = build_any(entry.name, fuse=entry.fuse, **parameters)
    rate = encoder.frontend.sample_rate
    clips = list(read_clips(FIXTURES, sample_rate=rate, at_most=CLIPS))
    sound = decode(BIRDS, sample_rate=rate).samples[: rate * SOUND_S]
    assert isinstance(encoder, nn.Module)
    encoder.eval().requires_grad_(False)
    mean, std = getattr(encoder, "mean", 0.0), getattr(encoder, "std", 1.0)
    trained = Trained(entry.name, {}, encoder, mean, std, {})
    row: dict[str, Any] = {"encoder": str(entry), "parameters": sum(p.numel() for p in encoder.parameters())}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        try:
            card = _export(trained, folder, clips, int8=entry.name != "efficientat")
        except ExportError as error:
            row["int8_refused"] = str(error)
            card = _export(trained, folder, clips, int8=False)
        row["multiply_adds_per_s"] = multiply_adds(encoder, Model.load(folder, precision="float32"), sound)
        for precision in PRECISIONS:
            if GRAPH_FILES[precision] in card.files:
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
    words = [sys.executable, "-c", SERVED, str(folder), precision, str(BIRDS), str(SOUND_S), str(rounds)]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return middle([1000 * seconds / SOUND_S for seconds in json.loads(told)])


def table(result: Result, *, first: str = "encoder") -> str:
    """For docs/encoders.md. first: what its rows are."""
    header = [first, "numbers", "one per", "parameters", "multiply-adds per s", "shortest clip"]
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
