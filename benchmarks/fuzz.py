"""`python -m benchmarks.fuzz --files 10000`: damaged audio files in, a count of the server's answers out.

Every fixture is damaged in one of the ways below, seeded, and sent to a server of its own process, so that a
decoder that crashes is seen. Allowed are 200 and the 4xx that the docs list; all else is printed with the
number of its file, which `damaged(number)` makes again.
"""

import argparse
import collections
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
ALLOWED = {"200", "audio_missing", "audio_too_long", "audio_too_short", "audio_unreadable", "body_too_large"}
HEAD = 256  # bytes in which most headers end
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


def damaged(number: int, seed: int = 0) -> bytes:
    """File `number` of an endless row."""
    random = np.random.default_rng((seed, number))
    clips = fixtures()
    clip = clips[number % len(clips)]
    way = WAYS[int(random.integers(len(WAYS)))]
    return way(clip, clips[int(random.integers(len(clips)))], random)


@cache
def fixtures() -> list[bytes]:
    paths = [path for path in sorted(FIXTURES.rglob("*")) if path.suffix not in (".md", ".csv", "")]
    return [content for path in paths if (content := path.read_bytes())]


def _flipped(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """A few bytes, anywhere."""
    return _with_bytes(clip, random.integers(len(clip), size=random.integers(1, 50)), random)


def _flipped_in_its_head(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    return _with_bytes(clip, random.integers(min(HEAD, len(clip)), size=random.integers(1, 8)), random)


def _cut(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    return clip[: int(random.integers(len(clip)))]


def _without_a_piece(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    start, end = np.sort(random.integers(len(clip), size=2))
    return clip[:start] + clip[end:]


def _spliced(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """The start of one file and the end of another."""
    return clip[: int(random.integers(len(clip)))] + other[int(random.integers(len(other))) :]


def _with_the_head_of_another(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    n = int(random.integers(4, HEAD))
    return other[:n] + clip[n:]


def _with_extreme_numbers(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """32 bits of the head, where sizes and rates stand, become 0, the greatest or a negative number."""
    at = int(random.integers(min(HEAD, len(clip))))
    value = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"][int(random.integers(4))]
    return clip[:at] + value + clip[at + 4 :]


def _with_noise(clip: bytes, other: bytes, random: np.random.Generator) -> bytes:
    at, n = int(random.integers(len(clip))), int(random.integers(1, 2000))
    return clip[:at] + random.bytes(n) + clip[at:]


WAYS: list[Callable[[bytes, bytes, np.random.Generator], bytes]] = [
    _flipped,
    _flipped_in_its_head,
    _cut,
    _without_a_piece,
    _spliced,
    _with_the_head_of_another,
    _with_extreme_numbers,
    _with_noise,
]


def _with_bytes(clip: bytes, places: np.ndarray, random: np.random.Generator) -> bytes:
    changed = bytearray(clip)
    for at in places:
        changed[at] = int(random.integers(256))
    return bytes(changed)


@contextmanager
def serving() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server in a process of its own: its URL, and the process."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = {"VIOLA_HOST": "127.0.0.1", "VIOLA_PORT": str(port), "VIOLA_ACCESS_LOG": "false"}
    process = subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=os.environ | settings)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                if process.poll() is not None or httpx.get(f"{url}/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def run(n_files: int, *, seed: int = 0, first: int = 0, clients: int = 2) -> Report:
    """Send the files and look at what comes back. Ends early when the server is gone."""
    report, started = Report(), time.monotonic()
    with serving() as (url, process), httpx.Client(base_url=url, timeout=MOST_S) as client:

        def send(number: int) -> None:
            if process.poll() is not None:
                return
            began = time.monotonic()
            try:
                answer = client.post(
                    "/embed", content=damaged(number, seed), headers={"Content-Type": "audio/x"}
                )
                what = "200" if answer.status_code == 200 else str(answer.json()["error"])
            except httpx.HTTPError as error:
                what = f"{type(error).__name__} (exit code {process.poll()})"
            took = time.monotonic() - began
            report.counts[what] += 1
            if report.counts.total() % 1000 == 0:
                sys.stderr.write(f"{report.counts.total()} files: {dict(report.counts.most_common())}\n")
            if what not in ALLOWED:
                report.faults.append((number, what))
            if took > report.slowest_s:
                report.slowest_s, report.slowest = took, number

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(send, range(first, first + n_files)))
        report.peak_mb = _peak_mb(process.pid)
    report.seconds = time.monotonic() - started
    return report


def _peak_mb(process_id: int) -> float:
    """The most memory that a process ever had, 0 where the system does not tell."""
    status = Path(f"/proc/{process_id}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    options = parser.parse_args()
    report = run(options.files, seed=options.seed, first=options.first)
    sys.stdout.write(
        f"{report.counts.total()} files in {report.seconds:.0f} s: {dict(report.counts.most_common())}\n"
        f"slowest: file {report.slowest}, {report.slowest_s:.2f} s; server's peak: {report.peak_mb:.0f} MB\n"
        + "".join(f"file {number}: {what}\n" for number, what in report.faults)
    )
    return 1 if report.faults or report.counts.total() < options.files else 0


if __name__ == "__main__":
    sys.exit(main())
