"""An audio file in, mono samples out: decode, mix, resample, check, block by block.

    file ─► parts ─► decoder ─► (n, channels) ─mean─► (n,) ─soxr─► (m,) at the model's rate, in [-1, 1]

    parts.py, headers.py    the sounds in the file, and what their headers tell
    wav.py                  16-bit PCM in a plain WAV
    libsndfile.py           PCM in all other containers, FLAC
    ffmpeg.py               MP3, Ogg, M4A, AAC, WebM, WMA, AMR, and what libsndfile refuses
    resampling.py           one rate for all

Decisions:

* An answer is about the whole sound: all that the file holds of it, whatever its header says. Sounds that
  follow each other in one file (chained Ogg, what `cat` joins) are one. Channels and rate may change.
* A file that tells its length and holds less is refused, and so is one of which more than a tenth of a second
  is damaged: an embedding of a third of a clip looks like any other and would mislead. A file that tells no
  length is read to its end; a last frame that is not whole is passed over.
* Of several audio tracks the default one is taken, if it can be decoded.
* Channels are averaged before resampling. Where they cancel each other (one of two wires is reversed), the
  loudest of them is taken instead: their average is silence.
* The result lies in [-1, 1]: what a float file or the resampler's overshoot holds beyond it is clipped, as
  any sound card would. A float file that reaches more than 1000 holds no full scale of 1 (integers stored
  as floats, mostly) and is refused, because clipping it would leave a square wave.
* NaN and infinite samples are refused.
* Limits are seconds of the input: of its header, where that is no estimate, before anything is decoded, then
  of what is decoded, so that a small file which unfolds to days of silence costs no more than the limit. A
  file with more than MAX_VALUES_PER_S values (rate x channels) may last so much shorter: decoding costs time
  by the value.
"""

import io
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.errors import AudioMissing, AudioTooLong, AudioTooShort, AudioUnreadable
from service.sound import ffmpeg, libsndfile
from service.sound.blocks import Block, Samples
from service.sound.ffmpeg import FFmpegDecoder
from service.sound.formats import KNOWN_FORMATS
from service.sound.libsndfile import SoundFileDecoder
from service.sound.parts import Part, parts
from service.sound.resampling import resampled
from service.sound.wav import WavDecoder, wav_decoder

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_VALUES_PER_S = 384_000  # 192 kHz in stereo, or 48 kHz in 8 channels
MAX_PEAK = 1000.0  # 60 dB over full scale
CANCELLED = 1e-3  # -30 dB of the channels' power is left in their mean; 64 channels of noise leave -18 dB
AUDIBLE = 1e-3  # of full scale (-60 dB): the amplitude of a block that shows how its channels go together
DECIDED_BY = 1024  # samples of each channel, spread over the block

SOUNDFILE_KINDS = frozenset({"WAV", "AIFF", "AU", "CAF", "FLAC"})  # of W64 it takes what follows for samples
WEBM_CLUSTER = re.compile(rb"\x1f\x43\xb6\x75.{1,8}\xe7", re.DOTALL)  # with its time

# What a decoder reads from: the bytes of an encoded file, the file itself, seekable, or its path.
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
        with _opened(self._source) as file:
            yield from map(clipped, resampled(self._mono(file), self._sample_rate))

    def _mono(self, file: BinaryIO) -> Iterator[tuple[Samples, int]]:
        """The decoders' blocks as (samples (n,), rate), within the limits and of sound."""
        mixer = _Mixer()
        for samples, rate_hz in self._decoded(file):
            if len(samples) == 0:
                continue
            _check_rate(rate_hz)
            self.duration_s += len(samples) / rate_hz
            self._check_length(self.duration_s, "or more", rate_hz * samples.shape[1])
            yield checked(mixer.mono(samples)), rate_hz
        if self.duration_s == 0:
            raise AudioTooShort("the file holds no samples; send at least one")

    def _decoded(self, file: BinaryIO) -> Iterator[Block]:
        for part in parts(file):
            with ExitStack() as stack:
                decoder = _open_decoder(part, stack)
                if decoder is None:
                    if self.duration_s > 0 and part.is_last:
                        return  # broken off in its header: there is no sound in it
                    raise _unreadable(part)
                self._check_length(self.duration_s + decoder.header_s, "by its header")
                yield from decoder.blocks()

    def _check_length(self, seconds: float, how_known: str, values_per_s: int = 0) -> None:
        most_s = self._max_audio_s * min(1.0, MAX_VALUES_PER_S / max(1, values_per_s))
        if seconds > most_s:
            raise AudioTooLong(
                f"the clip lasts {seconds:.1f} s {how_known}, at most {most_s:g} s are accepted; send a part"
            )


