"""Streams that come and go by the thousand, however they end: does the server keep anything of them?

Each is one of the ways below, drawn anew, with half a second to three seconds of sound at once; CLIENTS of
them at a time. Before the first of them twice as many at a time have ended well, so that everything is there
that is made once. After some of them no other one begins until all have ended; what the server holds then is
read:

    memory    resident; since the first mark it may grow by a tenth
    files     open files and sockets, and
    threads   of the process: as many as before
    streams   that it says it listens to: none

How each stream must end (its metric `viola_stream_ends_total`) is known, and counted: nothing is lost.

Out: results/churn.json.
"""

import asyncio
import io
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from benchmarks.harness import connection, options
from benchmarks.harness.clients import HOST
from benchmarks.harness.connection import Connection, Gone
from benchmarks.harness.results import Result, markdown, say, write
from benchmarks.harness.servers import Running, memory_kb, running, viola
from benchmarks.live import RATE_HZ, a_minute

CLIENTS = 16
WARM_UP_ROUNDS = 5
MARKS = (0.05, 0.1, 0.2, 0.5, 1.0)  # shares of the streams
ALLOWED = 0.1  # of growth since the first mark
IDLE_S = ANSWER_S = 2  # the server's patience with who sends nothing, and with who reads nothing
ENDS_S = 60.0  # the last ones to end are those who are waited for
LOOK_S = 0.2
RECEIVE_BUFFER = 4_096
RAW = f"/stream?rate={RATE_HZ}&top_k=1"
LOUD = f"{RAW}&window_s=0.1&hop_s=0.1&embeddings=true"  # whose answer fills the buffers of both systems
ENDS = re.compile(r'^viola_stream_ends_total\{reason="(\w+)"\} (\S+)$', re.MULTILINE)
END = '{"type": "end"}'


class Refused(Exception):  # noqa: N818 - an outcome
    """More streams, the server says, than it can keep up with."""


