"""Sounds in every shape that ffmpeg can write, made from one sound: codecs, containers, rates, channels.

Each is written into a file, with a header that is completed at the end, and into a pipe, where it cannot be.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from tests.differential.reference import ffmpeg

FIXTURES = Path(__file__).parents[1] / "fixtures"
SPEECH = FIXTURES / "speech_16k_mono.flac"
LASTS_S = 1.1

LOW, MIDDLE, HIGH = (
    (8_000, 11_025, 12_000, 16_000),
    (22_050, 24_000, 32_000, 44_100, 48_000),
    (96_000, 192_000),
)
ALL = (*LOW, *MIDDLE, *HIGH)
MPEG = (*LOW, *MIDDLE)
OPUS = (8_000, 12_000, 16_000, 24_000, 48_000)
EIGHT = (1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Format:
    """How to write it. arguments: of ffmpeg; tells_length: whether a file's header says how much sound there
    is; tells_piped: the same for one that was written into a pipe, None where it cannot be; is_read_piped:
    whether ffmpeg reads that again."""

    name: str
    suffix: str
    muxer: str
    arguments: str
    rates: tuple[int, ...] = ALL
    channels: tuple[int, ...] = EIGHT
    tells_length: bool = True
    tells_piped: bool | None = False
    is_read_piped: bool = True

    @property
    def is_row_of_frames(self) -> bool:
        """Without a header of the whole: what is joined is one row, with the silence that encoders put before
        and behind a sound in between."""
        return self.muxer in ("mp3", "mp2", "adts")


PCM = ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_alaw")
MONO_STEREO = (1, 2)

FORMATS = [
    *(Format(f"wav_{codec}", "wav", "wav", f"-c:a {codec}") for codec in PCM),
    Format("wav_adpcm_ms", "wav", "wav", "-c:a adpcm_ms", channels=MONO_STEREO),
    Format("wav_adpcm_ima", "wav", "wav", "-c:a adpcm_ima_wav", channels=MONO_STEREO),
    Format("wav_mp3", "wav", "wav", "-c:a libmp3lame -b:a 64k", MPEG, MONO_STEREO),
    Format("wav_gsm", "wav", "wav", "-c:a libgsm_ms", (8_000,), (1,)),
    Format("rf64", "wav", "wav", "-c:a pcm_s16le -rf64 always", is_read_piped=False),
    Format("w64", "w64", "w64", "-c:a pcm_s16le", is_read_piped=False),
    Format("aiff", "aiff", "aiff", "-c:a pcm_s16be", is_read_piped=False),
    Format("au", "au", "au", "-c:a pcm_s16be"),
    Format("caf", "caf", "caf", "-c:a pcm_s16be"),
    Format("caf_alac", "caf", "caf", "-c:a alac", channels=MONO_STEREO, tells_piped=None),
    Format("flac", "flac", "flac", "-c:a flac"),
    Format("flac_24", "flac", "flac", "-c:a flac -sample_fmt s32"),
    Format("ogg_flac", "oga", "oga", "-c:a flac", tells_length=False),
    Format("mka_flac", "mka", "matroska", "-c:a flac"),
    Format("mp4_flac", "mp4", "mp4", "-c:a flac -strict -2", tells_piped=None),
    Format("vorbis", "ogg", "ogg", "-c:a libvorbis -q:a 3", tells_length=False),
    Format("webm_vorbis", "webm", "webm", "-c:a libvorbis -q:a 3"),
    Format("opus", "opus", "opus", "-c:a libopus -b:a 48k", OPUS, tells_length=False),
    Format(
        "opus_silk", "opus", "opus", "-c:a libopus -b:a 12k -application voip", OPUS, (1,), tells_length=False
    ),
    Format("webm_opus", "webm", "webm", "-c:a libopus -b:a 48k", OPUS),
    Format("mka_opus", "mka", "matroska", "-c:a libopus -b:a 48k", OPUS),
    Format("mka_aac", "mka", "matroska", "-c:a aac", (*MPEG, 96_000), (1, 2, 6)),
    Format("mka_mp3", "mka", "matroska", "-c:a libmp3lame", MPEG, MONO_STEREO),
    Format("mka_pcm", "mka", "matroska", "-c:a pcm_s16le"),
    Format("mp3_cbr", "mp3", "mp3", "-c:a libmp3lame -b:a 64k", MPEG, MONO_STEREO),
    Format("mp3_vbr", "mp3", "mp3", "-c:a libmp3lame -q:a 4", MPEG, MONO_STEREO),
    Format("mp3_abr", "mp3", "mp3", "-c:a libmp3lame -abr 1 -b:a 48k", MPEG, MONO_STEREO),
    Format("mp2", "mp2", "mp2", "-c:a mp2 -b:a 64k", (16_000, *MIDDLE), MONO_STEREO, tells_length=False),
    Format("adts", "aac", "adts", "-c:a aac", (*MPEG, 96_000), (1, 2, 3, 6), tells_length=False),
    Format("m4a", "m4a", "ipod", "-c:a aac", (*MPEG, 96_000), (1, 2, 3, 6), tells_piped=None),
    Format("m4a_alac", "m4a", "ipod", "-c:a alac", (16_000, *MIDDLE, *HIGH), MONO_STEREO, tells_piped=None),
    Format(
        "m4a_faststart", "m4a", "ipod", "-c:a aac -movflags +faststart", MPEG, MONO_STEREO, tells_piped=None
    ),
    Format("mp4_mp3", "mp4", "mp4", "-c:a libmp3lame", MPEG[3:], MONO_STEREO, tells_piped=None),
    Format("mp4_opus", "mp4", "mp4", "-c:a libopus -strict -2", OPUS, MONO_STEREO, tells_piped=None),
    Format(
        "mp4_fragments",
        "mp4",
        "mp4",
        "-c:a aac -movflags frag_keyframe+empty_moov -frag_duration 300000",
        MPEG,
        MONO_STEREO,
        tells_length=False,
    ),
    Format("mov_pcm", "mov", "mov", "-c:a pcm_s16le", tells_piped=None),
    Format("3gp_aac", "3gp", "3gp", "-c:a aac", MPEG, MONO_STEREO, tells_piped=None),
    Format("wma1", "wma", "asf", "-c:a wmav1 -b:a 64k", MPEG, MONO_STEREO),
    Format("wma2", "wma", "asf", "-c:a wmav2 -b:a 64k", MPEG, MONO_STEREO),
]
BY_NAME = {format_.name: format_ for format_ in FORMATS}


class Family:
    """Files of all formats, made in a folder when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def written(self, format_: Format, rate_hz: int, channels: int, piped: bool) -> Path | None:
        """The file; None where ffmpeg does not write it, for a format has its own limits."""
        pipe = "_piped" if piped else ""
        path = self._folder / f"{format_.name}_{rate_hz}_{channels}{pipe}.{format_.suffix}"
        if not path.exists():
            source = self._source(rate_hz, channels)
            to = "pipe:1" if piped else path
            done = ffmpeg("-i", source, *format_.arguments.split(), "-f", format_.muxer, to)
            if done.returncode != 0:
                path.unlink(missing_ok=True)
                return None
            if piped:
                path.write_bytes(done.stdout)
        return path

    def kept(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path

    def _source(self, rate_hz: int, channels: int) -> Path:
        path = self._folder / f"source_{rate_hz}_{channels}.wav"
        if not path.exists():
            soundfile.write(path, sound(rate_hz, channels), rate_hz, subtype="FLOAT")
        return path


def sound(rate_hz: int, channels: int) -> np.ndarray:
    """(n, channels): speech, with a rising tone and soft noise of its own in each channel, so that a channel,
    a beginning or an end that is lost changes the embedding."""
    speech, speech_hz = soundfile.read(SPEECH, stop=int(LASTS_S * 16_000))
    n = int(LASTS_S * rate_hz)
    divisor = np.gcd(rate_hz, speech_hz)
    speech = resample_poly(speech, rate_hz // divisor, speech_hz // divisor)[:n]
    seconds = np.arange(n) / rate_hz
    random = np.random.default_rng(int(hashlib.md5(f"{rate_hz}{channels}".encode()).hexdigest()[:8], 16))
    columns = []
    for channel in range(channels):
        tone = np.sin(2 * np.pi * (200 + 150 * channel + 600 * seconds) * seconds)
        noise = random.normal(scale=0.01, size=n)
        columns.append(0.5 / (1 + channel / 4) * speech + 0.1 * tone + noise)
    return np.clip(np.stack(columns, axis=1), -1, 1)
