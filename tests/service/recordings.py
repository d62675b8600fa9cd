"""Sounds as they come from a line: recorded in a browser's container, or raw, and cut into messages."""

import functools
import io
from collections.abc import Sequence

import av
import numpy as np

from service.sound.stream import Container


@functools.cache
def recorded(container: Container, seconds: float) -> bytes:
    """Opus in a container without a length, as a browser records it."""
    file = io.BytesIO()
    wave = (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(48_000 * seconds)) / 48_000)).astype(np.float32)
    options = {"live": "1"} if container == "webm" else {"page_duration": "60000"}
    with av.open(file, "w", format=container, options=options) as muxer:
        track = muxer.add_stream("libopus", rate=48_000, layout="mono")
        for start in range(0, len(wave), 960):
            part = wave[start : start + 960]
            frame = av.AudioFrame.from_ndarray(part[None], format="flt", layout="mono")
            frame.sample_rate = 48_000
            frame.pts = start
            muxer.mux(track.encode(frame))
        muxer.mux(track.encode(None))
    return file.getvalue()


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """In pieces of these sizes, in turn, until the end."""
    pieces, at, k = [], 0, 0
    while at < len(data):
        pieces.append(data[at : at + sizes[k % len(sizes)]])
        at += len(pieces[-1])
        k += 1
    return pieces
