"""Sound in pieces of bytes in, mono samples at the model's rate out, while it still comes.

    pieces ─► PcmPieces        whole frames of s16le, f32le … ─┐
              ContainerPieces  FFmpeg, on a thread of its own ─┴─► mean ─► checked ─► soxr ─► (m,) in [-1, 1]

What comes out is what `audio.decode` makes of the same bytes in one file: channels are averaged before
resampling, NaN is refused, the result is clipped. How the bytes were cut into pieces changes nothing. (One
thing differs: of channels that cancel each other `decode` takes the loudest, and here they cancel.)

FFmpeg asks for bytes when it wants some, and knows no "not yet". So it has a thread, which runs only while
`push` waits for it:

    push    bytes ─► go ┐             ┌─► block, or None: wants more bytes ─► …
    thread              └─ read ─ ... ┘   waits for the next go
"""

import math
import threading
from collections import deque
from collections.abc import Iterator
from typing import Literal, Protocol

import av
import numpy as np

from service.errors import AudioUnreadable
from service.sound.audio import MAX_VALUES_PER_S, checked, clipped
from service.sound.blocks import Samples
from service.sound.ffmpeg import block_of
from service.sound.formats import CODECS
from service.sound.pcm import RawPcm
from service.sound.resampling import Resampler

Container = Literal["webm", "ogg"]

MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 192_000
MAX_CHANNELS = 8
BLOCK_S = 1.0  # decoded at a time, at most: a piece of bytes may unfold to hours of silence
# What a stream in a container begins with. One that was joined in the middle cannot be understood.
BEGINNINGS: dict[Container, bytes] = {"webm": b"\x1a\x45\xdf\xa3", "ogg": b"OggS\x00\x02"}
# So much of it FFmpeg gets at once, a fraction of a second: of a WebM whose first block comes to it in two
# pieces it forgets that the encoder's run-in is to be cut off.
BEGINNING_BYTES = 2048
DEMUXERS: dict[Container, str] = {"webm": "matroska", "ogg": "ogg"}
# FFmpeg's usual 5 MB and 5 s, which it reads to guess what its headers tell anyway, would be delay.
PROBE = {"probesize": "32768", "analyzeduration": "0"}


class Pieces(Protocol):
    """Bytes in, blocks (n, channels) float32 out; full scale is 1.

    rate_hz: 0 until it is known. The blocks of one `push` must all be taken before the next.
    """

    rate_hz: int

    def push(self, data: bytes) -> Iterator[Samples]: ...

    def close(self) -> Iterator[Samples]:
        """What is left, once no more bytes come. Raises AudioUnreadable where they end too early."""

    def abandon(self) -> None:
        """Nobody wants more of it; may be called at any time, and again."""


