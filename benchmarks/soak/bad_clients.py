"""What clients do wrong: requests that must be refused, and clients that are slow, leave or never listen.

A `Poison` is a request's bytes and the statuses that are right for it. The behaviours take a port and a good
request, and do one wrong thing with it.
"""

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from benchmarks.harness.clients import END_OF_HEAD, HOST
from benchmarks.harness.connection import Answer, Connection, Gone, ask, head, post
from benchmarks.harness.sounds import FIXTURES, encoded, word
from benchmarks.soak.damaged import damaged

LINGERED_BYTES = 10_000_000  # of a body that is refused, so many at least are read before the reset
POISON_S = 240.0  # a bomb is decoded up to the limit, in turns with everybody else's sounds

# Whether a request gets as far as the application, which counts it; one that is no HTTP need not.
Counted = Literal["yes", "maybe"]


@dataclass(frozen=True)
class Poison:
    """statuses: the right answers; may_close: whether it is right, too, to close without an answer."""

    name: str
    request: bytes
    statuses: frozenset[int]
    counted: Counted = "yes"
    may_close: bool = False

    async def send(self, port: int) -> Answer | None:
        """The answer; None where the server just closed. Raises TimeoutError when it does neither."""
        try:
            return await ask(port, self.request, timeout_s=POISON_S)
        except Gone:
            return None

    def complaint(self, answer: Answer | None) -> str | None:
        """What is wrong with the answer; None if nothing is."""
        if answer is None:
            return None if self.may_close else f"{self.name}: closed without an answer"
        if answer.status not in self.statuses:
            return f"{self.name}: {answer.status} {answer.body[:200]!r}, not one of {sorted(self.statuses)}"
        if answer.status != 200 and self.counted == "yes" and not answer.error:
            return f"{self.name}: the answer {answer.body[:200]!r} has no code"
        return None


def poisons(*, max_audio_s: float, max_body_bytes: int) -> list[Poison]:
    """One of each kind, for a server with these limits."""
    return [
        *of_sound(max_audio_s),
        *of_forms(),
        *of_parameters(),
        *of_lengths(max_body_bytes),
        *of_types(),
        *of_routes(),
        *of_http(),
    ]


def of_sound(max_audio_s: float) -> Iterator[Poison]:
    for path in sorted((FIXTURES / "invalid").iterdir()):
        yield _sound(f"the file {path.name}", path.read_bytes(), 422)
    samples = np.zeros(1600, dtype=np.float32)
    for value, name in ((np.nan, "NaN"), (np.inf, "infinite"), (1e30, "1e30")):
        samples[800] = value
        yield _sound(f"a sample that is {name}", encoded(samples, 16_000, "WAV", "FLOAT"), 422)
    yield _sound("noise that is no file", random.Random(0).randbytes(50_000), 422)
    yield _sound("a WAV of 4 GB by its header", wav_of_4_gb(), 200, 422)
    yield _sound("a FLAC that is too long by its header", bomb(max_audio_s), 413)
    yield _sound("a FLAC of unknown length that unfolds to too much", nameless_bomb(max_audio_s), 413)


def of_forms() -> Iterator[Poison]:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nsound\r\n'
    other = part.replace(b'name="file"', b'name="sound"')
    for name, body, kind in (
        ("a form without boundary", part + b"--b--\r\n", "multipart/form-data"),
        ("a form that breaks off", part, "multipart/form-data; boundary=b"),
        ("a form with another boundary", part + b"--b--\r\n", "multipart/form-data; boundary=c"),
        ("a form of another field", other + b"--b--\r\n", "multipart/form-data; boundary=b"),
        ("a form of no fields", b"--b--\r\n", "multipart/form-data; boundary=b"),
        ("a form of two files for one answer", 2 * part + b"--b--\r\n", "multipart/form-data; boundary=b"),
        ("a form of noise", random.Random(1).randbytes(5000), "multipart/form-data; boundary=b"),
    ):
        yield Poison(name, post("/embed", body, content_type=kind), frozenset({400, 422}))


def of_parameters() -> Iterator[Poison]:
    late = post("/embed", word(), content_type="audio/wav", x_deadline_s="soon")
    yield Poison("a deadline that is no number", late, frozenset({422}))
    for query in (
        "frames=banana",
        "windows=1",
        "window_s=nan",
        "window_s=1e-9",
        "dtype=a&dtype=b",
        "model=%00",
    ):
        path, statuses = f"/embed?{query}", frozenset({404, 422})
        yield Poison(f"?{query}", post(path, word(), content_type="audio/wav"), statuses)
    yield Poison(
        "an unknown head", post("/classify?head=x", word(), content_type="audio/wav"), frozenset({404})
    )


