"""Requests per second and latency at 1, 8, 32 and 64 clients: viola beside other servers of the same network.

All servers are up at the same time and get bursts in turn, the idle ones cost nothing; a machine's speed
drifts, so that only ratios within one round count: each row's rate over that of REFERENCE.

Out: results/load.json. A new peer is one more entry in `entries`.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks import uploads
from benchmarks.clients import Burst, burst
from benchmarks.results import Result, markdown, middle, say, span, write
from benchmarks.servers import ROOT, Running, Server, running, viola
from service.model import GRAPH_FILES, load_card

REFERENCE = "viola float32"
IDLE_S = 2.0  # how long idle CPU is watched
EMBEDDING_SIZE = 3072  # numbers; as base64 it is a string of more characters


@dataclass(frozen=True)
class Entry:
    """One row of the table: a server and what it is sent. path, body: see benchmarks/uploads.py."""

    name: str
    server: Server
    path: str = "/embed"
    body: uploads.Body = uploads.multipart

    def request(self, clip: bytes) -> bytes:
        return self.body(self.path, clip)


def entries(model: Path) -> list[Entry]:
    """The reference first. Every server answers a multipart upload with a JSON list, viola also otherwise."""
    float32, int8 = viola(model, "float32"), viola(model, "int8")
    found = [Entry(REFERENCE, float32)]
    if GRAPH_FILES["int8"] in load_card(model).files:
        found.append(Entry("viola int8", int8))
        found.append(Entry("viola int8, raw body, base64", int8, "/embed?encoding=base64", uploads.raw))
    return [
        *found,
        Entry("FastAPI + PyTorch", plain_fastapi("plain FastAPI")),
        Entry(
            "FastAPI + PyTorch, 1 thread a call", plain_fastapi("plain FastAPI 1 thread", TORCH_THREADS="1")
        ),
    ]


def plain_fastapi(name: str, **environment: str) -> Server:
    app = "benchmarks.peers.plain_fastapi:app"
    uvicorn = (sys.executable, "-m", "uvicorn", app, "--port", "{port}", "--no-access-log")
    return Server(name, uvicorn, environment, ready="/health")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "byola", help="a model folder")
    parser.add_argument("--clients", default="1,8,32,64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each burst")
    arguments = parser.parse_args()
    clients = [int(count) for count in arguments.clients.split(",")]
    rows = measure(entries(arguments.model), clients, arguments.rounds, arguments.seconds)
    path = write("load", rows, rounds=arguments.rounds, seconds=arguments.seconds, reference=REFERENCE)
    say(f"{path} written")


def measure(
    compared: Sequence[Entry], clients: Sequence[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """One row for each entry and number of clients."""
    clip = uploads.CLIP.read_bytes()
    posts = {entry.name: entry.request(clip) for entry in compared}
    bursts: dict[tuple[str, int], list[Burst]] = defaultdict(list)
    with ExitStack() as stack:
        up = {server.name: stack.enter_context(running(server)) for server in servers_of(compared)}
        for entry in compared:
            check(up[entry.server.name], posts[entry.name])
            burst(up[entry.server.name].port, posts[entry.name], clients=max(clients), seconds=seconds)
        for number, count, entry in product(range(rounds), clients, compared):
            server = up[entry.server.name]
            one = burst(server.port, posts[entry.name], clients=count, seconds=seconds, cpu_s=server.cpu_s)
            bursts[entry.name, count].append(one)
            say(f"{number + 1}/{rounds}, {count} clients, {entry.name}: {one.per_s:.0f} requests/s")
        idle = {name: idle_share(server) for name, server in up.items()}
        memory = {name: server.memory_mb() for name, server in up.items()}
    return [
        row(entry, count, bursts[entry.name, count], bursts[REFERENCE, count])
        | {"idle_cpu": round(idle[entry.server.name], 3), "memory_mb": round(memory[entry.server.name])}
        for entry, count in product(compared, clients)
    ]


def servers_of(compared: Sequence[Entry]) -> list[Server]:
    """Each once: entries may share one."""
    return list({entry.server.name: entry.server for entry in compared}.values())


def check(server: Running, request: bytes) -> None:
    answer = orjson.loads(uploads.answer_to(server.port, request))
    assert len(answer["embedding"]) >= EMBEDDING_SIZE, f"{server.server.name} answers with another model"


def idle_share(server: Running) -> float:
    """Of one core, while nobody asks for anything."""
    before = server.cpu_s()
    time.sleep(IDLE_S)
    return (server.cpu_s() - before) / IDLE_S


def row(entry: Entry, clients: int, bursts: list[Burst], reference: list[Burst]) -> dict[str, Any]:
    latencies_ms = [1000 * latency_s for one in bursts for latency_s in one.latencies_s]
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99]).tolist()
    return {
        "entry": entry.name,
        "clients": clients,
        "per_s": middle([one.per_s for one in bursts]),
        "ratio": middle([one.per_s / other.per_s for one, other in zip(bursts, reference, strict=True)]),
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "p99_ms": round(p99, 2),
        "cpu_ms": middle([one.cpu_ms for one in bursts]),
        "requests": len(latencies_ms),
        "failures": sum(one.failures.total() for one in bursts),
    }


def table(result: Result) -> str:
    """For README.md."""
    header = ["clients", "server", "requests/s", f"× {result['reference']}", "p50 / p95 / p99 ms", "CPU ms"]
    rows = sorted(result["rows"], key=lambda row: int(row["clients"]))
    still = {row["entry"]: [row["entry"], f"{row['idle_cpu']:.0%}", row["memory_mb"]] for row in rows}
    return "\n\n".join(
        [
            markdown([*header, "failures"], [_cells(row) for row in rows]),
            "At rest after the load:",
            markdown(["server", "CPU of one core", "memory (PSS) MB"], list(still.values())),
        ]
    )


def _cells(row: dict[str, Any]) -> list[object]:
    return [
        row["clients"],
        row["entry"],
        f"{row['per_s']['median']:.0f}",
        f"**{span(row['ratio'])}**",
        f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f} / {row['p99_ms']:.1f}",
        f"{row['cpu_ms']['median']:.2f}",
        f"{row['failures']} of {row['requests']}",
    ]


if __name__ == "__main__":
    main()
