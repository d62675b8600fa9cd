"""The network and the server on a GPU: are its numbers the CPU's, and how fast is it? In one command.

`numbers`: how far the embeddings of real sounds are from those of the CPU in float32; beyond LARGEST it ends
with an error. `graph`: full batches through the model, over and over, log-mels ready. `server`: one-second
clips over HTTP from many clients, as benchmarks/load.py sends them. Precisions (float16 where the folder has
it: `model_export export --float16`) take turns in each round. `cuda`, then `tensorrt` where it is there. If
there is no device it says why and measures nothing; that is no failure.

Out: results/gpu.json. `--device cpu` tries the script out without a GPU; its result is not kept.
"""

import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import options, uploads
from benchmarks.harness.clients import Burst, burst
from benchmarks.harness.results import Result, markdown, middle, say, span, write
from benchmarks.harness.servers import Server, running, viola
from benchmarks.harness.sounds import WORD, fixtures, word
from service.inference.card import load_card
from service.inference.model import GRAPH_FILES, Model, Precision
from service.inference.session import Device, obstacle
from service.inference.windows import embed
from service.sound.audio import decode

Array = NDArray[Any]

# Of the largest number of an embedding, and of its direction. TF32 is off; 16 bits hold three digits.
LARGEST = {"float32": 1e-3, "float16": 5e-2}
SECONDS = (1.0, 10.0)  # of a clip: a short one, and a full window of the default model
BATCHES = (1, 8, 32, 128)
CLIENTS = (1, 32, 128)
# Larger batches than a CPU's, which a GPU needs.
SETTINGS = {"VIOLA_MAX_BATCH_ITEMS": "128", "VIOLA_MAX_BATCH_FRAMES": "32768"}


def main() -> None:
    parser = options.command("gpu", __doc__)
    options.model(parser)
    parser.add_argument("--device", choices=["cuda", "tensorrt", "cpu"], help="default: cuda, then tensorrt")
    options.counts(parser, "--batches", BATCHES)
    options.counts(parser, "--clients", CLIENTS)
    options.bursts(parser, rounds=3)
    arguments = parser.parse_args()
    rounds, seconds = arguments.rounds, arguments.seconds
    rows = []
    devices: list[Device] = [arguments.device] if arguments.device else ["cuda", "tensorrt"]
    for device in devices:
        reason = None if device == "cpu" else obstacle(device)
        if reason:
            say(f"not measured: there is no device {device}, because {reason}")
            continue
        found = [
            *number_rows(arguments.model, device),
            *graph_rows(arguments.model, device, arguments.batches, rounds, seconds),
            *server_rows(arguments.model, device, arguments.clients, rounds, seconds),
        ]
        rows += [{"device": device, **row} for row in found]
    if arguments.device == "cpu":
        say(table({"rows": rows}))
    elif rows:
        say(f"{write('gpu', rows, rounds=rounds, seconds=seconds, settings=SETTINGS)} written")
    wrong = [row for row in rows if row["case"] == "numbers" and row["largest"] > LARGEST[row["precision"]]]
    if wrong:
        sys.exit("the numbers are not those of the CPU: " + "; ".join(map(str, wrong)))


def precisions(folder: Path) -> list[Precision]:
    """Those of a GPU that the folder has."""
    files = load_card(folder).files
    return ["float32", "float16"] if GRAPH_FILES["float16"] in files else ["float32"]


def number_rows(folder: Path, device: Device) -> list[dict[str, Any]]:
    """largest: difference to the CPU's float32, as a part of an embedding's largest number; cosine: the
    least. Of every fixture, alone, and of all their first windows in one batch."""
    reference = Model.load(folder, device="cpu", precision="float32")
    rate_hz = reference.card.sample_rate
    logmels = [reference.logmel(decode(sound, sample_rate=rate_hz).samples) for _, sound in fixtures()]
    windows = [logmel[:, : reference.card.windows.frames] for logmel in logmels]
    expected = vectors(reference, logmels, windows)
    rows = []
    for precision in precisions(folder):
        found = vectors(Model.load(folder, device=device, precision=precision), logmels, windows)
        scale = np.abs(expected).max(axis=1, keepdims=True)
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (found * expected).sum(axis=1) / norms
        row = {
            "case": "numbers",
            "precision": precision,
            "embeddings": len(found),
            "largest": float((np.abs(found - expected) / scale).max()),
            "cosine": float(cosines.min()),
        }
        rows.append(row)
        say(f"{device} {precision}: {row['largest']:.1e} from the CPU's numbers at most")
    return rows


def vectors(model: Model, logmels: Sequence[Array], windows: Sequence[Array]) -> Array:
    """(2 n, D): every clip, however long, and then every first window, all in one batch."""
    whole = [embed(model.run, model.card, [logmel]).vector for logmel in logmels]
    together = [output.sum / output.count + output.max for output in model.run(windows)]
    return np.stack([*whole, *together]).astype(np.float64)