def of_lengths(max_body_bytes: int) -> Iterator[Poison]:
    huge = str(10**15)
    yield Poison(
        "a Content-Length of 10^15",
        post("/embed", b"RIFF", content_type="audio/wav", content_length=huge),
        frozenset({413}),
    )
    yield Poison(
        "a body that is too long",
        post("/embed", bytes(max_body_bytes + 1), content_type="audio/wav"),
        frozenset({413}),
        may_close=max_body_bytes > LINGERED_BYTES,
    )
    yield Poison(
        "a chunked body that is too long",
        head("/embed", content_type="audio/wav", transfer_encoding="chunked") + chunks(max_body_bytes + 1),
        frozenset({413}),
    )
    yield Poison("no body", post("/embed", b"", content_type="audio/wav"), frozenset({422}))
    yield Poison("no length and no body", head("/embed", content_type="audio/wav"), frozenset({411, 422}))
    for length in ("-1", "ten", str(10**30), "5, 6"):
        yield _no_http(f"a Content-Length of {length}", head("/embed", content_length=length) + b"sound")
    both = head("/embed", content_length="5", transfer_encoding="chunked") + b"0\r\n\r\n"
    yield _no_http("a length and chunks at once", both)
    broken = head("/embed", content_type="audio/wav", transfer_encoding="chunked") + b"not hexadecimal\r\n"
    yield Poison("a chunk without a size", broken, frozenset({400}), counted="maybe", may_close=True)


def of_types() -> Iterator[Poison]:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "font/x-unheard-of", ";;;", "image/png"):
        yield Poison(f"the type {kind}", post("/embed", word(), content_type=kind), frozenset({415}))
    packed = post("/embed", word(), content_type="audio/wav", content_encoding="gzip")
    yield Poison("a compressed body", packed, frozenset({415}))
    for body in (b"{", b"[]", b'{"file": 7}', b"\xff\xfe", b"[" * 100_000):
        sent = post("/embed", body, content_type="application/json")
        yield Poison(f"the JSON {body[:10]!r}", sent, frozenset({400, 415, 422}))


def of_routes() -> Iterator[Poison]:
    for method, path, status in (
        ("GET", "/embed", 405),
        ("DELETE", "/embed", 405),
        ("PATCH", "/classify", 405),
        ("POST", "/nowhere", 404),
        ("GET", "/embed/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/models/..%2f..%2fetc", 404),
    ):
        request = head(path, method=method, content_length="0")
        yield Poison(f"{method} {path}", request, frozenset({status}))


