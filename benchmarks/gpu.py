"""The network and the server on a CUDA device: clips per second by batch size, length and precision.

`graph`: full batches through the model, over and over, log-mels ready. `server`: one-second clips over HTTP
from many clients, as benchmarks/load.py sends them. Precisions take turns in each round. Where there is no
CUDA device it says why, measures nothing and ends well.

Out: results/gpu.json. `--device cpu` tries the script out without a GPU; its result is not kept.
"""

import argparse
import dataclasses
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import uploads
from benchmarks.clients import Burst, burst
from benchmarks.results import Result, markdown, middle, say, span, write
from benchmarks.servers import ROOT, Server, running, viola
from service.audio import decode
from service.model import GRAPH_FILES, Model, Precision, load_card
from service.session import Device, obstacle

SECONDS = (1.0, 10.0)  # of a clip: a short one, and a full window of the default model
BATCHES = (1, 8, 32, 128)
CLIENTS = (1, 32, 128)
# What a GPU is worth: larger batches than a CPU's.
SETTINGS = {"VIOLA_MAX_BATCH_ITEMS": "128", "VIOLA_MAX_BATCH_FRAMES": "32768"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "byola", help="a model folder")
    parser.add_argument("--device", choices=["cuda", "tensorrt", "cpu"], default="cuda")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each burst")
    arguments = parser.parse_args()
    device: Device = arguments.device
    reason = None if device == "cpu" else obstacle(device)
    if reason:
        say(f"nothing was measured: there is no device {device}, because {reason}")
        return
    rounds, seconds = arguments.rounds, arguments.seconds
    batches = [int(batch) for batch in arguments.batches.split(",")]
    clients = [int(count) for count in arguments.clients.split(",")]
    rows = [
        *graph_rows(arguments.model, device, batches, rounds, seconds),
        *server_rows(arguments.model, device, clients, rounds, seconds),
    ]
    if device == "cpu":
        say(table({"rows": rows}))
        return
    say(f"{write('gpu', rows, device=device, rounds=rounds, seconds=seconds, settings=SETTINGS)} written")


def precisions(folder: Path) -> list[Precision]:
    """Those of a GPU that the folder has."""
    files = load_card(folder).files
    return ["float32", "float16"] if GRAPH_FILES["float16"] in files else ["float32"]


def graph_rows(
    folder: Path, device: Device, batches: Sequence[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    models = {each: Model.load(folder, device=device, precision=each) for each in precisions(folder)}
    rates: dict[tuple[float, int, str], list[float]] = defaultdict(list)
    for clip_s, batch in product(SECONDS, batches):
        for model in models.values():
            clips_per_s(model, clip_s, batch, 0.0)  # once, for whatever the first run of a shape takes
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
    sound = decode(uploads.CLIP, sample_rate=model.card.sample_rate).samples
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
    request = uploads.raw("/embed?encoding=base64", uploads.CLIP.read_bytes())
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
    return "\n\n".join(
        [
            "The network alone:",
            markdown(["clip", "batch", "precision", "clips/s", "× float32"], graph),
            "The server, one-second clips, raw body, base64 answer:",
            markdown(["clients", "precision", "requests/s", "p50 / p95 ms", "CPU ms", "failures"], server),
        ]
    )


def _graph_cells(row: dict[str, Any]) -> list[object]:
    return [
        f"{row['clip_s']:g} s",
        row["batch"],
        row["precision"],
        f"{row['per_s']['median']:.0f}",
        f"**{span(row['ratio'])}**",
    ]


def _server_cells(row: dict[str, Any]) -> list[object]:
    return [
        row["clients"],
        row["precision"],
        f"{row['per_s']['median']:.0f}",
        f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}",
        f"{row['cpu_ms']['median']:.2f}",
        f"{row['failures']} of {row['requests']}",
    ]


if __name__ == "__main__":
    main()
