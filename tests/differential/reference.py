"""A file in, what ffmpeg hears in it out: an independent answer to what the whole sound is.

    file ─ffmpeg─► (n, channels) at the file's own rate ─mean─► (n,) ─mirrored, soxr─► (m,) at 16 kHz

ffmpeg is the system's command, of another version than the libraries in PyAV's wheel. It decodes all channels
at the file's own rate: how it mixes (5.1 by weights of its own) and resamples (by a filter of its own) is its
taste, and not what is in the file. Both are done here, each over the whole clip at once.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

SAMPLE_RATE = 16_000
MIRROR_S = 0.1
LONGEST_S = 60  # that ffmpeg may take

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not installed; Debian's package is called ffmpeg"
)


@dataclass(frozen=True)
class Heard:
    """samples: (n,) float32 at SAMPLE_RATE; duration_s: as decoded."""

    samples: np.ndarray
    duration_s: float


def ffmpeg(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=LONGEST_S, check=False)


def heard_by_ffmpeg(path: Path) -> Heard | None:
    """None where ffmpeg opens nothing, or finds no sample."""
    with tempfile.TemporaryDirectory() as folder:
        decoded = Path(folder) / "decoded.wav"
        ffmpeg("-i", path, "-vn", "-c:a", "pcm_f32le", decoded)
        if not decoded.is_file():
            return None
        samples, rate_hz = soundfile.read(decoded, dtype="float64", always_2d=True)
    return heard(samples.mean(axis=1), rate_hz) if len(samples) else None


def heard(mono: np.ndarray, rate_hz: int) -> Heard:
    """(n,) at its own rate, resampled."""
    duration_s = len(mono) / rate_hz
    if rate_hz != SAMPLE_RATE:
        # As many samples of both rates as there are whole periods in the mirrored edge.
        period = rate_hz // np.gcd(rate_hz, SAMPLE_RATE)
        edge = -(-int(MIRROR_S * rate_hz) // period) * period
        mirrored = np.pad(mono, edge, mode="reflect")
        cut = edge * SAMPLE_RATE // rate_hz
        n = round(len(mono) * SAMPLE_RATE / rate_hz)
        mono = soxr.resample(mirrored, rate_hz, SAMPLE_RATE, quality="HQ")[cut : cut + n]
    return Heard(np.clip(mono, -1, 1).astype(np.float32), duration_s)


def joined(parts: list[Heard]) -> Heard:
    samples = np.concatenate([part.samples for part in parts])
    return Heard(samples, sum(part.duration_s for part in parts))
