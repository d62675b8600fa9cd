"""Latency of admitted requests while more come than can be served: does it stay within the queue's limit?

First twice as many clients as cores ask without a pause: the rate of their answers is the capacity. Then
clips come at fixed times, whether those before are answered or not, at half of the capacity up to four times
as much, with each of LIMITS_S as VIOLA_MAX_QUEUE_S. The sound is half a minute of Opus.

Out: results/overload.json.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import options
from benchmarks.harness.clients import burst
from benchmarks.harness.connection import Gone, ask, post
from benchmarks.harness.results import Result, markdown, percentiles_ms, say, write
from benchmarks.harness.servers import Running, running, viola
from benchmarks.harness.sounds import BIRDS
from service.inference.threads import usable_cores

LOADS = (0.5, 1.0, 2.0, 4.0)  # of the capacity
LIMITS_S = ("1", "5", "0.25")  # of VIOLA_MAX_QUEUE_S, the default first
SETTLE_S = 1.0


@dataclass
class Outcome:
    """Seconds from when each request was due, by what came: an answer, a refusal, or neither."""

    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    failures: int = 0
    seconds: float = 0.0  # from the first request to the last answer


def main() -> None:
    parser = options.command("overload", __doc__)
    options.model(parser)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    arguments = parser.parse_args()
    request = post("/embed?encoding=base64", BIRDS.read_bytes(), content_type="audio/ogg")
    rows = []
    with running(viola(arguments.model, "auto")) as server:
        per_s = capacity(server, request)
    for limit_s in LIMITS_S:
        with running(viola(arguments.model, "auto", max_queue_s=limit_s)) as server:
            burst(server.port, request, clients=1, seconds=SETTLE_S)  # to warm up
            for load in LOADS:
                outcome = asyncio.run(offer(server.port, request, load * per_s, arguments.seconds))
                rows.append({"limit_s": float(limit_s), "load": load, **row(outcome)})
                say(f"queue of {limit_s} s, {load:g} × {per_s:.0f}/s: {rows[-1]}")
                time.sleep(SETTLE_S)
    say(f"{write('overload', rows, seconds=arguments.seconds, capacity_per_s=round(per_s, 1))} written")


def capacity(server: Running, request: bytes) -> float:
    """Requests per second, the second time: the first warms up."""
    for _ in range(2):
        found = burst(server.port, request, clients=2 * usable_cores()[0], seconds=3.0)
    return found.per_s


async def offer(port: int, request: bytes, per_s: float, seconds: float) -> Outcome:
    """`per_s` requests a second, each on a connection of its own."""
    outcome = Outcome()
    first = time.perf_counter()
    due = (first + number / per_s for number in range(round(seconds * per_s)))
    await asyncio.gather(*(_send(port, request, at, outcome) for at in due))
    outcome.seconds = time.perf_counter() - first
    return outcome


async def _send(port: int, request: bytes, due: float, outcome: Outcome) -> None:
    await asyncio.sleep(due - time.perf_counter())
    with suppress(Gone, OSError, TimeoutError):
        status = (await ask(port, request)).status
        if status in (200, 503):
            ends = outcome.answered_s if status == 200 else outcome.refused_s
            ends.append(time.perf_counter() - due)
            return
    outcome.failures += 1


def row(outcome: Outcome) -> dict[str, Any]:
    return {
        "answered": len(outcome.answered_s),
        "refused": len(outcome.refused_s),
        "failures": outcome.failures,
        "answered_per_s": round(len(outcome.answered_s) / outcome.seconds, 2),
        "answered_ms": percentiles(outcome.answered_s),
        "refused_ms": percentiles(outcome.refused_s),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """In milliseconds; None of fewer than two."""
    found = [round(ms, 1) for ms in percentiles_ms(seconds)]
    return dict(zip(("p50", "p95", "p99"), found, strict=True)) if found else None


def table(result: Result) -> str:
    """For README.md."""
    rows = []
    for each in result["rows"]:
        refused = each["refused"] / max(1, each["answered"] + each["refused"])
        rows.append(
            [
                f"{each['limit_s']:g}",
                f"{each['load']:g} ×",
                f"{each['answered_per_s']:.0f}",
                f"{refused:.0%}",
                _spelt(each["answered_ms"]),
                _spelt(each["refused_ms"]),
                each["failures"],
            ]
        )
    header = ["VIOLA_MAX_QUEUE_S", "offered", "answered/s", "refused", "answers: p50 / p95 / p99 ms"]
    return markdown([*header, "refusals: p50 / p95 / p99 ms", "failures"], rows)


def _spelt(found: dict[str, float] | None) -> str:
    return " / ".join(f"{found[name]:.0f}" for name in ("p50", "p95", "p99")) if found else ""


if __name__ == "__main__":
    main()
