from pathlib import Path

import numpy as np
import pytest

from model_export.clips import FIXTURES, read_clips
from model_export.errors import ExportError


def test_a_folder_gives_its_clips_and_passes_over_what_is_none() -> None:
    clips = read_clips(FIXTURES, sample_rate=16_000, at_most=100)
    assert len(clips) == 33  # of 38 files, five of them invalid
    assert max(map(len, clips)) == 160_000, "at most 10 s of the 30 s of birds"


def test_the_same_source_gives_the_same_draw() -> None:
    first, second = (read_clips(FIXTURES, sample_rate=16_000, at_most=3) for _ in range(2))
    assert len(first) == 3
    for clip, again in zip(first, second, strict=True):
        assert np.array_equal(clip, again)


@pytest.mark.parametrize("column", ["file_name", "path"])
def test_a_table_names_files_beside_it(tmp_path: Path, column: str) -> None:
    sound = tmp_path / "sounds" / "a.wav"
    sound.parent.mkdir()
    sound.write_bytes((FIXTURES / "keyword_yes_16k_mono_pcm16.wav").read_bytes())
    (tmp_path / "list.csv").write_text(f"label,{column}\nyes,sounds/a.wav\nagain,sounds/a.wav\n")
    assert [len(clip) for clip in read_clips(tmp_path / "list.csv", sample_rate=16_000, at_most=9)] == [
        16_000
    ]


def test_what_holds_no_clips_is_said(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("name\nx.wav\n")
    for source, sentence in (
        (tmp_path / "list.csv", "no column 'file_name' or 'path', only name"),
        (tmp_path / "nothing", "neither a folder"),
        (tmp_path, "no audio that can be decoded"),
    ):
        with pytest.raises(ExportError, match=sentence):
            read_clips(source, sample_rate=16_000, at_most=9)
