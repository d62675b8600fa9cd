"""Latency of one-second clips at a modest rate, with and without an hour of sound beside them, in turns.

The clips come at fixed times, whether the one before is answered or not: clients that waited would ask a slow
server less often, and hide its slowness. Beside them one client uploads an hour of MP3, again and again.

Out: results/fairness.json.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import options, uploads
from benchmarks.harness.connection import Gone, ask, post
from benchmarks.harness.results import Result, markdown, middle, percentiles_ms, say, span, write
from benchmarks.harness.servers import Running, running, viola
from benchmarks.harness.sounds import word
from benchmarks.long_audio import HOUR_S, an_hour

ALONE, BESIDE = "alone", "beside an hour-long upload"
PERCENTILES = ("p50", "p95", "p99")
SETTLE_S = 1.0  # after an upload was given up


@dataclass
class Round:
    """latencies_s: of clips, from when they were due
    failures: what came instead of a 200
    uploads: hours of sound answered meanwhile"""

    latencies_s: list[float] = field(default_factory=list)
    failures: int = 0
    uploads: int = 0

    def latency_ms(self, percentile: str) -> float:
        """One of PERCENTILES; infinite where nothing was answered."""
        found = dict(zip(PERCENTILES, percentiles_ms(self.latencies_s), strict=False))
        return found.get(percentile, float("inf"))


def main() -> None:
    parser = options.command("fairness", __doc__)
    options.model(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each half of a round")
    parser.add_argument("--per-s", type=float, default=20.0, help="clips per second")
    parser.add_argument("--upload-s", type=int, default=HOUR_S, help="of sound in the upload, for a trial")
    arguments = parser.parse_args()
    hour = an_hour(arguments.upload_s)
    rounds = measure(arguments.model, hour, arguments.rounds, arguments.seconds, arguments.per_s)
    rows = [row(name, rounds[name]) for name in (ALONE, BESIDE)]
    path = write(
        "fairness",
        rows,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        per_s=arguments.per_s,
        upload_s=arguments.upload_s,
        added_ms=added_ms(rounds),
    )
    say(f"{path} written")


def measure(model: Path, long: Path, rounds: int, seconds: float, per_s: float) -> dict[str, list[Round]]:
    """long: the file that is uploaded beside the clips."""
    clip = uploads.raw("/embed?encoding=base64", word())
    hour = post("/embed?encoding=base64", long.read_bytes(), content_type="audio/mpeg")
    found: dict[str, list[Round]] = {ALONE: [], BESIDE: []}
    with running(viola(model, "auto")) as server:
        asyncio.run(_round(server, clip, None, 2.0, per_s))  # to warm up
        for number in range(rounds):
            for name, beside in ((ALONE, None), (BESIDE, hour)):
                one = asyncio.run(_round(server, clip, beside, seconds, per_s))
                found[name].append(one)
                say(
                    f"{number + 1}/{rounds}, {name}: p95 {one.latency_ms('p95'):.1f} ms, "
                    f"{one.uploads} uploads answered, {one.failures} failures"
                )
                time.sleep(SETTLE_S)
    return found


async def _round(server: Running, clip: bytes, beside: bytes | None, seconds: float, per_s: float) -> Round:
    result = Round()
    uploading = asyncio.create_task(_upload(server.port, beside, result)) if beside else None
    if uploading:
        await asyncio.sleep(SETTLE_S)  # until the server is at work on it
    first = time.perf_counter()
    due = (first + number / per_s for number in range(round(seconds * per_s)))
    await asyncio.gather(*(_send(server.port, clip, at, result) for at in due))
    if uploading:
        uploading.cancel()
        await asyncio.gather(uploading, return_exceptions=True)
    return result


async def _upload(port: int, request: bytes, result: Round) -> None:
    """Again and again until it is cancelled, on a connection each."""
    while True:
        if (await ask(port, request, timeout_s=600)).status != 200:
            result.failures += 1
        result.uploads += 1


async def _send(port: int, request: bytes, due: float, result: Round) -> None:
    await asyncio.sleep(due - time.perf_counter())
    with suppress(Gone, OSError, TimeoutError):
        if (await ask(port, request)).status == 200:
            result.latencies_s.append(time.perf_counter() - due)
            return
    result.failures += 1


def row(name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Percentiles are those of each round, in milliseconds."""
    return {
        "clips": name,
        "answers": sum(len(one.latencies_s) for one in rounds),
        "failures": sum(one.failures for one in rounds),
        "uploads": sum(one.uploads for one in rounds),
        **{f"{name}_ms": middle([one.latency_ms(name) for one in rounds]) for name in PERCENTILES},
    }


def added_ms(rounds: dict[str, list[Round]]) -> dict[str, dict[str, float]]:
    """What the upload adds to each percentile, round by round."""
    pairs = list(zip(rounds[ALONE], rounds[BESIDE], strict=True))
    return {
        name: middle([beside.latency_ms(name) - alone.latency_ms(name) for alone, beside in pairs])
        for name in PERCENTILES
    }


def table(result: Result) -> str:
    """For README.md."""
    rows = [
        [
            each["clips"],
            *(span(each[f"{name}_ms"], 1) for name in PERCENTILES),
            f"{each['failures']} of {each['answers'] + each['failures']}",
        ]
        for each in result["rows"]
    ]
    rows.append(["*difference*", *(span(result["added_ms"][name], 1) for name in PERCENTILES), ""])
    return markdown(["one-second clips", "p50 ms", "p95 ms", "p99 ms", "failures"], rows)


if __name__ == "__main__":
    main()
