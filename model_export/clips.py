"""Real sounds, to calibrate and to verify with: a folder or a CSV in, waveforms out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.errors import ExportError
from service.bulk.listing import ListingError, listed_paths
from service.bulk.offline import audio_files
from service.errors import ViolaError
from service.sound.audio import decode

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
LONGEST_S = 10.0  # of each clip, the rest is left out: many clips tell more than a long one
SEED = 0

Samples = NDArray[np.float32]


def read_clips(source: Path, *, sample_rate: int, at_most: int) -> list[Samples]:
    """At most so many waveforms (n,) float32 in [-1, 1], drawn at random, the same for the same source.

    `source`: a folder (with those below it), or a CSV with a column `file_name` or `path`, relative to it.
    Files that cannot be decoded are passed over. Raises ExportError where nothing is left.
    """
    paths = list(dict.fromkeys(_paths(source)))
    clips: list[Samples] = []
    for index in np.random.default_rng(SEED).permutation(len(paths)):
        if len(clips) == at_most:
            break
        try:
            samples = decode(paths[index], sample_rate=sample_rate).samples
        except ViolaError:
            continue
        clips.append(samples[: int(LONGEST_S * sample_rate)])
    if not clips:
        raise ExportError(
            f"{source} holds no audio that can be decoded: real clips are needed to verify with."
        )
    return clips


def _paths(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield from audio_files([source])
        return
    if not source.is_file():
        raise ExportError(f"{source} is neither a folder of audio files nor a CSV file.")
    try:
        yield from (path for path, _ in listed_paths(source))
    except ListingError as error:
        raise ExportError(f"{error}.") from error
