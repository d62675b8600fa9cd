"""A HEAR task's folder as hear-preprocess lays it out, on a small copy."""

import json
from pathlib import Path

import pytest

from training.clips import DataError, find_audio
from training.probe.labelled import read_tasks, splits_of

Parts = dict[str, dict[str, list[object]]]  # part -> file -> its labels
FOLDS: Parts = {
    "fold00": {"a.wav": ["dog"], "b.wav": ["rain"]},
    "fold01": {"c.wav": ["dog"], "d.wav": ["rain"]},
}
SPLITS: Parts = {
    "train": {"a.wav": ["dog"], "b.wav": ["rain"]},
    "valid": {"c.wav": ["dog"]},
    "test": {"d.wav": ["rain"]},
}


def write_task(folder: Path, parts: Parts, sounds: dict[str, bytes], **metadata: str) -> Path:
    metadata = {"task_name": "barks", "embedding_type": "scene"} | metadata
    for part, files in parts.items():
        for rate in ("16000", "48000"):
            (folder / rate / part).mkdir(parents=True)
            for name in files:
                (folder / rate / part / name).write_bytes(sounds["digit7_8k_mono_pcm16.wav"])
        (folder / f"{part}.json").write_text(json.dumps(files))
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,dog\n1,rain\n")
    return folder


def test_folds_are_read_with_the_sounds_at_the_highest_rate(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    (task,) = read_tasks(write_task(tmp_path, FOLDS, sounds))
    assert (task.name, task.labels) == ("barks", ("dog", "rain"))
    assert [clip.part for clip in task.clips] == ["fold00", "fold00", "fold01", "fold01"]
    assert task.clips[0].path == tmp_path / "48000" / "fold00" / "a.wav"
    assert [split.name for split in splits_of(task)] == ["fold fold00", "fold fold01"]
    assert len(find_audio(tmp_path)) == 4  # and not once more at 16 kHz


def test_splits_are_read(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    (task,) = read_tasks(write_task(tmp_path, SPLITS, sounds))
    (split,) = splits_of(task)
    by_name = {clip.path.name: clip.part for clip in task.clips}
    assert by_name == {"a.wav": "train", "b.wav": "train", "c.wav": "valid", "d.wav": "test"}
    assert (split.train.sum(), split.valid.sum(), split.test.sum()) == (2, 1, 1)
    assert [path.name for path in find_audio(tmp_path, {"split": "test"})] == ["d.wav"]


def test_a_folder_of_tasks_gives_them_all(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    write_task(tmp_path / "barks-v1-full", FOLDS, sounds)
    write_task(tmp_path / "rains-v1-full", SPLITS, sounds, task_name="rains")
    assert [task.name for task in read_tasks(tmp_path)] == ["barks", "rains"]


def test_of_a_task_of_events_the_sounds_are_taken_and_no_labels(
    tmp_path: Path, sounds: dict[str, bytes]
) -> None:
    events: Parts = {"train": {"a.wav": [{"label": "dog", "start": 0.0, "end": 50.0}]}}
    write_task(tmp_path, events, sounds, embedding_type="event")
    assert [path.name for path in find_audio(tmp_path)] == ["a.wav"]
    with pytest.raises(DataError, match="no labelled sound"):
        read_tasks(tmp_path)


def test_a_task_without_sounds_or_labels_is_refused(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "task_metadata.json").write_text("{}")
    with pytest.raises(DataError, match="no folder of sounds such as 48000/"):
        find_audio(tmp_path / "empty")
    broken = write_task(tmp_path / "broken", FOLDS, sounds)
    (broken / "fold00.json").write_text('{"a.wav": [3]}')
    with pytest.raises(DataError, match=r"gives a\.wav no list of labels"):
        read_tasks(broken)
    (broken / "fold00.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_tasks(broken)
