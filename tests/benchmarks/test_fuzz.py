"""Damaged files against a server of its own process. `python -m benchmarks.fuzz` sends ten thousand."""

import os

from benchmarks import fuzz

# A few hundred by default; FUZZ_FILES=10000 for all.
N_FILES = int(os.environ.get("FUZZ_FILES", "200"))


def test_a_damaged_file_is_embedded_or_refused_and_harms_nobody() -> None:
    report = fuzz.run(N_FILES, seed=2)
    assert report.faults == []
    assert report.counts.total() == N_FILES
    assert report.counts["200"] > 0.2 * N_FILES  # damage is not all there is
    assert report.counts["audio_unreadable"] > 0.2 * N_FILES
    assert report.peak_mb < 600
