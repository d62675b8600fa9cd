"""Files in the shapes in which people's files arrive, and how long each sounds.

wild.csv holds what ffmpeg 5.1 makes of them. Where ours is another answer, the reason stands here.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.errors import AudioUnreadable
from service.sound.audio import decode

from .sounds import WILD

ROOT = Path(__file__).parents[3]
ROWS = list(csv.DictReader((WILD / "wild.csv").read_text().splitlines()))
FFMPEG_S = {row["file"]: float(row["ffmpeg_duration_s"]) for row in ROWS}

# What ffmpeg loses, or does not read at all: seconds that the file was made with.
MORE_S = {
    "flac_concatenated.flac": 3.0,  # of three parts it hears two
    "webm_concatenated_with_durations.webm": 3.0,
    "wav_concatenated.wav": 3.0,  # of two the first
    "rf64_ds64_zero.wav": 3.0,  # a header that was never completed
    "m_freeformat.mp3": 3.06,
    "s_1_samples.wav": 1 / 16_000,
}
REFUSED = {
    # Headers that promise more than there is, of which ffmpeg gives what there is.
    "mp3_truncated_info_promises_3s.mp3": r"promises 3\.03 s and only 1\.52 s could be read",
    "mp4_fast_truncated.m4a": "promises 30432 bytes of sound and 17712 are there",
    "webm_truncated_header_says_3s.webm": "promises 20587 bytes of sound and 10269 are there",
    # What is no sound to ffmpeg either.
    "m4a_truncated_before_moov.m4a": "promises 30432 bytes of sound and 15863 are there",
    "n_bom_random.bin": "not audio in a known format",
    "n_html.wav": "not audio in a known format",
    "n_utf16.txt": "not audio in a known format",
    "w_without_header.webm": "later piece of a WebM recording",
}
# PCM and FLAC of one and the same three seconds.
THE_SAME = [
    "aiff_id3v2_40000_bytes_before.aiff",
    "au_data_size_0.au",
    "flac_header_says_third.flac",
    "k.sph",
    "k_pcm_s16le.aifc",
    "rf64_ds64_zero.wav",
    "wav_24in4_plain.wav",
    "wav_arecord_pipe.wav",
    "wav_avaudiofile_crash_data_size_0.wav",
    "wav_ext_24in32_leftjust.wav",
    "wav_id3v2_40000_bytes_before.wav",
    "x_caf_datam1.caf",
]


def test_every_file_is_listed() -> None:
    assert {path.name for path in WILD.iterdir()} == {*FFMPEG_S, "wild.csv", "README.md"}
    assert {*MORE_S, *REFUSED, *THE_SAME} <= FFMPEG_S.keys()
    assert {file for file, seconds in FFMPEG_S.items() if seconds == 0} <= {*MORE_S, *REFUSED}


@pytest.mark.parametrize("file", sorted(FFMPEG_S.keys() - REFUSED.keys()))
def test_a_wild_file_is_heard_whole(file: str) -> None:
    waveform = decode(WILD / file, sample_rate=16_000, max_audio_s=60)
    assert waveform.duration_s == pytest.approx(MORE_S.get(file, FFMPEG_S[file]), abs=0.05)
    assert len(waveform.samples) == pytest.approx(16_000 * waveform.duration_s, abs=2)
    assert waveform.samples.any()


@pytest.mark.parametrize("file", REFUSED)
def test_a_wild_file_that_is_refused_is_told_why(file: str) -> None:
    with pytest.raises(AudioUnreadable, match=REFUSED[file]):
        decode(WILD / file, sample_rate=16_000)


@pytest.mark.parametrize("file", THE_SAME)
def test_the_same_sound_is_the_same_in_every_shape(file: str) -> None:
    """Up to a step or two of 16 bits, by which the programs that made them round."""
    expected = decode(WILD / "wav_LIST_after.wav", sample_rate=16_000).samples
    samples = decode(WILD / file, sample_rate=16_000).samples
    assert len(samples) == len(expected) == 48_000
    np.testing.assert_allclose(samples, expected, atol=2**-14)


DAMAGED = """
import collections, json
from benchmarks.soak.damaged import damaged
from service.errors import ViolaError
from service.sound.audio import decode

def answer(file):
    try:
        return f"{len(decode(file, sample_rate=16_000, max_audio_s=60).samples) > 0}"
    except ViolaError as error:
        return error.code if len(str(error)) < 500 else "a long sentence"

print(json.dumps(collections.Counter(answer(damaged(number)) for number in range(1_000))))
"""


def test_a_thousand_damaged_files_do_not_end_the_process() -> None:
    """Any of the files above and of the fixtures, with bytes changed, cut off or from another file. In a
    process of its own, to see it end."""
    command = [sys.executable, "-c", DAMAGED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert sum(counts.values()) == 1_000
    assert counts.keys() <= {"True", "audio_missing", "audio_too_short", "audio_too_long", "audio_unreadable"}
    assert min(counts["True"], counts["audio_unreadable"]) > 100
