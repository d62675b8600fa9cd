"""How many streams a machine holds: CPU seconds of the server for each second of a stream, against bare work.

Streams are sent in real time, a tenth of a second a message, raw at 16 kHz, all by WebSocket. For each number
of them:

    cpu       the server's CPU seconds, for each second of each stream
    latency   from the sending of a window's last sample to its message: what the encoder must see behind it
              (some hundredths of a second, and the rest of a message) is in it
    memory    the server's, less what it held before, for each stream

The bare work, in the same run: log-mel and network of the same pieces, one after the other on one thread, no
server. What other programs take of the cores lengthens the latency and hardly changes the CPU seconds.

Out: results/live.json.
"""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.harness import options
from benchmarks.harness.clients import HOST
from benchmarks.harness.results import Result, markdown, percentiles_ms, say, write
from benchmarks.harness.servers import Running, running, viola
from benchmarks.harness.sounds import fixtures
from service.inference.live import live_cost_per_s
from service.inference.model import Model
from service.inference.threads import usable_cores
from service.sound.audio import decode

RATE_HZ = 16_000
MESSAGE_S = 0.1
BARE_S = 60


def main() -> None:
    parser = options.command("live", __doc__)
    options.model(parser)
    options.counts(parser, "--streams", [1, 8, 32])
    parser.add_argument("--seconds", type=int, default=20, help="of each stream")
    parser.add_argument("--hop-s", type=float, default=1.0)
    arguments = parser.parse_args()
    sound = a_minute()
    bare = bare_cpu(arguments.model, sound, hop_s=arguments.hop_s)
    say(f"bare: {1000 * bare:.2f} ms of CPU for a second of sound")
    rows = []
    server = viola(arguments.model, "auto", max_streams="10000")
    for n in arguments.streams:
        with running(server) as up:
            rows.append(asyncio.run(measured(up, sound, n, arguments.seconds, arguments.hop_s)))
        say(json.dumps(rows[-1]))
    load = os.getloadavg()[0]
    about = {"seconds": arguments.seconds, "hop_s": arguments.hop_s, "cores": usable_cores()[0]}
    path = write("live", rows, bare_cpu_s=round(bare, 6), load=round(load, 1), **about)
    say(f"{path} written")


def a_minute() -> np.ndarray:
    """(n,) int16 of the fixtures, one after the other."""
    sounds = [decode(content, sample_rate=RATE_HZ).samples for _, content in fixtures()]
    samples = np.resize(np.concatenate(sounds), BARE_S * RATE_HZ)
    return np.round(samples * 32_767).astype("<i2")


def bare_cpu(folder: Path, sound: np.ndarray, *, hop_s: float) -> float:
    """CPU seconds for each second of sound."""
    model = Model.load(folder, device="cpu", threads=1)
    samples = sound.astype(np.float32) / np.float32(32_768)
    n_frames = round(live_cost_per_s(model, hop_s=hop_s) * hop_s)
    n_samples = round((n_frames - 1) * model.card.frontend.hop_length)
    model.run([model.logmel(samples[:n_samples])], frames=True)
    hop = round(hop_s * RATE_HZ)
    began = time.process_time()
    for start in range(0, len(samples) - n_samples, hop):
        model.run([model.logmel(samples[start : start + n_samples])], frames=True)
    n_hops = len(range(0, len(samples) - n_samples, hop))
    return (time.process_time() - began) / (n_hops * hop_s)


async def measured(up: Running, sound: np.ndarray, n: int, seconds: int, hop_s: float) -> dict[str, Any]:
    await one_stream(up.port, sound, 2, hop_s, delay_s=0.0)  # everything is there that is made once
    memory_mb, cpu_s = up.memory_mb(), up.cpu_s()
    streams = [
        asyncio.create_task(one_stream(up.port, sound, seconds, hop_s, delay_s=k * hop_s / n))
        for k in range(n)
    ]
    await asyncio.sleep(seconds / 2)
    held_mb = up.memory_mb()
    latencies = [each for found in await asyncio.gather(*streams) for each in found]
    return {
        "streams": n,
        "cpu_s": round((up.cpu_s() - cpu_s) / (n * seconds), 6),
        "latency_ms": [round(each, 1) for each in percentiles_ms(latencies)],
        "memory_mb": round((held_mb - memory_mb) / n, 3),
        "messages": len(latencies),
        "expected": n * (1 + int((seconds - 1) / hop_s)),
    }


async def one_stream(
    port: int, sound: np.ndarray, seconds: int, hop_s: float, *, delay_s: float
) -> list[float]:
    """The latency of each of its messages, in seconds."""
    await asyncio.sleep(delay_s)
    url = f"ws://{HOST}:{port}/stream?rate={RATE_HZ}&window_s=1&hop_s={hop_s}&top_k=1"
    async with connect(url, max_size=None, compression=None) as line:
        sent_at = [0.0] * (round(seconds / MESSAGE_S) + 1)
        sender = asyncio.create_task(send(line, sound, seconds, sent_at))
        latencies = []
        async for text in line:
            message = json.loads(text)
            if message["type"] == "tags":
                last = min(len(sent_at) - 1, int(np.ceil(message["end_s"] / MESSAGE_S - 1e-6)))
                latencies.append(time.perf_counter() - sent_at[last])
        await sender
    return latencies


async def send(line: ClientConnection, sound: np.ndarray, seconds: int, sent_at: list[float]) -> None:
    """In real time; sent_at[k]: when the first k messages were on their way."""
    began = time.perf_counter()
    n = round(MESSAGE_S * RATE_HZ)
    for k in range(1, len(sent_at)):
        await asyncio.sleep(max(0.0, began + k * MESSAGE_S - time.perf_counter()))
        start = (k - 1) * n % (len(sound) - n)
        sent_at[k] = time.perf_counter()
        await line.send(sound[start : start + n].tobytes())
    await line.send('{"type": "end"}')


def table(result: Result) -> str:
    bare, cores = result["bare_cpu_s"], result["cores"]
    rows = [
        (
            row["streams"],
            f"{1000 * row['cpu_s']:.2f}",
            f"{bare / row['cpu_s']:.2f}",
            f"{cores / row['cpu_s']:.0f}",
            " / ".join(f"{each:.0f}" for each in row["latency_ms"]) or "–",
            f"{row['memory_mb']:.2f}",
            f"{row['messages']} of {row['expected']}",
        )
        for row in result["rows"]
    ]
    header = (
        "streams",
        "CPU ms per second of a stream",
        "share of it that is bare work",
        f"streams that fill {cores} cores",
        "latency ms, p50 / p95 / p99",
        "MB per stream",
        "messages",
    )
    told = (
        f"The bare work takes {1000 * bare:.2f} ms of CPU for a second of sound, which is "
        f"{cores / bare:.0f} streams on {cores} cores. The machine's load was {result['load']} while this "
        "was measured: the latencies are those of a machine that others keep busy."
    )
    return f"{markdown(header, rows)}\n\n{told}"


if __name__ == "__main__":
    main()