class SoundStream:
    """Mono samples of a stream. `duration_s`: the seconds of it that were decoded so far."""

    def __init__(self, pieces: Pieces, *, sample_rate: int) -> None:
        self.duration_s = 0.0
        self._pieces = pieces
        self._sample_rate = sample_rate
        self._n_decoded = 0
        self._resampler: Resampler | None = None

    def push(self, data: bytes) -> Iterator[Samples]:
        """Blocks (m,) float32 in [-1, 1] at sample_rate. Raises AudioUnreadable."""
        return self._samples(self._pieces.push(data))

    def close(self) -> Iterator[Samples]:
        """The rest of them. Raises AudioUnreadable."""
        yield from self._samples(self._pieces.close())
        if self._resampler is not None:
            yield clipped(self._resampler.close())

    def abandon(self) -> None:
        self._pieces.abandon()

    def _samples(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self._n_decoded += len(block)
            self.duration_s = self._n_decoded / self._pieces.rate_hz
            yield clipped(self._resampled(checked(_mean(block), what="stream")))

    def _resampled(self, mono: Samples) -> Samples:
        rate_hz = self._pieces.rate_hz
        if rate_hz == self._sample_rate:
            return mono
        if self._resampler is None:
            self._resampler = Resampler(rate_hz, self._sample_rate)
        return self._resampler.push(mono)


def _mean(block: Samples) -> Samples:
    """(n, channels) -> (n,)."""
    channels = block.shape[1]
    if channels == 1:
        return block[:, 0]
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite samples, which are refused
        return block @ np.full(channels, 1 / channels, dtype=np.float32)


class PcmPieces:
    """Raw samples, whose form the client has told."""

    def __init__(self, pcm: RawPcm) -> None:
        self.rate_hz = pcm.rate_hz
        self._pcm = pcm
        self._frame_bytes = pcm.bytes_per_frame
        self._n_bytes = 0
        self._rest = b""  # of a frame that is not whole yet

    def push(self, data: bytes) -> Iterator[Samples]:
        self._n_bytes += len(data)
        data = self._rest + data if self._rest else data
        n_whole = len(data) // self._frame_bytes * self._frame_bytes
        self._rest = data[n_whole:]
        n_at_once = math.ceil(BLOCK_S * self.rate_hz) * self._frame_bytes
        for start in range(0, n_whole, n_at_once):
            yield self._pcm.samples(memoryview(data)[start : min(start + n_at_once, n_whole)])

    def close(self) -> Iterator[Samples]:
        self._pcm.check(self._n_bytes)
        return iter(())

    def abandon(self) -> None:
        pass


class ContainerPieces:
    """WebM or Ogg, as browsers record them."""

    def __init__(self, container: Container) -> None:
        self.rate_hz = 0
        self._container = container
        self._beginning = b""  # until there is enough of it to be looked at
        self._is_abandoned = False
        self._decoder: _DecoderThread | None = None

    def push(self, data: bytes) -> Iterator[Samples]:
        if self._is_abandoned:
            return
        if self._decoder is None:
            self._beginning += data
            expected = BEGINNINGS[self._container]
            if not self._beginning.startswith(expected[: len(self._beginning)]):
                raise AudioUnreadable(
                    f"the stream does not begin as {self._container} does; send it from its beginning, with "
                    "the header that comes first"
                )
            if len(self._beginning) < BEGINNING_BYTES:
                return
            data, self._beginning = self._beginning, b""
            self._decoder = _DecoderThread(self._container)
        yield from self._blocks(self._decoder.feed(data))

    def close(self) -> Iterator[Samples]:
        if self._decoder is None and len(self._beginning) >= len(BEGINNINGS[self._container]):
            self._decoder = _DecoderThread(self._container)
            yield from self._blocks(self._decoder.feed(self._beginning))
        if self._decoder is not None:
            yield from self._blocks(self._decoder.feed(None))
        elif self._beginning:
            raise AudioUnreadable(f"the stream ends before the header of {self._container} is complete")

    def abandon(self) -> None:
        self._is_abandoned = True
        if self._decoder is not None:
            self._decoder.abandon()

    def _blocks(self, decoded: Iterator[tuple[Samples, int]]) -> Iterator[Samples]:
        for block, rate_hz in decoded:
            if self.rate_hz and rate_hz != self.rate_hz:
                raise AudioUnreadable(
                    f"the sample rate changes from {self.rate_hz} to {rate_hz} Hz within the stream"
                )
            self.rate_hz = rate_hz
            yield block


class _AbandonedError(Exception):
    """In the thread: nobody wants more."""


class _DecoderThread:
    """FFmpeg as a coroutine: it and whoever calls `feed` take turns, and share nothing at once."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._bytes: deque[memoryview] = deque()
        self._is_ended = self._is_abandoned = self._is_over = False
        self._decoded: list[av.AudioFrame] = []
        self._block: tuple[Samples, int] | None = None
        self._error: Exception | None = None
        self._kind = ("", 0, 0)  # of what is decoded: sample format, channels, rate
        self._go, self._is_its_turn_over = threading.Semaphore(0), threading.Semaphore(0)
        self._lock = threading.Lock()  # of one turn; `abandon` comes from another thread
        self._thread = threading.Thread(target=self._work, name="viola-ffmpeg", daemon=True)
        self._thread.start()

    def feed(self, data: bytes | None) -> Iterator[tuple[Samples, int]]:
        """The blocks that these bytes complete, with their rate; None: there are no more bytes."""
        if data is None:
            self._is_ended = True
        elif data:
            self._bytes.append(memoryview(data))
        while (block := self._take_turn()) is not None:
            yield block

    def abandon(self) -> None:
        """The thread ends, and what FFmpeg holds is freed."""
        with self._lock:
            self._is_abandoned = True
            if not self._is_over:
                self._is_over = True
                self._go.release()
        self._thread.join()

    def _take_turn(self) -> tuple[Samples, int] | None:
        with self._lock:
            if not self._is_over:
                self._block = None
                self._go.release()
                self._is_its_turn_over.acquire()
            error, self._error = self._error, None
            if error is not None:
                raise error
            block, self._block = self._block, None
            return block

    # From here on in the thread.

    def _work(self) -> None:
        self._go.acquire()
        try:
            if not self._is_abandoned:
                self._decode()
        except _AbandonedError:
            pass
        except (av.FFmpegError, ValueError, OSError) as error:
            if not self._is_abandoned:
                self._error = AudioUnreadable(
                    f"the stream is no {self._container} that can be decoded: "
                    f"{getattr(error, 'strerror', None) or type(error).__name__}; send it from its "
                    "beginning, and all of it"
                )
        except Exception as error:
            self._error = error
        finally:
            self._is_over = True
            self._decoded.clear()
            self._is_its_turn_over.release()

    def _decode(self) -> None:
        lists = {"format_whitelist": DEMUXERS[self._container] + ",webm", "codec_whitelist": CODECS}
        options = {**lists, "protocol_whitelist": "none", **PROBE}
        with av.open(
            self,
            "r",
            format=DEMUXERS[self._container],
            container_options=options,
            metadata_errors="replace",
            buffer_size=4096,
        ) as container:
            stream = _audio_of(container)
            n_frames = 0
            for frame in container.decode(stream):
                kind = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
                if kind != self._kind:
                    self._hand_over()
                    n_frames = 0
                self._kind = kind
                self._decoded.append(frame)
                n_frames += frame.samples
                if n_frames >= BLOCK_S * frame.sample_rate:
                    self._hand_over()
                    n_frames = 0
            self._hand_over()

    def read(self, n: int) -> bytes:
        """What FFmpeg calls: some bytes, as soon as there are any; none at the end."""
        while not self._bytes:
            if self._is_abandoned or self._is_ended:
                return b""
            self._hand_over()
            if not self._bytes and not self._is_ended:
                self._end_turn()
        first = self._bytes.popleft()
        if len(first) > n:
            self._bytes.appendleft(first[n:])
        return bytes(first[:n])

    def _hand_over(self) -> None:
        """What is decoded, if anything, is the result of this turn."""
        if not self._decoded:
            return
        self._block = block_of(self._decoded, *self._kind)
        self._decoded.clear()
        self._end_turn()

    def _end_turn(self) -> None:
        self._is_its_turn_over.release()
        self._go.acquire()
        if self._is_abandoned:
            raise _AbandonedError


def _audio_of(container: "av.container.InputContainer") -> "av.AudioStream":
    if not container.streams.audio:
        raise AudioUnreadable("the stream holds no audio track; send one that does")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None or context.codec.name not in CODECS.split(","):
        raise AudioUnreadable("the audio codec is not one known here; send Opus or Vorbis")
    rate_hz, channels = context.sample_rate, max(1, context.layout.nb_channels)
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or rate_hz * channels > MAX_VALUES_PER_S:
        raise AudioUnreadable(
            f"the stream has {channels} channels at {rate_hz} Hz; send {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, at "
            f"most {MAX_VALUES_PER_S} samples a second in all channels"
        )
    return stream


def pieces_of(form: RawPcm | Container) -> Pieces:
    """What takes the bytes of a stream of this form."""
    return PcmPieces(form) if isinstance(form, RawPcm) else ContainerPieces(form)
