"""One sound in, its samples out, by libsndfile: PCM in all its containers, and FLAC.

It is fast, and strict with a FLAC, which has checksums. Where other compressed sounds end it estimates, or
believes a header, so that those are FFmpeg's (ffmpeg.py).
"""

from collections.abc import Iterator
from contextlib import ExitStack

import soundfile

from service.errors import AudioUnreadable
from service.sound.blocks import BLOCK_VALUES, Block, Samples, broken, check_promise
from service.sound.ffmpeg import FFmpegDecoder
from service.sound.headers import SEND_WHOLE, flac_samples
from service.sound.parts import Part

ERRORS = (soundfile.SoundFileError, RuntimeError)
PCM = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})


class SoundFileDecoder:
    """header_s: seconds that the header tells, 0 where it tells none."""

    def __init__(self, part: Part, stack: ExitStack, *, is_last_resort: bool = False) -> None:
        """Raises one of ERRORS where libsndfile cannot open the sound, or would estimate its length; as a
        last resort, when nobody else can read it, it may."""
        if is_last_resort and _is_row_of_frames(part.head):
            raise RuntimeError("MPEG frames that FFmpeg refuses are none")
        self._part = part
        self._file = stack.enter_context(_ForwardSoundFile(part.file))
        self._is_flac = self._file.format == "FLAC"
        if not (self._file.subtype in PCM or is_last_resort):
            raise RuntimeError(f"{self._file.subtype} is no PCM")
        self._n_told = flac_samples(part.head) if self._is_flac else self._file.frames
        self.header_s: float = self._n_told / self._file.samplerate

    def blocks(self) -> Iterator[Block]:
        n_read, rate_hz = 0, self._file.samplerate
        try:
            while len(samples := self._read(n_read)):
                n_read += len(samples)
                yield Block(samples, rate_hz)
        except ERRORS as error:
            if not self._is_flac:
                raise broken(error) from error
            self._part.cut()
            yield from self._rest_as_told(n_read) if n_read < self._n_told else self._more_by_ffmpeg(n_read)
        else:
            check_promise(self._n_told / rate_hz, n_read / rate_hz)

    def _read(self, n_read: int, *, at_least: int = 512) -> Samples:
        """Up to a block. No more is asked for than is left by the header, for libsndfile fills the rest of
        what it is given with zeros; but so many at least, because a header may say too little, or nothing."""
        left = max(self._n_told - n_read, at_least) if self._n_told else BLOCK_VALUES
        n = min(left, max(1, BLOCK_VALUES // self._file.channels))
        samples: Samples = self._file.read(n, dtype="float32", always_2d=True)
        return samples

    def _rest_as_told(self, n_passed: int) -> Iterator[Block]:
        """Of a FLAC, what comes behind the first n_passed samples, up to where its header ends it. libsndfile
        had stumbled over what stands behind that, such as a tag, unless it does so again."""
        n_read, told_s = 0, self._n_told / self._file.samplerate
        with ExitStack() as stack:
            self._file = stack.enter_context(_ForwardSoundFile(self._part.as_stored()))
            try:
                while n_read < self._n_told and len(samples := self._read(n_read, at_least=1)):
                    n_read += len(samples)
                    if n_read > n_passed:
                        yield Block(samples[-(n_read - n_passed) :], self._file.samplerate)
            except ERRORS as error:
                raise AudioUnreadable(
                    f"the file ends early, or is damaged: its header promises {told_s:.2f} s, which cannot "
                    f"all be decoded; {SEND_WHOLE}"
                ) from error
        check_promise(told_s, n_read / self._file.samplerate)

    def _more_by_ffmpeg(self, n_passed: int) -> Iterator[Block]:
        """Of a FLAC that tells no length, or too little."""
        n_read = 0
        self._part.file.seek(0)
        with ExitStack() as stack:
            decoder = FFmpegDecoder(self._part, stack)
            decoder.promised_s = 0.0  # it was kept
            for samples, rate_hz in decoder.blocks():
                n_read += len(samples)
                if n_read > n_passed:
                    yield Block(samples[-(n_read - n_passed) :], rate_hz)


def _is_row_of_frames(head: bytes) -> bool:
    """Whether it begins as an MP3 does, but for the free format: its frames tell no bits per second, FFmpeg
    cannot read it, and its length is no estimate, for all its frames are alike."""
    return len(head) > 3 and head[0] == 0xFF and head[1] >= 0xE0 and head[2] & 0xF0 != 0


class _ForwardSoundFile(soundfile.SoundFile):
    """Read from its beginning to its end. A SoundFile that believes it is seekable seeks to where it stands
    after every block: time lost, and an error for a FLAC without a length."""

    def seekable(self) -> bool:
        return False
