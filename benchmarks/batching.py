"""When a free worker takes its next batch: at once, held for clips that are being decoded, or after a delay.

One server for each policy, all up at the same time; bursts at 1, 8 and 32 clients take turns, because a
machine's speed drifts: what counts is the ratio to GREEDY within one round. The clip and the clients are
those of `load.py`.

Out: results/batching.json.
"""

import dataclasses
import http.client
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import options, uploads
from benchmarks.harness.clients import HOST, Burst, burst
from benchmarks.harness.results import Result, markdown, middle, say, span, write
from benchmarks.harness.servers import Running, Server, running, viola
from benchmarks.harness.sounds import word

GREEDY = "greedy"
POLICIES = {
    GREEDY: {"VIOLA_HOLD_MS": "0"},
    "held, at most 2 ms": {"VIOLA_HOLD_MS": "2"},
    "held, at most 5 ms": {"VIOLA_HOLD_MS": "5"},
    "held, at most 20 ms": {"VIOLA_HOLD_MS": "20"},
    "fixed delay of 5 ms": {"VIOLA_MAX_WAIT_MS": "5"},
}


def main() -> None:
    parser = options.command("batching", __doc__)
    options.model(parser)
    parser.add_argument("--precision", default="int8")
    options.counts(parser, "--clients", (1, 8, 32))
    options.bursts(parser, rounds=7)
    arguments = parser.parse_args()
    rounds, seconds = arguments.rounds, arguments.seconds
    rows = measure(arguments.model, arguments.precision, arguments.clients, rounds, seconds)
    path = write("batching", rows, rounds=rounds, seconds=seconds, graph=arguments.precision)
    say(f"{path} written")


def measure(
    model: Path, precision: str, clients: Sequence[int], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """One row for each policy and number of clients."""
    request = uploads.raw("/embed?encoding=base64", word())
    bursts: dict[tuple[str, int], list[Burst]] = defaultdict(list)
    batches: dict[tuple[str, int], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        up = {name: stack.enter_context(running(server(model, precision, name))) for name in POLICIES}
        for each in up.values():
            uploads.answer_to(each.port, request)
            burst(each.port, request, clients=max(clients), seconds=seconds)
        for number, count, name in product(range(rounds), clients, POLICIES):
            before = batch_totals(up[name])
            one = burst(up[name].port, request, clients=count, seconds=seconds, cpu_s=up[name].cpu_s)
            after = batch_totals(up[name])
            bursts[name, count].append(one)
            batches[name, count].append((after[0] - before[0]) / (after[1] - before[1]))
            say(f"{number + 1}/{rounds}, {count} clients, {name}: {one.per_s:.0f} requests/s")
    return [
        row(name, count, bursts[name, count], bursts[GREEDY, count], batches[name, count])
        for count, name in product(clients, POLICIES)
    ]


def server(model: Path, precision: str, policy: str) -> Server:
    served = viola(model, precision)
    return dataclasses.replace(
        served, name=f"viola {policy}", environment=served.environment | POLICIES[policy]
    )


def batch_totals(running: Running) -> tuple[float, float]:
    """(clips, batches) so far, from /metrics."""
    connection = http.client.HTTPConnection(HOST, running.port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    finally:
        connection.close()
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return float(values["viola_batch_size_sum"]), float(values["viola_batch_size_count"])


def row(
    name: str, clients: int, bursts: list[Burst], greedy: list[Burst], batches: list[float]
) -> dict[str, Any]:
    latencies_ms = [1000 * latency_s for one in bursts for latency_s in one.latencies_s]
    p50, p95 = np.percentile(latencies_ms, [50, 95]).tolist()
    return {
        "policy": name,
        "clients": clients,
        "per_s": middle([one.per_s for one in bursts]),
        "ratio": middle([one.per_s / other.per_s for one, other in zip(bursts, greedy, strict=True)]),
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "cpu_ms": middle([one.cpu_ms for one in bursts]),
        "batch": middle(batches),
        "requests": len(latencies_ms),
        "failures": sum(one.failures.total() for one in bursts),
    }


def table(result: Result) -> str:
    """For README.md."""
    header = ["clients", "policy", "requests/s", f"× {GREEDY}", "p50 / p95 ms", "CPU ms", "clips in a batch"]
    return markdown([*header, "failures"], [_cells(row) for row in result["rows"]])


def _cells(row: dict[str, Any]) -> list[object]:
    return [
        row["clients"],
        row["policy"],
        f"{row['per_s']['median']:.0f}",
        f"**{span(row['ratio'])}**",
        f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}",
        f"{row['cpu_ms']['median']:.2f}",
        f"{row['batch']['median']:.1f}",
        f"{row['failures']} of {row['requests']}",
    ]


if __name__ == "__main__":
    main()
