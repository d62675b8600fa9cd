"""What is sent: the sounds of tests/fixtures in, names and files out."""

import io
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"

WORD = FIXTURES / "keyword_yes_16k_mono_pcm16.wav"  # exactly 1 s, 16 kHz, 16 bit: 32 KB, nothing to resample
SPEECH = FIXTURES / "speech_16k_mono.flac"  # 5 s
BIRDS = FIXTURES / "birds_30s_16k_mono.opus"


@cache
def fixtures() -> tuple[tuple[str, bytes], ...]:
    """Names and contents of the good ones."""
    paths = [path for path in sorted(FIXTURES.rglob("*.*")) if path.parent.name != "invalid"]
    paths = [path for path in paths if path.is_file() and path.suffix not in (".csv", ".md")]
    return tuple((path.name, path.read_bytes()) for path in paths)


@cache
def word() -> bytes:
    """A spoken word of one second, a good WAV."""
    return WORD.read_bytes()


def encoded(samples: np.ndarray, rate_hz: int, container: str, subtype: str | None = None) -> bytes:
    """samples: (n,) or (n, channels) as a file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, subtype, format=container)
    return file.getvalue()