def of_http() -> Iterator[Poison]:
    host = f"Host: {HOST}\r\n".encode()
    for name, request in (
        ("an unknown method", b"BREW /embed HTTP/1.1\r\n" + host + b"\r\n"),
        ("the beginning of TLS", bytes.fromhex("16030100f4010000f00303") + random.Random(2).randbytes(200)),
        ("the beginning of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("a header without a colon", b"GET /models HTTP/1.1\r\n" + host + b"nonsense\r\n\r\n"),
        ("a header with a zero byte", b"GET /models HTTP/1.1\r\n" + host + b"X: \x00\r\n\r\n"),
        ("a path that is no ASCII", b"GET /\xff\xfe HTTP/1.1\r\n" + host + b"\r\n"),
        ("noise", random.Random(3).randbytes(2000) + END_OF_HEAD),
    ):
        yield _no_http(name, request)
    giant = b"GET /models HTTP/1.1\r\n" + host + b"X-Long: " + b"x" * 2_000_000 + END_OF_HEAD
    yield _no_http("a header of 2 MB", giant)
    many = b"GET /models HTTP/1.1\r\n" + host + b"".join(b"X-%d: x\r\n" % n for n in range(50_000)) + b"\r\n"
    yield _no_http("50,000 headers", many)


def damaged_files(numbers: Iterable[int]) -> Iterator[Poison]:
    """Of the row in damaged.py; a few are still sound."""
    for number in numbers:
        request = post("/embed?encoding=base64", damaged(number), content_type="audio/x-something")
        yield Poison(f"damaged file {number}", request, frozenset({200, 413, 422}))


async def leaves_after_the_head(port: int, request: bytes) -> None:
    await _leaves_after(port, request[: request.index(END_OF_HEAD) + len(END_OF_HEAD)])


async def leaves_in_the_body(port: int, request: bytes) -> None:
    await _leaves_after(port, _half(request))


async def leaves_before_the_answer(port: int, request: bytes) -> None:
    await _leaves_after(port, request)


async def resets_before_the_answer(port: int, request: bytes) -> None:
    connection = await Connection.open(port)
    await connection.send(request)
    await asyncio.sleep(0.005)
    await connection.abort()


async def half_closes_in_the_body(port: int, request: bytes, *, timeout_s: float = 30) -> bool:
    """The body ends early and the client waits for its answer. Whether the server ends it, too."""
    connection = await Connection.open(port)
    await connection.send(_half(request))
    connection.end_of_sending()
    try:
        return await connection.ended(timeout_s=timeout_s)
    finally:
        await connection.close()


async def drips(port: int, request: bytes, *, from_byte: int, every_s: float, patience_s: float) -> bool:
    """From `from_byte` on one byte at a time. Whether the server ends it before the patience does."""
    connection = await Connection.open(port)
    dripping = asyncio.create_task(_drip(connection, request, from_byte, every_s))
    try:
        return await connection.ended(timeout_s=patience_s)
    finally:
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        await connection.close()


async def never_reads(port: int, request: bytes, *, patience_s: float) -> Answer | None:
    """Asks for a long answer and reads nothing of it. None where the server ends it before the patience does,
    else the answer that is still there."""
    connection = await Connection.open(port, receive_buffer=4096)
    try:
        await connection.send(request)
        await asyncio.sleep(patience_s)
        # What was sent before the server gave up is small; a server that still waits now sends all of it.
        try:
            return await connection.answer()
        except Gone:
            return None
    finally:
        await connection.abort()


async def pipelines_garbage(port: int, request: bytes) -> list[int]:
    """A good request and noise in one go: the statuses until the connection ends."""
    connection = await Connection.open(port)
    statuses = []
    try:
        await connection.send(request + random.Random(4).randbytes(1000) + END_OF_HEAD)
        while True:
            statuses.append((await connection.answer(timeout_s=30)).status)
    except Gone:
        return statuses
    finally:
        await connection.close()


FORM_TYPE = "multipart/form-data; boundary=viola-soak"


def form(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Names and contents as a multipart body of the type FORM_TYPE."""
    parts = [
        f'--viola-soak\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + b"--viola-soak--\r\n"


@cache
def bomb(seconds: float) -> bytes:
    """Half as much again in silence: a FLAC of a few kilobytes."""
    return encoded(np.zeros(int(1.5 * seconds * 1000), dtype=np.int16), 1000, "FLAC")


@cache
def nameless_bomb(seconds: float) -> bytes:
    """The same without its length: 36 zero bits in STREAMINFO, from the middle of byte 21 on."""
    content = bytearray(bomb(seconds))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return bytes(content)


def wav_of_4_gb() -> bytes:
    """Its header promises the most that a WAV can; there is one second."""
    content = bytearray(word())
    content[4:8] = content[40:44] = b"\xf0\xff\xff\xff"
    return bytes(content)


def chunks(length: int) -> bytes:
    """So many zero bytes as a chunked body."""
    size = 1 << 16
    chunk = b"%x\r\n%s\r\n" % (size, bytes(size))
    return chunk * (length // size + 1) + b"0\r\n\r\n"


def _sound(name: str, content: bytes, *statuses: int) -> Poison:
    return Poison(name, post("/embed", content, content_type="audio/wav"), frozenset(statuses))


def _no_http(name: str, request: bytes) -> Poison:
    return Poison(name, request, frozenset({400, 405, 414, 431, 501, 505}), counted="maybe", may_close=True)


def _half(request: bytes) -> bytes:
    begin = request.index(END_OF_HEAD) + len(END_OF_HEAD)
    return request[: (begin + len(request)) // 2]


async def _leaves_after(port: int, sent: bytes) -> None:
    connection = await Connection.open(port)
    await connection.send(sent)
    await asyncio.sleep(0.005)  # so that it is read before the end is
    await connection.close()


async def _drip(connection: Connection, request: bytes, from_byte: int, every_s: float) -> None:
    await connection.send(request[:from_byte])
    for index in range(from_byte, len(request)):
        await asyncio.sleep(every_s)
        await connection.send(request[index : index + 1])
