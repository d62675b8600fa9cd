"""An hour of 44.1 kHz stereo MP3: seconds, CPU seconds, the server's peak memory. And a server's cold start.

The hour is made once of the sounds in tests/fixtures and kept in runs/. Each round has a server of its own,
so that its peak is that of this hour. A cold start is the time from the process's start until it is ready.

Out: results/long_audio.json.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.harness import options, uploads
from benchmarks.harness.connection import Answer, ask
from benchmarks.harness.results import Result, markdown, middle, say, span, write
from benchmarks.harness.servers import (
    LOGS,
    Running,
    Server,
    answers,
    family,
    free_port,
    memory_kb,
    running,
    started,
    viola,
)
from benchmarks.harness.sounds import WORD, fixtures
from service.sound.audio import decode

HOUR_S = 3600
RATE_HZ = 44_100
LONGEST_ANSWER_S, LONGEST_START_S = 600.0, 60.0
LOOK_EVERY_S = 0.002


def main() -> None:
    parser = options.command("long_audio", __doc__)
    options.model(parser)
    parser.add_argument("--rounds", type=int, default=3, help="of an hour each")
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=HOUR_S, help="of sound, for a trial")
    arguments = parser.parse_args()
    server = viola(arguments.model, "auto")
    hour = an_hour(arguments.seconds)
    rounds = [embedded(server, hour) for _ in range(arguments.rounds)]
    starts = [cold_start_s(server) for _ in range(arguments.starts)]
    rows = [
        {name: middle([one[name] for one in rounds]) for name in rounds[0]}
        | {"cold_start_s": middle(starts), "megabytes": round(hour.stat().st_size / 1e6, 1)}
    ]
    path = write(
        "long_audio", rows, rounds=arguments.rounds, starts=arguments.starts, sound_s=arguments.seconds
    )
    say(f"{path} written")


def embedded(server: Server, hour: Path) -> dict[str, float]:
    """Of one upload to a server that has just been started and has answered one second of sound."""
    with running(server) as up:
        answer_to(up, WORD)
        small_mb, cpu_s, began = peak_mb(up), up.cpu_s(), time.perf_counter()
        answer = answer_to(up, hour)
        found = {
            "seconds": time.perf_counter() - began,
            "cpu_s": up.cpu_s() - cpu_s,
            "peak_mb": peak_mb(up),
            "peak_before_mb": small_mb,
            "duration_s": answer.json["duration_s"],
        }
    say(", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return found


def answer_to(up: Running, sound: Path) -> Answer:
    """Raises RuntimeError unless it is 200."""
    request = uploads.raw("/embed?encoding=base64", sound.read_bytes())
    answer = asyncio.run(ask(up.port, request, timeout_s=LONGEST_ANSWER_S))
    if answer.status != 200:
        raise RuntimeError(f"{sound.name} is answered {answer.status}: {answer.body[:500]!r}")
    return answer


def peak_mb(up: Running) -> float:
    """The most that was ever resident, of the process and its children."""
    return sum(memory_kb(pid, "VmHWM") for pid in family(up.pid)) / 1000


def cold_start_s(server: Server) -> float:
    """Files are in the page cache, as they are at a restart."""
    port = free_port()
    began = time.perf_counter()
    process = started(server, port, LOGS / "cold-start.log")
    try:
        while not answers(port, server.ready):
            if process.poll() is not None or time.perf_counter() - began > LONGEST_START_S:
                raise RuntimeError(f"the server is not ready; its exit code is {process.poll()}")
            time.sleep(LOOK_EVERY_S)
        seconds = time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
    say(f"ready after {seconds:.2f} s")
    return seconds


def an_hour(seconds: int = HOUR_S) -> Path:
    """A 44.1 kHz stereo MP3 of the fixtures in ever new order, made once."""
    path = LOGS / f"{seconds}s_44k1_stereo.mp3"
    if path.is_file():
        return path
    say(f"making {path.name}, once")
    path.parent.mkdir(parents=True, exist_ok=True)
    sounds = [decode(content, sample_rate=RATE_HZ).samples for _, content in fixtures()]
    chance = random.Random(0)
    unfinished = path.with_suffix(".unfinished")
    left = seconds * RATE_HZ
    with soundfile.SoundFile(unfinished, "w", RATE_HZ, 2, "MPEG_LAYER_III", format="MP3") as file:
        while left:
            sound = chance.choice(sounds)[:left]
            share = chance.uniform(0.2, 1)  # the one side is softer than the other
            file.write(np.stack([sound, share * sound], axis=1))
            left -= len(sound)
    unfinished.rename(path)
    return path


def table(result: Result) -> str:
    """For README.md."""
    (row,) = result["rows"]
    rows: list[list[Any]] = [
        ["sound", f"{result['sound_s'] / 60:.0f} minutes, {row['megabytes']:.0f} MB of MP3"],
        ["seconds", f"**{span(row['seconds'], 1)}**"],
        ["CPU seconds", span(row["cpu_s"], 1)],
        ["peak memory MB", f"**{span(row['peak_mb'], 0)}**"],
        ["the same before, after one second of sound", span(row["peak_before_mb"], 0)],
        ["cold start, seconds until ready", f"**{span(row['cold_start_s'])}**"],
    ]
    return markdown(["", f"median of {result['rounds']} (quartiles); starts: of {result['starts']}"], rows)


if __name__ == "__main__":
    main()
