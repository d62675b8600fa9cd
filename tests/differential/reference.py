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
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

SAMPLE_RATE = 16_000
MIRROR_S = 0.1
LONGEST_S = 240  # that ffmpeg may take, on a busy machine

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not installed; Debian's package is called ffmpeg"
)


@dataclass(frozen=True)
class Heard:
    """pieces: (n,) float64 mono with its rate in Hz, as decoded; the next one has another rate."""

    pieces: tuple[tuple[np.ndarray, int], ...]

    @property
    def duration_s(self) -> float:
        return sum(len(mono) / rate_hz for mono, rate_hz in self.pieces)

    @cached_property
    def samples(self) -> np.ndarray:
        """(m,) float32 at SAMPLE_RATE. A border within one rate is none to the filter."""
        return np.concatenate([resampled(*piece) for piece in self.pieces])


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
    return Heard(((samples.mean(axis=1), rate_hz),)) if len(samples) else None


def resampled(mono: np.ndarray, rate_hz: int) -> np.ndarray:
    if rate_hz != SAMPLE_RATE:
        # As many samples of both rates as there are whole periods in the mirrored edge.
        period = rate_hz // np.gcd(rate_hz, SAMPLE_RATE)
        edge = -(-int(MIRROR_S * rate_hz) // period) * period
        mirrored = np.pad(mono, edge, mode="reflect")
        cut = edge * SAMPLE_RATE // rate_hz
        n = round(len(mono) * SAMPLE_RATE / rate_hz)
        mono = soxr.resample(mirrored, rate_hz, SAMPLE_RATE, quality="HQ")[cut : cut + n]
    return np.clip(mono, -1, 1).astype(np.float32)


def joined(parts: list[Heard | None]) -> Heard:
    pieces = [piece for part in parts if part for piece in part.pieces]
    of_one_rate = [(rate, list(same)) for rate, same in groupby(pieces, key=itemgetter(1))]
    return Heard(tuple((np.concatenate([mono for mono, _ in same]), rate) for rate, same in of_one_rate))
