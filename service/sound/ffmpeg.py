"""One sound in, its samples out, by FFmpeg (PyAV): what is compressed, and what libsndfile cannot open.

    file ─► container ─► packets ─► decoder ─► frames of some milliseconds ─► blocks

FFmpeg reads on to the end of a file, whatever is in between. That is right for the tags, lyrics and error
pages between the frames of an MP3. But what a container holds as a packet of sound, and cannot be decoded,
is damage.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane
from av.stream import Disposition

from service.errors import AudioUnreadable, shortened
from service.sound.blocks import BLOCK_VALUES, SLACK_S, Block, broken, check_promise
from service.sound.formats import CODECS, CONTAINERS, KNOWN_FORMATS
from service.sound.headers import SEND_WHOLE, flac_samples, samples_of_one_page
from service.sound.parts import SEARCHED_BYTES, Part

ERRORS = (av.FFmpegError, ValueError, OSError)
MAX_ALLOC_BYTES = 64_000_000  # in one piece: the index of two million packets, 12 hours of AAC
TELL_SECONDS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf"}  # in their headers
VORBIS_BLOCK = 8192  # samples, at most
HOLD_PACKETS = TELL_SECONDS | {"ogg"}  # the rest are rows of frames, with anything in between


class FFmpegDecoder:
    """Restricted to CONTAINERS and CODECS. header_s: seconds that the header tells; promised_s: those to
    which the sound is held; 0 where it tells none."""

    def __init__(self, part: Part, stack: ExitStack) -> None:
        """Raises one of ERRORS where FFmpeg cannot open the sound, AudioUnreadable where it must not."""
        lists = {"format_whitelist": CONTAINERS, "codec_whitelist": CODECS, "protocol_whitelist": "none"}
        part.cut()
        self._part = part
        n_samples = samples_of_one_page(part.as_stored()) if part.kind == "Ogg" else None
        part.file.seek(0)
        self._container = stack.enter_context(
            av.open(part.file, "r", container_options=lists, metadata_errors="replace")
        )
        self._stream = _sound_of(self._container)
        self._n_samples: int | None = None  # where that is known better than FFmpeg knows it
        context = self._stream.codec_context
        if context.codec.name == "flac":
            context.options = {"err_detect": "crccheck+explode"}
        elif context.codec.name == "vorbis" and n_samples:
            self._n_samples, context.options = n_samples, {"flags2": "skip_manual"}
        self._frame_bytes = _pcm_bytes(context.codec.name) * context.channels
        self.promised_s = _promised_s(self._container.format.name, self._stream, part.head)
        self.header_s = self.promised_s
        # Of other containers FFmpeg has an estimate, by the bits per second of their first frames.
        if self._container.format.name in TELL_SECONDS:
            self.header_s = (self._container.duration or 0) / 1e6  # None for what a browser records

    def blocks(self) -> Iterator[Block]:
        frames: list[av.AudioFrame] = []
        n_read = n_values = 0
        kind = ("", 0, 0)
        all_frames = self._frames()
        if self._n_samples:
            next(all_frames, None)  # of the first packet, with which the decoder begins to overlap
        for frame in all_frames:
            kind_of_frame = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
            if frames and (kind_of_frame != kind or n_values >= BLOCK_VALUES):
                yield block_of(frames, *kind)
                frames, n_values = [], 0
            kind = kind_of_frame
            frames.append(frame)
            n_values += frame.samples * kind[1]
            n_read += frame.samples
        if frames:
            samples, rate_hz = block_of(frames, *kind)
            n_too_many = n_read - self._n_samples if self._n_samples else 0
            if 0 < n_too_many <= VORBIS_BLOCK:
                samples = samples[:-n_too_many]
            yield Block(samples, rate_hz)

    def _frames(self) -> Iterator[av.AudioFrame]:
        account = _Account(self._part, self._stream, self._container.format.name)
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = self._decoded(packet)
                except av.FFmpegError:
                    account.failed(packet)
                else:
                    account.decoded(packet, frames)
                    yield from frames
        except ERRORS as error:
            if not account.has_read_all_pages():
                raise broken(error) from error
        account.close(self.promised_s)

    def _decoded(self, packet: Any) -> list[av.AudioFrame]:
        """FFmpeg refuses a packet of PCM that ends within a frame, as the last one of a W64 does where bytes
        are added up to a multiple of 8."""
        n_too_many = packet.size % self._frame_bytes if self._frame_bytes else 0
        if n_too_many == 0:
            frames: list[av.AudioFrame] = packet.decode()
            return frames
        whole = bytes(packet)[:-n_too_many]
        return self._stream.codec_context.decode(av.Packet(whole)) if whole else []


class _Account:
    """What of a sound was decoded and what could not be, in seconds. Raises AudioUnreadable where less was
    decoded than there should be."""

    def __init__(self, part: Part, stream: Any, container: str) -> None:
        self._part = part
        self._second = float(1 / stream.time_base)  # in the units of the packets
        self._container = container
        self._decoded_s = self._damaged_s = 0.0
        self._failed_s = 0.0  # of the last packet
        self._is_all_bad = False
        self._begins_at: int | None = None
        self._ends_at = 0
        self._page_at: int | None = None  # where the page of the last packet is in the file,
        self._page: int | None = None  # and its number
        self._is_page_lost = False

    def decoded(self, packet: Any, frames: list[av.AudioFrame]) -> None:
        self._is_all_bad = False
        if packet.size:  # not the empty one at the end
            self._go_on()
        if self._container == "flac":  # several frames may come in one packet, and not all of them be decoded
            self._decoded_s += sum(frame.samples / max(1, frame.sample_rate) for frame in frames)
        else:  # the decoder cuts off what the encoder has put before and behind the sound
            self._decoded_s += self._seconds(packet)
        if packet.pts is None:
            return
        if self._container == "ogg":
            self._see_gap(packet)
        if self._begins_at is None:
            self._begins_at = packet.pts
        self._ends_at = packet.pts + (packet.duration or 0)

    def failed(self, packet: Any) -> None:
        self._is_all_bad = self._decoded_s == 0
        self._go_on()
        if self._container in HOLD_PACKETS:
            self._failed_s = self._seconds(packet)

    def close(self, promised_s: float) -> None:
        if self._is_all_bad:
            raise AudioUnreadable(f"nothing of the sound can be decoded; send {KNOWN_FORMATS}")
        check_promise(promised_s, self._decoded_s)
        if promised_s:
            self._go_on()  # else the last packet is not whole, as of a recording that was ended
        if self._container == "flac":  # its frames have numbers
            self._add_damage((self._ends_at - (self._begins_at or 0)) / self._second - self._decoded_s)

    def has_read_all_pages(self) -> bool:
        """Of an Ogg. Bytes behind its last page are an error to FFmpeg, in some streams."""
        if self._page_at is None:
            return False
        self._part.file.seek(self._page_at + 4)
        before = b""
        while piece := self._part.file.read(SEARCHED_BYTES):
            if b"OggS" in before + piece:
                return False
            before = piece[-3:]
        return True

    def _seconds(self, packet: Any) -> float:
        return (packet.duration or 0) / self._second

    def _see_gap(self, packet: Any) -> None:
        """FFmpeg drops pages of an Ogg whose checksum is wrong: their numbers are missing, and their time.
        Where no number is, whoever wrote the file had nothing to write in the meantime."""
        if packet.pos not in (None, self._page_at):
            number, self._page_at = self._page_number(packet.pos), packet.pos
            self._is_page_lost |= self._page is not None and number > self._page + 1
            self._page = number
        gap_s = (packet.pts - self._ends_at) / self._second
        if self._is_page_lost and gap_s > SLACK_S:
            self._add_damage(gap_s)

    def _page_number(self, at: int) -> int:
        file = self._part.file
        reading_at = file.tell()
        file.seek(at + 18)
        number = int.from_bytes(file.read(4), "little")
        file.seek(reading_at)
        return number

    def _go_on(self) -> None:
        """The last packet is followed by another one, or should have been whole."""
        self._add_damage(self._failed_s)
        self._failed_s = 0.0

    def _add_damage(self, seconds: float) -> None:
        self._damaged_s += seconds
        if self._damaged_s > SLACK_S:
            raise AudioUnreadable(
                f"the file is damaged: {self._damaged_s:.2f} s or more of it cannot be decoded; {SEND_WHOLE}"
            )


def _pcm_bytes(codec: str) -> int:
    """Of a sample, as the file has it; 0 of what is no PCM."""
    if not codec.startswith("pcm_"):
        return 0
    bits = re.search(r"\d+", codec)
    return int(bits[0]) // 8 if bits else 1  # pcm_alaw, pcm_mulaw


def _sound_of(container: Any) -> Any:
    """The stream that players take: of those that can be decoded the default one, else the first."""
    streams = container.streams.audio
    if not streams:
        raise AudioUnreadable("the file holds no audio stream; send one that does")
    names = [stream.codec_context.codec.name if stream.codec_context else "unknown" for stream in streams]
    known = [stream for stream, name in zip(streams, names, strict=True) if name in _KNOWN_CODECS]
    if not known:
        raise AudioUnreadable(
            f"the audio codec ({shortened(', '.join(dict.fromkeys(names)))}) is not one known here; "
            f"send {KNOWN_FORMATS}"
        )
    return next((stream for stream in known if Disposition.default in stream.disposition), known[0])


_KNOWN_CODECS = frozenset(CODECS.split(","))


def _promised_s(container: str, stream: Any, head: bytes) -> float:
    """By a header that counts frames or samples; 0 where there is none."""
    if container == "mp3":
        return _mp3_s(head)
    rate_hz = stream.codec_context.sample_rate or 1
    if container == "flac":
        return flac_samples(head) / rate_hz
    if container == "ogg" and stream.codec_context.codec.name == "flac":
        return flac_samples(b"fLaC\0\0\0\x22" + (stream.codec_context.extradata or b"")) / rate_hz
    return 0.0


_XING = re.compile(rb"\xff[\xe2-\xff].{7,40}?(?:Xing|Info)...([\x00-\xff])(....)", re.DOTALL)
_VBRI = re.compile(rb"\xff[\xe2-\xff].{34}VBRI.{10}(....)", re.DOTALL)


def _mp3_s(head: bytes) -> float:
    """By the frame that encoders put before the first one when they know how many there are."""
    if xing := _XING.match(head):
        n_frames = int.from_bytes(xing[2], "big") if xing[1][0] & 1 else 0
    elif vbri := _VBRI.match(head):
        n_frames = int.from_bytes(vbri[1], "big")
    else:
        return 0.0
    version, rate = head[1] >> 3 & 3, head[2] >> 2 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    if version == 1 or rate == 3:  # reserved
        return 0.0
    halvings = {3: 0, 2: 1, 0: 2}[version]
    return n_frames * (1152 if version == 3 else 576) * 2**halvings / (44_100, 48_000, 32_000)[rate]


# FFmpeg's sample formats: as NumPy has them, the value of zero, that of full scale.
_FORMATS: dict[str, tuple[Any, float, float]] = {
    "u8": (np.uint8, 128.0, 2.0**7),
    "s16": (np.int16, 0.0, 2.0**15),
    "s32": (np.int32, 0.0, 2.0**31),
    "s64": (np.int64, 0.0, 2.0**63),
    "flt": (np.float32, 0.0, 1.0),
    "dbl": (np.float64, 0.0, 1.0),
}


def block_of(frames: list[av.AudioFrame], sample_format: str, channels: int, rate_hz: int) -> Block:
    """Of frames of one kind. Planar formats ("p") have a plane per channel, others one with all channels."""
    is_planar = sample_format.endswith("p")
    dtype, zero, full_scale = _FORMATS[sample_format.removesuffix("p")]
    n_planes, per_plane = (channels, 1) if is_planar else (1, channels)
    n = sum(frame.samples for frame in frames)
    planes = np.empty((n_planes, n * per_plane), dtype)
    for i, plane in enumerate(planes):
        # Not by `frame.to_ndarray`, which copies several times, and of eight planes reads a ninth.
        buffers: list[Any] = [AudioPlane(frame, i) for frame in frames]
        counts = [frame.samples * per_plane for frame in frames]
        np.concatenate([np.frombuffer(b, dtype, n) for b, n in zip(buffers, counts, strict=True)], out=plane)
    samples = planes.T if is_planar else planes.reshape(n, channels)
    if full_scale != 1:
        samples = (samples - np.float32(zero)) * np.float32(1 / full_scale)
    return Block(samples.astype(np.float32, copy=False), rate_hz)


def _bound_allocations(libraries: Path) -> bool:
    """Let FFmpeg allocate no more than MAX_ALLOC_BYTES at once: an MP4 of five kilobytes can announce a
    hundred million packets, and FFmpeg makes an index of them. Whether its library was found, as in PyAV's
    wheels for Linux."""
    found = list(libraries.glob("libavutil*"))
    for library in found:
        ctypes.CDLL(str(library)).av_max_alloc(ctypes.c_size_t(MAX_ALLOC_BYTES))
    return bool(found)


IS_FFMPEG_BOUNDED = _bound_allocations(Path(av.__file__).parent.parent / "av.libs")
