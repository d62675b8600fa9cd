"""An audio file in, mono samples out: decode, mix, resample, check, block by block.

    file ─► decoder ─► (n, channels) ─mean─► (n,) ─soxr─► (m,) at the model's rate, in [-1, 1]

Two decoders, tried in this order:

* libsndfile (`soundfile`): WAV (all subtypes), FLAC, Ogg Vorbis, Ogg Opus, MP3, AIFF, AU, CAF and more.
* FFmpeg (`av`), for what libsndfile cannot open: M4A/MP4/3GP, WebM/Matroska, AAC (ADTS), WMA, AMR, and Ogg,
  MP3, FLAC, WAV and AIFF files unusual enough for libsndfile to refuse. FFmpeg knows hundreds of formats,
  some of which open other files or URLs: only the CONTAINERS and CODECS listed below are opened.

Decisions:

* Channels are averaged before resampling.
* The result lies in [-1, 1]: what a float file or the resampler's overshoot holds beyond it is clipped, as
  any sound card would. A float file that reaches more than 1000 holds no full scale of 1 (integers stored
  as floats, mostly) and is refused, because clipping it would leave a square wave.
* A file that ends early or breaks off is refused: an embedding of a third of a clip looks like any other
  and would mislead. A FLAC is held to the length it tells. WAV and AIFF files that hold less than their
  header says (programs that stream write those) are read to their end, and so is all else.
* NaN and infinite samples are refused.
* Limits are seconds of the input: of its header before anything is decoded, then of what is decoded, so
  that a small file which unfolds to days of silence costs no more than the limit. A file with more than
  MAX_VALUES_PER_S values (rate x channels) may last so much shorter: decoding costs time by the value.
"""

import ctypes
import io
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from service.errors import AudioMissing, AudioTooLong, AudioTooShort, AudioUnreadable