class Sounds:
    """What the streams send. Raw samples and Ogg, of so many seconds from anywhere in a minute of sound."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._minute = a_minute()

    def raw(self, seconds: float | None = None) -> bytes:
        seconds = seconds or self.chance.uniform(0.5, 3)
        n = round(seconds * RATE_HZ)
        start = self.chance.randrange(len(self._minute) - n)
        return bytes(self._minute[start : start + n].tobytes())

    def ogg(self) -> bytes:
        file = io.BytesIO()
        samples = np.frombuffer(self.raw(), "<i2").astype(np.float32) / 32_768
        soundfile.write(file, samples, RATE_HZ, format="OGG", subtype="VORBIS")
        return file.getvalue()


def main() -> None:
    parser = options.command("churn", __doc__)
    options.model(parser)
    parser.add_argument("--streams", type=int, default=10_000)
    arguments = parser.parse_args()
    server = viola(
        arguments.model,
        "auto",
        max_streams="1000",
        stream_idle_s=str(IDLE_S),
        answer_timeout_s=str(ANSWER_S),
    )
    with running(server) as up:
        result = asyncio.run(churn(up, arguments.streams))
    say(f"{write('churn', result.pop('rows'), **result)} written")


async def churn(up: Running, count: int) -> Result:
    """rows: what the server holds at each mark; ways: by name, how many streams; ends: by reason, how many
    were told by the server and how many there must be."""
    sounds = Sounds(seed=0)
    ways: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    began = time.monotonic()
    ways_to_end = ["asks for the end", "an Ogg that ends", "a body that ends"]
    for _ in range(
        WARM_UP_ROUNDS
    ):  # then everything is there that is made once, for the largest batches, too
        names = [ways_to_end[number % 3] for number in range(2 * CLIENTS)]
        expected.update(await asyncio.gather(*(one(up.port, name, sounds) for name in names)))
    rows: list[dict[str, Any]] = []
    for share in MARKS:
        left = round(share * count) - ways.total()
        names = sounds.chance.choices([*WAYS], WEIGHTS, k=left)
        free = asyncio.Semaphore(CLIENTS)

        async def begun(name: str, free: asyncio.Semaphore = free) -> None:
            async with free:
                reason = await one(up.port, name, sounds)
            ways[name] += 1
            expected[reason] += 1

        await asyncio.gather(*map(begun, names))
        rows.append({"streams": ways.total(), **await held(up, expected)})
        say(f"{rows[-1]} after {time.monotonic() - began:.0f} s")
    told = ends_of(await metrics(up.port))
    return {
        "rows": rows,
        "ways": dict(sorted(ways.items())),
        "ends": {name: [told[name], expected[name]] for name in sorted(told | expected)},
        "seconds": round(time.monotonic() - began),
        "allowed": ALLOWED,
    }


async def one(port: int, name: str, sounds: Sounds) -> str:
    """How the stream must end; one that is refused is tried again, and is no stream."""
    while True:
        try:
            return await WAYS[name](port, sounds)
        except Refused:
            await asyncio.sleep(1)


async def held(up: Running, expected: Counter[str]) -> dict[str, Any]:
    """Once all that began have ended, or ENDS_S later."""
    for _ in range(round(ENDS_S / LOOK_S)):
        page = await metrics(up.port)
        if ends_of(page).total() >= expected.total():
            break
        await asyncio.sleep(LOOK_S)
    (streams,) = re.findall(r"^viola_streams (\S+)$", page, re.MULTILINE)
    return process_of(up.pid) | {"listened_to": int(float(streams))}


def process_of(pid: int) -> dict[str, Any]:
    return {
        "rss_mb": round(memory_kb(pid, "VmRSS") / 1000, 1),
        "files": len([*Path(f"/proc/{pid}/fd").iterdir()]),
        "threads": len([*Path(f"/proc/{pid}/task").iterdir()]),
    }


async def metrics(port: int) -> str:
    return (await connection.ask(port, connection.get("/metrics"))).body.decode()


def ends_of(page: str) -> Counter[str]:
    return Counter({reason: int(float(number)) for reason, number in ENDS.findall(page)})


# By WebSocket


async def asks_for_the_end(port: int, sounds: Sounds) -> str:
    async with _socket(port) as line:
        await _ready(line)
        await line.send(sounds.raw())
        await line.send(END)
        assert await _last(line) == "end"
    return "end"


async def ends_an_ogg(port: int, sounds: Sounds) -> str:
    async with _socket(port, "/stream?format=ogg&top_k=1") as line:
        await _ready(line)
        data = sounds.ogg()
        size = sounds.chance.randint(100, len(data))
        for start in range(0, len(data), size):
            await line.send(data[start : start + size])
        await line.send(END)
        assert await _last(line) == "end"
    return "end"


async def vanishes(port: int, sounds: Sounds) -> str:
    """Without a close, sometimes in the middle of an Ogg."""
    is_ogg = sounds.chance.random() < 0.5
    async with _socket(port, "/stream?format=ogg&top_k=1" if is_ogg else RAW) as line:
        await _ready(line)
        await line.send(sounds.ogg()[:-500] if is_ogg else sounds.raw())
        line.transport.abort()
    return "client_left"


async def closes_early(port: int, sounds: Sounds) -> str:
    """With a close, but without asking for the end."""
    async with _socket(port) as line:
        await _ready(line)
        await line.send(sounds.raw())
    return "client_left"


async def falls_silent(port: int, sounds: Sounds) -> str:
    async with _socket(port) as line:
        await _ready(line)
        await line.send(sounds.raw())
        assert await _last(line) == "error"
    return "idle"


async def sends_half_a_sample(port: int, sounds: Sounds) -> str:
    async with _socket(port) as line:
        await _ready(line)
        await line.send(sounds.raw() + b"\0")
        await line.send(END)
        assert await _last(line) == "error"
    return "error"


async def never_reads(port: int, sounds: Sounds) -> str:
    """Until it is cut."""
    sock = _deaf_socket(port)
    with suppress(ConnectionClosed, TimeoutError, OSError):
        # websockets reads on its own: a transport that is paused does not.
        async with connect(
            f"ws://{HOST}:{port}{LOUD}", sock=sock, max_queue=1, ping_interval=None, close_timeout=0.1
        ) as line:
            line.transport.pause_reading()
            async with asyncio.timeout(ENDS_S):
                while True:
                    await line.send(sounds.raw(1))
    return "unread"


# By a request


async def ends_its_body(port: int, sounds: Sounds) -> str:
    line = await _post(port)
    await line.send(_chunk(sounds.raw()) + b"0\r\n\r\n")
    answer = await line.answer()
    await line.close()
    _check(answer.status)
    assert answer.body.rstrip().rpartition(b"\n")[2].startswith(b'{"type":"end"')
    return "end"


async def leaves_in_its_body(port: int, sounds: Sounds) -> str:
    line = await _begun_post(port)
    with suppress(Gone):
        await line.send(_chunk(sounds.raw())[: -sounds.chance.randint(3, 1000)])
    await line.close()
    return "client_left"


async def resets_its_body(port: int, sounds: Sounds) -> str:
    line = await _begun_post(port)
    with suppress(Gone):
        await line.send(_chunk(sounds.raw()))
    await line.abort()
    return "client_left"


async def posts_and_never_reads(port: int, sounds: Sounds) -> str:
    """Until it is cut."""
    line = await _begun_post(port, LOUD, receive_buffer=RECEIVE_BUFFER)
    with suppress(Gone, TimeoutError):
        async with asyncio.timeout(ENDS_S):
            while True:
                await line.send(_chunk(sounds.raw(1)))
    await line.close()
    return "unread"


WAYS: dict[str, Callable[[int, Sounds], Awaitable[str]]] = {
    "asks for the end": asks_for_the_end,
    "an Ogg that ends": ends_an_ogg,
    "vanishes": vanishes,
    "closes early": closes_early,
    "falls silent": falls_silent,
    "half a sample": sends_half_a_sample,
    "never reads": never_reads,
    "a body that ends": ends_its_body,
    "leaves in its body": leaves_in_its_body,
    "resets its body": resets_its_body,
    "a body whose answer is never read": posts_and_never_reads,
}
# Who never reads sends ten seconds of sound and more before anybody can notice.
WEIGHTS = [1 if "never" in name else 10 for name in WAYS]


def _socket(port: int, path: str = RAW) -> connect:
    return connect(f"ws://{HOST}:{port}{path}", max_size=None, compression=None)


async def _ready(line: ClientConnection) -> None:
    message = json.loads(await line.recv())
    if message.get("error") == "overloaded":
        raise Refused
    assert message["type"] == "ready", message


async def _last(line: ClientConnection) -> str:
    """The type of the last message."""
    last = ""
    with suppress(ConnectionClosed):  # whose code is another than 1000
        async for text in line:
            last = json.loads(text)["type"]
    return last


def _deaf_socket(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.connect((HOST, port))
    return sock


async def _post(port: int, path: str = RAW, *, receive_buffer: int | None = None) -> Connection:
    line = await Connection.open(port, receive_buffer=receive_buffer)
    await line.send(connection.head(path, transfer_encoding="chunked"))
    return line


async def _begun_post(port: int, path: str = RAW, *, receive_buffer: int | None = None) -> Connection:
    """Once the server has said that it listens."""
    line = await _post(port, path, receive_buffer=receive_buffer)
    _check(await line.status())
    return line


def _check(status: int) -> None:
    if status == 503:
        raise Refused
    assert status == 200, status


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def table(result: Result) -> str:
    """For README.md."""
    rows = [
        (f"{row['streams']:,}", f"{row['rss_mb']:.0f}", row["files"], row["threads"], row["listened_to"])
        for row in result["rows"]
    ]
    first, last = result["rows"][0]["rss_mb"], result["rows"][-1]["rss_mb"]
    ways = ", ".join(f"{name} {number}" for name, number in result["ways"].items())
    ends = ", ".join(f"{name} {told} of {all_}" for name, (told, all_) in result["ends"].items())
    header = ("after so many streams", "resident MB", "open files", "threads", "listened to")
    return "\n\n".join(
        [
            markdown(header, rows),
            f"Growth since the first mark: **{last / first - 1:+.1%}** ({result['allowed']:.0%} is allowed). "
            f"All took {result['seconds']} s.",
            f"How they went: {ways}. How the server says that they ended: {ends}.",
            *filter(None, [result.get("remark")]),
        ]
    )


if __name__ == "__main__":
    main()
