"""Small copies of what `datasets` writes: `save_to_disk`, and a hub's repository of parquet files."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from service.bulk.archives import source_of
from tests.training.corpora.conftest import DIGIT, DOG
from training.clips import DataError, find_audio
from training.probe.labelled import read_tasks, splits_of

FEATURES: dict[str, Any] = {
    "audio": {"sampling_rate": 16000, "_type": "Audio"},
    "fold": {"dtype": "int64", "_type": "Value"},
    "category": {"names": ["dog", "rain", "spoken digit"], "_type": "ClassLabel"},
}


def rows(sounds: dict[str, bytes], *categories: Any) -> pyarrow.Table:
    names = [DOG.name, DIGIT.name]
    audio = [{"bytes": sounds[names[i % 2]], "path": names[i % 2]} for i in range(len(categories))]
    return pyarrow.table({"audio": audio, "fold": list(range(len(categories))), "category": list(categories)})


def write_saved(folder: Path, table: pyarrow.Table) -> None:
    """A split, as `save_to_disk` writes it: a stream of record batches."""
    folder.mkdir(parents=True)
    file = "data-00000-of-00001.arrow"
    with pyarrow.OSFile(str(folder / file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": file}], "_split": folder.name})
    )
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def write_parquet(path: Path, table: pyarrow.Table, features: dict[str, Any] | None = FEATURES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if features:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, path)


def test_what_was_saved_to_disk_is_read_with_its_splits(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    data = tmp_path / "esc"
    write_saved(data / "train", rows(sounds, 0, 2))
    write_saved(data / "validation", rows(sounds, 0))
    write_saved(data / "test", rows(sounds, 0, 2, -1))  # -1: of no class
    (data / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    (task,) = read_tasks(data)
    assert task.name == "esc"
    assert [(clip.labels, clip.part) for clip in task.clips] == [
        (("dog",), "train"),
        (("spoken digit",), "train"),
        (("dog",), "valid"),
        (("dog",), "test"),
        (("spoken digit",), "test"),
    ]
    assert len(splits_of(task)) == 1
    assert source_of(task.clips[1].path) == sounds[DIGIT.name]
    assert len(find_audio(data)) == 6
    assert find_audio(data / "test", {"category": "dog"}) == [
        data / "test" / "data-00000-of-00001.arrow" / "0.ogg"
    ]


def test_parquet_files_of_a_hub_are_read_with_the_names_of_their_classes(
    tmp_path: Path, sounds: dict[str, bytes]
) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows(sounds, 0, 1))
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows(sounds, 2))
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows(sounds, 1))
    (task,) = read_tasks(tmp_path)
    found = [(clip.labels[0], clip.part) for clip in task.clips]
    assert found == [("rain", "test"), ("dog", "train"), ("rain", "train"), ("spoken digit", "train")]
    assert [source_of(clip.path) for clip in task.clips[1:3]] == [sounds[DOG.name], sounds[DIGIT.name]]
    assert len(find_audio(tmp_path, {"fold": "1"})) == 1


def test_several_classes_of_a_row_are_several_labels(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    features = FEATURES | {"category": [FEATURES["category"]]}
    for kind in (features, FEATURES | {"category": {"feature": FEATURES["category"], "_type": "List"}}):
        write_parquet(tmp_path / "a.parquet", rows(sounds, [0, 2], []), kind)
        (task,) = read_tasks(tmp_path / "a.parquet")
        assert [clip.labels for clip in task.clips] == [("dog", "spoken digit")]


def test_plain_parquet_has_labels_as_they_stand(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    write_parquet(tmp_path / "a.parquet", rows(sounds, "bark", "7"), None)
    (task,) = read_tasks(tmp_path / "a.parquet")
    assert [clip.labels for clip in task.clips] == [("bark",), ("7",)]


def test_a_table_without_sounds_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"paths": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of sounds"):
        find_audio(tmp_path)
