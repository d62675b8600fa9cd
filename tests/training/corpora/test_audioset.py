"""AudioSet's CSVs as they are distributed, and sounds named as those who collect them name them."""

from pathlib import Path

import pytest

from tests.training.corpora.conftest import DIGIT
from training.clips import DataError, find_audio
from training.probe.labelled import read_tasks, splits_of

HEAD = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
"""
NAMES = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
72,/m/0bt9lr,"Dog"
"""


def write_audioset(folder: Path, sounds: dict[str, bytes], *names: str) -> Path:
    (folder / "wav").mkdir()
    for name in names:
        (folder / "wav" / name).write_bytes(sounds[DIGIT.name])
    (folder / "balanced_train_segments.csv").write_text(
        HEAD
        + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n'
        + '_-_-aaaaaaa, 0.000, 10.000, "/m/0bt9lr"\ngoneVideo01, 0.000, 10.000, "/m/0bt9lr"\n'
    )
    (folder / "eval_segments.csv").write_text(HEAD + 'Ybbbbbbbbbb, 1.000, 11.000, "/m/0bt9lr"\n')
    return folder


def test_the_sounds_that_are_there_are_read_with_their_names(
    tmp_path: Path, sounds: dict[str, bytes]
) -> None:
    write_audioset(
        tmp_path, sounds, "Y--PJHxphWEs.wav", "_-_-aaaaaaa_0_10000.wav", "Ybbbbbbbbbb.wav", "x.wav"
    )
    (tmp_path / "class_labels_indices.csv").write_text(NAMES)
    (task,) = read_tasks(tmp_path)
    assert [(clip.path.name, clip.labels, clip.part) for clip in task.clips] == [
        ("Y--PJHxphWEs.wav", ("Speech", "Male speech, man speaking"), "train"),
        ("_-_-aaaaaaa_0_10000.wav", ("Dog",), "train"),
        ("Ybbbbbbbbbb.wav", ("Dog",), "test"),
    ]
    assert (task.kind, len(splits_of(task))) == ("multilabel", 1)


def test_one_csv_without_names_has_the_labels_codes(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    write_audioset(tmp_path, sounds, "--PJHxphWEs_30.wav")
    (task,) = read_tasks(tmp_path / "balanced_train_segments.csv")
    assert [clip.labels for clip in task.clips] == [("/m/09x0r", "/m/05zppz")]


def test_without_any_of_the_sounds_it_is_said_how_they_are_found(
    tmp_path: Path, sounds: dict[str, bytes]
) -> None:
    write_audioset(tmp_path, sounds, "other.wav")
    with pytest.raises(DataError, match="found by their YouTube id"):
        find_audio(tmp_path)