def graph_rows(
    folder: Path, device: Device, batches: Sequence[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    models = {each: Model.load(folder, device=device, precision=each) for each in precisions(folder)}
    rates: dict[tuple[float, int, str], list[float]] = defaultdict(list)
    for clip_s, batch in product(SECONDS, batches):
        for model in models.values():
            clips_per_s(model, clip_s, batch, 0.0)  # the first run of a shape takes longer
        for _, (precision, model) in product(range(rounds), models.items()):
            rates[clip_s, batch, precision].append(clips_per_s(model, clip_s, batch, seconds))
        found = ", ".join(f"{each} {rates[clip_s, batch, each][-1]:.0f}" for each in models)
        say(f"{batch} clips of {clip_s:g} s at a time: {found} per second")
    return [
        {
            "case": "graph",
            "precision": precision,
            "clip_s": clip_s,
            "batch": batch,
            "per_s": middle(found),
            "ratio": middle([a / b for a, b in zip(found, rates[clip_s, batch, "float32"], strict=True)]),
        }
        for (clip_s, batch, precision), found in rates.items()
    ]


def clips_per_s(model: Model, clip_s: float, batch: int, seconds: float) -> float:
    """Over at least one batch."""
    sound = decode(WORD, sample_rate=model.card.sample_rate).samples
    n = int(clip_s * model.card.sample_rate)
    logmel = model.logmel(np.resize(sound, n))[:, : model.card.windows.frames]
    done, started = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - started < seconds:
        model.run([logmel] * batch)
        done += batch
    return done / (time.perf_counter() - started)


def server_rows(
    folder: Path, device: Device, clients: Sequence[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """One server after the other: two would share the device."""
    rows = []
    request = uploads.raw("/embed?encoding=base64", word())
    for precision in precisions(folder):
        bursts: dict[int, list[Burst]] = defaultdict(list)
        with running(on_device(viola(folder, precision), device)) as server:
            uploads.answer_to(server.port, request)
            burst(server.port, request, clients=max(clients), seconds=seconds)
            for _, count in product(range(rounds), clients):
                one = burst(server.port, request, clients=count, seconds=seconds, cpu_s=server.cpu_s)
                bursts[count].append(one)
        rows += [server_row(precision, count, found) for count, found in bursts.items()]
        say(f"server in {precision}: {rows[-1]['per_s']['median']:.0f} requests/s, {clients[-1]} clients")
    return rows


def on_device(server: Server, device: Device) -> Server:
    return dataclasses.replace(server, environment=server.environment | SETTINGS | {"VIOLA_DEVICE": device})


def server_row(precision: str, clients: int, bursts: Sequence[Burst]) -> dict[str, Any]:
    latencies_ms = sorted(1000 * latency_s for one in bursts for latency_s in one.latencies_s)
    return {
        "case": "server",
        "precision": precision,
        "clients": clients,
        "per_s": middle([one.per_s for one in bursts]),
        "p50_ms": round(latencies_ms[len(latencies_ms) // 2], 2),
        "p95_ms": round(latencies_ms[int(0.95 * len(latencies_ms))], 2),
        "cpu_ms": middle([one.cpu_ms for one in bursts]),
        "requests": len(latencies_ms),
        "failures": sum(one.failures.total() for one in bursts),
    }


def table(result: Result) -> str:
    """For README.md."""
    graph = [_graph_cells(row) for row in result["rows"] if row["case"] == "graph"]
    server = [_server_cells(row) for row in result["rows"] if row["case"] == "server"]
    numbers = [_number_cells(row) for row in result["rows"] if row["case"] == "numbers"]
    return "\n\n".join(
        [
            "Its numbers beside the CPU's in float32:",
            markdown(["device", "precision", "embeddings", "largest difference", "least cosine"], numbers),
            "The network alone:",
            markdown(["device", "clip", "batch", "precision", "clips/s", "× float32"], graph),
            "The server, one-second clips, raw body, base64 answer:",
            markdown(
                ["device", "clients", "precision", "requests/s", "p50 / p95 ms", "CPU ms", "failures"], server
            ),
        ]
    )


def _number_cells(row: dict[str, Any]) -> list[object]:
    distance = f"{row['largest']:.1e}"
    return [row["device"], row["precision"], row["embeddings"], distance, f"{row['cosine']:.6f}"]


def _graph_cells(row: dict[str, Any]) -> list[object]:
    return [
        row["device"],
        f"{row['clip_s']:g} s",
        row["batch"],
        row["precision"],
        f"{row['per_s']['median']:.0f}",
        f"**{span(row['ratio'])}**",
    ]


def _server_cells(row: dict[str, Any]) -> list[object]:
    return [
        row["device"],
        row["clients"],
        row["precision"],
        f"{row['per_s']['median']:.0f}",
        f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}",
        f"{row['cpu_ms']['median']:.2f}",
        f"{row['failures']} of {row['requests']}",
    ]


if __name__ == "__main__":
    main()