def size_of(source: Source) -> int:
    """Bytes of an encoded clip. A file is left at its end; its decoder goes back to the beginning."""
    if isinstance(source, bytes):
        return len(source)
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)


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


def _open_decoder(part: Part, stack: ExitStack) -> WavDecoder | SoundFileDecoder | FFmpegDecoder | None:
    """The first that can read it; libsndfile as a last resort, for it knows formats that FFmpeg does not."""
    if part.kind == "WAV" and (decoder := wav_decoder(part)):
        return decoder
    if part.kind in SOUNDFILE_KINDS:
        with suppress(*libsndfile.ERRORS):
            part.file.seek(0)
            return SoundFileDecoder(part, stack)
    with suppress(*ffmpeg.ERRORS):
        part.file.seek(0)
        return FFmpegDecoder(part, stack)
    if part.kind in SOUNDFILE_KINDS or not part.kind:
        with suppress(*libsndfile.ERRORS):
            part.file.seek(0)
            return SoundFileDecoder(part, stack, is_last_resort=True)
    return None


def _unreadable(part: Part) -> AudioUnreadable:
    if part.kind:
        return AudioUnreadable(
            f"the file begins as {part.kind} and cannot be read: it is damaged, or of a rare sort; "
            "send it as WAV or FLAC"
        )
    if WEBM_CLUSTER.search(part.head):
        return AudioUnreadable(
            "the file is a later piece of a WebM recording; send the recording from its beginning"
        )
    return AudioUnreadable(f"the file is not audio in a known format; send {KNOWN_FORMATS}")


class _Mixer:
    """(n, channels) -> (n,), the mean over channels; the loudest of them where they cancel each other in the
    first block that is to be heard."""

    def __init__(self) -> None:
        self._weights = np.empty(0, dtype=np.float32)
        self._is_decided = False

    def mono(self, block: Samples) -> Samples:
        channels = block.shape[1]
        if channels == 1:
            return block[:, 0]
        if channels != len(self._weights):
            self._weights = np.full(channels, 1 / channels, dtype=np.float32)
            self._is_decided = False
        with np.errstate(invalid="ignore", over="ignore"):  # of infinite samples, which are refused
            if not self._is_decided:
                self._decide(block[:: 1 + len(block) // DECIDED_BY])
            # As a product with a vector it is several times faster than mean(axis=1) over so short an axis.
            return block @ self._weights

    def _decide(self, sample: Samples) -> None:
        powers = np.einsum("nc,nc->c", sample, sample) / len(sample)
        self._is_decided = bool(powers.max() > AUDIBLE**2)
        if self._is_decided and np.square(sample @ self._weights).mean() < CANCELLED * powers.mean():
            self._weights = np.zeros(len(powers), dtype=np.float32)
            self._weights[powers.argmax()] = 1


def _check_rate(rate_hz: float) -> None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioUnreadable(
            f"the sample rate is {rate_hz} Hz; send one between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz"
        )


def checked(mono: Samples, what: str = "file") -> Samples:
    peak = np.abs(mono).max(initial=0.0)
    if not np.isfinite(peak):
        raise AudioUnreadable(f"the {what} holds NaN or infinite samples; send finite ones in [-1, 1]")
    if peak > MAX_PEAK:
        raise AudioUnreadable(f"the samples reach {peak:g}; a {what} of floats must be scaled to [-1, 1]")
    return mono


def clipped(samples: Samples) -> Samples:
    return np.clip(samples, -1.0, 1.0)
