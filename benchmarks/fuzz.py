"""`python -m benchmarks.fuzz --files 10000`: damaged audio files in, a count of the server's answers out.

Every fixture is damaged in one of the ways of soak/damaged.py and sent to a server in a process of its own,
so that a decoder that crashes is seen. Allowed are 200 and the 4xx that the docs list; all else is printed
with the number of its file, which `damaged(number)` makes again.
"""

import collections
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

from benchmarks.harness import options
from benchmarks.harness.clients import HOST
from benchmarks.harness.results import say
from benchmarks.harness.servers import ROOT, memory_kb, running, viola
from benchmarks.soak.damaged import damaged

ALLOWED = {"200", "audio_missing", "audio_too_long", "audio_too_short", "audio_unreadable", "body_too_large"}
MOST_S = 30.0  # for one file; a decoder that hangs is a fault, too


@dataclass
class Report:
    """What came of the files. faults: (number of the file, what happened)."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: int = -1
    peak_mb: float = 0.0
    seconds: float = 0.0


def run(n_files: int, *, seed: int = 0, first: int = 0, clients: int = 2) -> Report:
    """Send the files and look at what comes back. Ends early when the server is gone."""
    report, started = Report(), time.monotonic()
    with (
        running(viola(ROOT / "models" / "byola", "auto")) as server,
        httpx.Client(base_url=f"http://{HOST}:{server.port}", timeout=MOST_S) as client,
    ):

        def send(number: int) -> None:
            if server.process.poll() is not None:
                return
            began = time.monotonic()
            try:
                answer = client.post(
                    "/embed", content=damaged(number, seed), headers={"Content-Type": "audio/x"}
                )
                what = "200" if answer.status_code == 200 else str(answer.json()["error"])
            except httpx.HTTPError as error:
                what = f"{type(error).__name__} (exit code {server.process.poll()})"
            took = time.monotonic() - began
            report.counts[what] += 1
            if report.counts.total() % 1000 == 0:
                say(f"{report.counts.total()} files: {dict(report.counts.most_common())}")
            if what not in ALLOWED:
                report.faults.append((number, what))
            if took > report.slowest_s:
                report.slowest_s, report.slowest = took, number

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(send, range(first, first + n_files)))
        report.peak_mb = memory_kb(server.pid, "VmHWM") / 1024
    report.seconds = time.monotonic() - started
    return report


def main() -> int:
    parser = options.command("fuzz", __doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    arguments = parser.parse_args()
    report = run(arguments.files, seed=arguments.seed, first=arguments.first)
    sys.stdout.write(
        f"{report.counts.total()} files in {report.seconds:.0f} s: {dict(report.counts.most_common())}\n"
        f"slowest: file {report.slowest}, {report.slowest_s:.2f} s; server's peak: {report.peak_mb:.0f} MB\n"
        + "".join(f"file {number}: {what}\n" for number, what in report.faults)
    )
    return 1 if report.faults or report.counts.total() < arguments.files else 0


if __name__ == "__main__":
    sys.exit(main())
