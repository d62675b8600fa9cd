"""Resident memory over many requests of random lengths: does it stay what it was after the first of them?

Lengths are drawn from 0.1 to 60 s, as many below 2.4 s as above. `server`: a server of its own, 8 clients,
the WAV as the body. `model`: decode, log-mel, windows and graph in this process, one request after the other.
The first mark is after 5 % of the requests: of 100 000 after 5 000.

Out: results/memory.json.
"""

import http.client
import math
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness import options
from benchmarks.harness.clients import HOST
from benchmarks.harness.results import Result, markdown, say, write
from benchmarks.harness.servers import memory_kb, running, viola
from service.inference.model import Model
from service.inference.threads import plan
from service.inference.windows import embed
from service.settings import Settings
from service.sound.audio import decode

SHORTEST_S, LONGEST_S = 0.1, 60.0
RATE_HZ = 16_000
CLIENTS = 8
MARKS = (0.05, 0.1, 0.2, 0.5, 1.0)  # shares of the requests
ALLOWED = 0.1  # of growth since the first mark
SEED = 0

_noise = random.Random(SEED).randbytes(2 * int(RATE_HZ * LONGEST_S))


def main() -> None:
    parser = options.command("memory", __doc__)
    options.model(parser)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--level", choices=["model", "server", "both"], default="server")
    arguments = parser.parse_args()
    levels = LEVELS if arguments.level == "both" else {arguments.level: LEVELS[arguments.level]}
    rows = [row for level in levels.values() for row in level(arguments.model, arguments.requests)]
    say(f"{write('memory', rows, requests=arguments.requests, allowed=ALLOWED)} written")
    say(table({"rows": rows, "allowed": ALLOWED}))


def clips(count: int) -> Iterator[bytes]:
    """So many WAV files of noise, each of another length; the same ones every time."""
    draw = random.Random(SEED)
    low, high = math.log(SHORTEST_S), math.log(LONGEST_S)
    for _ in range(count):
        n = int(RATE_HZ * math.exp(draw.uniform(low, high)))
        yield wav(_noise[: 2 * n])


def wav(samples: bytes) -> bytes:
    """samples: 16 bits, mono, at RATE_HZ."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


def of_model(folder: Path, count: int) -> list[dict[str, Any]]:
    model = Model.load(folder, device="cpu", threads=plan(Settings()).inference)
    marks = Marks("model", count, lambda: resident_mb(os.getpid()))
    for clip in clips(count):
        waveform = decode(clip, sample_rate=model.card.sample_rate)
        embed(model.run, model.card, [model.logmel(waveform.samples)])
        marks.count()
    return marks.rows


def of_server(folder: Path, count: int) -> list[dict[str, Any]]:
    with running(viola(folder, "auto")) as server, ThreadPoolExecutor(CLIENTS) as pool:
        marks = Marks("server", count, lambda: resident_mb(server.pid))
        waiting = clips(count)
        lock = threading.Lock()

        def work() -> None:
            connection = http.client.HTTPConnection(HOST, server.port, timeout=120)
            while True:
                with lock:
                    clip = next(waiting, None)
                if clip is None:
                    connection.close()
                    return
                while (answer := ask(connection, clip)).status == 503:  # a busy machine, and a full queue
                    time.sleep(float(answer.headers["Retry-After"]))
                assert answer.status == 200, answer.reason
                with lock:
                    marks.count()

        for each in [pool.submit(work) for _ in range(CLIENTS)]:
            each.result()
    return marks.rows


def ask(connection: http.client.HTTPConnection, clip: bytes) -> http.client.HTTPResponse:
    """The answer, read to its end."""
    connection.request("POST", "/embed?encoding=base64", clip, {"Content-Type": "audio/wav"})
    answer = connection.getresponse()
    answer.read()
    return answer


LEVELS: dict[str, Callable[[Path, int], list[dict[str, Any]]]] = {"model": of_model, "server": of_server}


class Marks:
    """Counts requests and reads the memory when a share of them is done."""

    def __init__(self, level: str, requests: int, memory_mb: Callable[[], float]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._level = level
        self._waiting = [max(1, round(share * requests)) for share in MARKS]
        self._memory_mb = memory_mb
        self._counted = 0
        self._started = time.monotonic()

    def count(self) -> None:
        self._counted += 1
        while self._waiting and self._counted >= self._waiting[0]:
            row = {
                "level": self._level,
                "requests": self._waiting.pop(0),
                "rss_mb": round(self._memory_mb(), 1),
            }
            self.rows.append(row)
            say(f"{row} after {time.monotonic() - self._started:.0f} s")


def resident_mb(pid: int) -> float:
    return memory_kb(pid, "VmRSS") / 1000


def table(result: Result) -> str:
    """For README.md."""
    rows = []
    for level in dict.fromkeys(row["level"] for row in result["rows"]):
        marks = [row for row in result["rows"] if row["level"] == level]
        first, last = marks[0]["rss_mb"], marks[-1]["rss_mb"]
        seen = ", ".join(f"{row['rss_mb']:.0f} ({row['requests']:,})" for row in marks)
        rows.append([level, seen, f"**{last / first - 1:+.1%}**"])
    header = ["level", "resident MB (after so many requests)", "growth since the first mark"]
    return "\n\n".join(filter(None, [markdown(header, rows), result.get("remark", "")]))


if __name__ == "__main__":
    main()