CONTAINERS = "aac,aiff,amr,asf,caf,flac,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,ogg,wav,w64"
CODECS = (
    "aac,aac_fixed,aac_latm,alac,amrnb,amrwb,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,flac,libopus,mp2,mp2float,"
    "mp3,mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,"
    "pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,vorbis,wmav1,wmav2"
)
KNOWN_FORMATS = "WAV, FLAC, Ogg Vorbis or Opus, MP3, AIFF, M4A, AAC, WebM, WMA or AMR"
# Of the files taken from a folder; a file that is named is opened whatever its suffix.
SUFFIXES = frozenset(
    {".3gp", ".aac", ".aif", ".aifc", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov"}
    | {".mp3", ".mp4", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".w64", ".wav", ".wave", ".weba", ".webm"}
    | {".wma"}
)

FFMPEG_MAX_ALLOC = 64_000_000  # bytes in one piece: the index of two million packets, 12 hours of AAC
BLOCK_VALUES = 1 << 17  # values (frames x channels) decoded at once: 0.5 MB of float32
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_VALUES_PER_S = 384_000  # 192 kHz in stereo, or 48 kHz in 8 channels
MAX_PEAK = 1000.0  # 60 dB over full scale

Samples = NDArray[np.float32]
Source = bytes | BinaryIO | Path


@dataclass(frozen=True)
class Waveform:
    """samples: (n,) float32 mono in [-1, 1] at the rate asked for; duration_s: of the input, in seconds."""

    samples: Samples
    duration_s: float


def decode(source: Source, *, sample_rate: int, max_audio_s: float = math.inf) -> Waveform:
    """The whole clip as one array at `sample_rate` (Hz).

    Raises AudioMissing, AudioUnreadable, AudioTooShort (no samples) or AudioTooLong (over `max_audio_s`).
    """
    stream = AudioStream(source, sample_rate=sample_rate, max_audio_s=max_audio_s)
    blocks = list(stream)
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return Waveform(samples, stream.duration_s)


class AudioStream:
    """A clip as an iterator over blocks (n,) float32 mono in [-1, 1] at `sample_rate`, in bounded memory.

    `duration_s` counts the seconds of input read so far. It can be iterated once and raises the errors of
    `decode`, which joins its blocks.
    """

    def __init__(self, source: Source, *, sample_rate: int, max_audio_s: float = math.inf) -> None:
        self.duration_s = 0.0
        self._source = source
        self._sample_rate = sample_rate
        self._max_audio_s = max_audio_s

    def __iter__(self) -> Iterator[Samples]:
        with _opened(self._source) as file, ExitStack() as stack:
            decoder: _Decoder = _open_decoder(file, stack)
            _check_rate(decoder.rate_hz)
            self._max_audio_s *= min(1.0, MAX_VALUES_PER_S / (decoder.rate_hz * decoder.channels))
            _check_length(decoder.header_s, self._max_audio_s, "by its header")
            yield from _resample(self._counted(decoder), decoder.rate_hz, self._sample_rate)

    def _counted(self, decoder: "_Decoder") -> Iterator[Samples]:
        """The decoder's blocks, mono, checked against the limits and for samples that are no sound."""
        n = 0
        for block in decoder.blocks():
            n += len(block)
            self.duration_s = n / decoder.rate_hz
            _check_length(self.duration_s, self._max_audio_s, "or more")
            yield _checked(_mono(block))
        if n == 0:
            raise AudioTooShort("the file holds no samples; send at least one")


class _SoundFileDecoder:
    """libsndfile. `header_s`: seconds by the header, 0 where the header cannot be relied on."""

    def __init__(self, file: BinaryIO, stack: ExitStack) -> None:
        self._file = stack.enter_context(_ForwardSoundFile(_ForgivingFile(file)))
        self.rate_hz: int = self._file.samplerate
        self.channels: int = self._file.channels
        # The length of an MP3 without a Xing header is an estimate from its first frames, and a FLAC that was
        # streamed tells none (libsndfile then says 2^63 - 1).
        is_known = self._file.format != "MP3" and self._file.frames < 2**62
        self.header_s: float = self._file.frames / self.rate_hz if is_known else 0.0

    def blocks(self) -> Iterator[Samples]:
        n_read = 0
        try:
            while len(block := self._file.read(self._next_size(n_read), dtype="float32", always_2d=True)):
                n_read += len(block)
                yield block
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise _broken_off(error) from error
        if self._file.format == "FLAC" and n_read / self.rate_hz < self.header_s:
            raise AudioUnreadable(
                f"the file ends early: its header promises {self.header_s:.2f} s and only "
                f"{n_read / self.rate_hz:.2f} s could be read; send the whole file"
            )

    def _next_size(self, n_read: int) -> int:
        """Frames to ask for: no more than are left by the header, for libsndfile fills the rest of what it is
        given with zeros, but always some, because a header may say too little."""
        left = max(self._file.frames - n_read, 512)
        return max(1, min(left, BLOCK_VALUES // self._file.channels))


class _ForwardSoundFile(soundfile.SoundFile):
    """Read from its beginning to its end. A SoundFile that believes it is seekable seeks to where it stands
    after every block: time lost, and an error for a FLAC without a length."""

    def seekable(self) -> bool:
        return False


class _ForgivingFile:
    """A file whose impossible seeks, which broken headers ask for, move nothing: an exception cannot pass
    through libsndfile, and Python would print its traceback for each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = file.read
        self.tell = file.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with suppress(ValueError, OSError):
            self._file.seek(offset, whence)
        return self._file.tell()


class _FFmpegDecoder:
    """FFmpeg, restricted to CONTAINERS and CODECS; the first audio stream of the file."""

    def __init__(self, file: BinaryIO, stack: ExitStack) -> None:
        lists = {"format_whitelist": CONTAINERS, "codec_whitelist": CODECS, "protocol_whitelist": "none"}
        self._container = stack.enter_context(
            av.open(file, "r", container_options=lists, metadata_errors="replace")
        )
        if not self._container.streams.audio:
            raise AudioUnreadable("the file holds no audio stream; send one that does")
        self._stream = self._container.streams.audio[0]
        context = self._stream.codec_context
        if context is None or context.codec.name not in CODECS.split(","):
            raise AudioUnreadable(f"the audio codec is not one known here; send {KNOWN_FORMATS}")
        self.rate_hz: int = context.sample_rate
        self.channels: int = max(1, context.layout.nb_channels)
        duration_us = self._container.duration  # None for what a browser records
        self.header_s: float = duration_us / 1e6 if duration_us else 0.0

    def blocks(self) -> Iterator[Samples]:
        n_read = 0
        try:
            for frame in self._container.decode(self._stream):
                if frame.sample_rate != self.rate_hz:
                    raise AudioUnreadable(
                        f"the sample rate changes from {self.rate_hz} to {frame.sample_rate} Hz within it"
                    )
                n_read += frame.samples
                yield _float_frame(frame)
        except (av.FFmpegError, ValueError, OSError) as error:
            raise _broken_off(error) from error


def _bound_allocations(libraries: Path) -> bool:
    """Let FFmpeg allocate no more than FFMPEG_MAX_ALLOC at once: an MP4 of five kilobytes can announce a
    hundred million packets, and FFmpeg makes an index of them. Whether its library was found, as in PyAV's
    wheels for Linux."""
    found = list(libraries.glob("libavutil*"))
    for library in found:
        ctypes.CDLL(str(library)).av_max_alloc(ctypes.c_size_t(FFMPEG_MAX_ALLOC))
    return bool(found)


IS_FFMPEG_BOUNDED = _bound_allocations(Path(av.__file__).parent.parent / "av.libs")

_Decoder = _SoundFileDecoder | _FFmpegDecoder


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    """The source as a seekable file, at its beginning; a path is closed again."""
    if isinstance(source, Path):
        try:
            file: BinaryIO = source.open("rb")
        except OSError as error:
            raise AudioMissing(f"the file cannot be opened: {error.strerror}") from error
        with file:
            yield _not_empty(file)
    else:
        yield _not_empty(io.BytesIO(source) if isinstance(source, bytes) else source)


def _not_empty(file: BinaryIO) -> BinaryIO:
    if file.seek(0, io.SEEK_END) == 0:
        raise AudioMissing(f"the file is empty (0 bytes); send {KNOWN_FORMATS}")
    file.seek(0)
    return file


def _open_decoder(file: BinaryIO, stack: ExitStack) -> _Decoder:
    try:
        return _SoundFileDecoder(file, stack)
    except (soundfile.SoundFileError, RuntimeError):
        file.seek(0)
    try:
        return _FFmpegDecoder(file, stack)
    except (av.FFmpegError, ValueError, OSError) as error:
        raise AudioUnreadable(f"the file is not audio in a known format; send {KNOWN_FORMATS}") from error


def _broken_off(error: Exception) -> AudioUnreadable:
    reason = str(error).removeprefix("Error : ").rstrip(".") or type(error).__name__
    return AudioUnreadable(
        f"the file is broken or ends early, its decoder says: {reason}; send the whole file"
    )


def _check_rate(rate_hz: float) -> None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioUnreadable(
            f"the sample rate is {rate_hz} Hz; send one between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz"
        )


def _check_length(seconds: float, max_audio_s: float, how_known: str) -> None:
    if seconds > max_audio_s:
        raise AudioTooLong(
            f"the clip lasts {seconds:.1f} s {how_known}, at most {max_audio_s:g} s are accepted; send a part"
        )


def _mono(block: Samples) -> Samples:
    """(n, channels) -> (n,), the mean over channels."""
    channels = block.shape[1]
    if channels == 1:
        return block[:, 0]
    # As a product with a vector it is several times faster than mean(axis=1) over so short an axis.
    with np.errstate(invalid="ignore"):  # infinite samples, which are refused
        return block @ np.full(channels, 1 / channels, dtype=np.float32)


def _checked(mono: Samples) -> Samples:
    peak = np.abs(mono).max(initial=0.0)
    if not np.isfinite(peak):
        raise AudioUnreadable("the file holds NaN or infinite samples; send finite ones in [-1, 1]")
    if peak > MAX_PEAK:
        raise AudioUnreadable(f"the samples reach {peak:g}; a file of floats must be scaled to [-1, 1]")
    return mono


def _resample(blocks: Iterator[Samples], rate_hz: int, sample_rate: int) -> Iterator[Samples]:
    """Band-limited to the new rate (soxr, "HQ": 20 bits). Blocks go through one filter, so their borders
    leave no trace."""
    if rate_hz == sample_rate:
        yield from map(_clipped, blocks)
        return
    resampler = soxr.ResampleStream(rate_hz, sample_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield _clipped(resampler.resample_chunk(np.ascontiguousarray(block)))
    yield _clipped(resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True))


def _clipped(samples: Samples) -> Samples:
    return np.clip(samples, -1.0, 1.0)


# FFmpeg's integer sample formats, planar ("p") or packed: the value of zero and of full scale.
_ZERO_AND_SCALE = {"u8": (128.0, 2.0**7), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "s64": (0.0, 2.0**63)}


def _float_frame(frame: av.AudioFrame) -> Samples:
    """One decoded frame as (n, channels) float32 in [-1, 1]."""
    values = frame.to_ndarray()
    samples = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    name = frame.format.name.removesuffix("p")
    if name in _ZERO_AND_SCALE:
        zero, scale = _ZERO_AND_SCALE[name]
        samples = (samples - np.float32(zero)) / np.float32(scale)
    return samples.astype(np.float32, copy=False)
