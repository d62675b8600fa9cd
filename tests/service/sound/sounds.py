"""Small sounds in files of all kinds, for the tests of this folder."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

FIXTURES = Path(__file__).parents[2] / "fixtures"
WILD = Path(__file__).parents[2] / "wild"


def sine(frequency_hz: float, rate_hz: int, duration_s: float = 1.0, amplitude: float = 0.5) -> np.ndarray:
    times_s = np.arange(int(rate_hz * duration_s)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * frequency_hz * times_s)).astype(np.float32)


def wav(samples: np.ndarray, rate_hz: int, subtype: str = "FLOAT", container: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, subtype=subtype, format=container)
    return file.getvalue()


def flac(samples: np.ndarray, rate_hz: int) -> bytes:
    return wav(samples, rate_hz, "PCM_16", "FLAC")


def encoded(
    container: str,
    codec: str,
    samples: np.ndarray,
    rate_hz: int,
    *,
    layout: str = "stereo",
    video: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """samples (n,) in every channel, by FFmpeg; with a picture before the sound if asked for."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=options or {}) as out:
        if video:
            picture = out.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        sound = out.add_stream(codec, rate=rate_hz, layout=layout)
        sound.bit_rate = 64_000
        channels = av.AudioLayout(layout).nb_channels
        interleaved = np.repeat(samples, channels)[None]
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
        frame.sample_rate = rate_hz
        sound.codec_context.open()
        resampler = av.AudioResampler(
            sound.format, layout, rate_hz, frame_size=sound.codec_context.frame_size or 1024
        )
        if video:
            image = av.VideoFrame(64, 64, "yuv420p")
            image.pts, image.time_base = 0, Fraction(1, 25)
            out.mux([*picture.encode(image), *picture.encode(None)])
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    return file.getvalue()


def without_length(flac_file: bytes) -> bytes:
    """As a program writes it that streams: the header says "unknown" for the number of samples."""
    return flac_file[:21] + bytes([flac_file[21] & 0xF0]) + bytes(4) + flac_file[26:]


def with_size(file: bytes, chunk: bytes, size: int, form: str = "<I") -> bytes:
    """The file, with another size told for its first chunk of that name."""
    changed = bytearray(file)
    struct.pack_into(form, changed, changed.index(chunk) + len(chunk), size)
    return bytes(changed)


def loudest_hz(samples: np.ndarray, rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate_hz / len(samples))


def ogg_pages(file: bytes) -> list[bytes]:
    pages, at = [], 0
    while at < len(file):
        n = file[at + 26]
        length = 27 + n + sum(file[at + 27 : at + 27 + n])
        pages.append(file[at : at + length])
        at += length
    return pages
