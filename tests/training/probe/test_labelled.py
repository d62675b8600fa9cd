from pathlib import Path

import numpy as np
import pytest

from training.clips import DataError
from training.labelled import read_tasks, splits_of


def write_csv(folder: Path, *lines: str) -> Path:
    table = folder / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def test_a_csv_with_splits_is_one_task_named_after_the_file(tmp_path):
    table = write_csv(tmp_path, "file_name,label,split", "a.wav,dog,train", "b.wav,cat,val", "c.wav,dog,test")
    (task,) = read_tasks(table)
    assert task.name == "labels"
    assert task.labels == ("cat", "dog")
    assert task.targets.tolist() == [1, 0, 1]
    (split,) = splits_of(task)
    assert [split.train.tolist(), split.valid.tolist(), split.test.tolist()] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_a_comma_inside_a_label_means_several_labels(tmp_path):
    table = write_csv(tmp_path, "file_name,label,split", 'a.wav,"rain,wind",train', "b.wav,wind,test")
    (task,) = read_tasks(table)
    assert (task.kind, task.metric) == ("multilabel", "mAP")
    assert task.targets.tolist() == [[1, 1], [0, 1]]


def test_a_csv_with_a_task_column_holds_several_tasks_and_unlabelled_rows_none(tmp_path):
    table = write_csv(
        tmp_path,
        "path,task,label,fold",
        "a,esc50,dog,1",
        "b,unlabelled,,",
        "c,digits,7,test",
        "d,esc50,cat,2",
    )
    assert [task.name for task in read_tasks(table)] == ["esc50", "digits"]
    assert [len(task.clips) for task in read_tasks(table, {"task": "esc50"})] == [2]


def test_folds_are_cross_validated_or_only_the_wanted_ones_tested(tmp_path):
    rows = [f"{i},{'ab'[i % 2]},{1 + i // 2}" for i in range(6)]
    (task,) = read_tasks(write_csv(tmp_path, "file_name,label,fold", *rows))
    assert [split.name for split in splits_of(task)] == ["fold 1", "fold 2", "fold 3"]
    (split,) = splits_of(task, ("3",))
    assert split.test.tolist() == [False] * 4 + [True] * 2
    assert (split.train == ~split.test).all()


def test_a_folder_per_class_gets_five_folds_with_every_class_in_each(tmp_path):
    for label in ("dog", "rain"):
        (tmp_path / label).mkdir()
        for i in range(10):
            (tmp_path / label / f"{i}.wav").touch()
    (task,) = read_tasks(tmp_path)
    splits = splits_of(task)
    assert len(splits) == 5
    for split in splits:
        assert np.bincount(task.targets[split.test]).tolist() == [2, 2]
    assert (np.sum([split.test for split in splits], axis=0) == 1).all()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["name,label", "a,b"], "no column 'file_name' or 'path', only name, label"),
        (["file_name,name", "a,b"], "no column 'label', only file_name, name"),
        (
            ["file_name,label,split", "a,x,train", "b,x,validation"],
            "b has the split 'validation', which is none",
        ),
        (
            ["file_name,label,fold", "a,x,train", "b,x,validation"],
            "b of .* has the split or fold 'validation'",
        ),
        (
            ["file_name,label,split", "a,x,train", "b,x,test", "c,x,"],
            "c of the task labels has no split or fold",
        ),
        (["file_name,label,fold", "a,x,1", "b,x"], "b of the task labels has no split or fold"),
        (["file_name,label,split", "a,b,train"], "splits train and test"),
        (["file_name,label,fold", "a,b,1"], "none to test on"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_what_it_lacks(tmp_path, lines, sentence):
    with pytest.raises(DataError, match=sentence):
        splits_of(read_tasks(write_csv(tmp_path, *lines))[0])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no labelled sound"):
        read_tasks(tmp_path)


def test_a_csv_as_spreadsheets_write_it_is_read(tmp_path):
    (tmp_path / "labels.csv").write_text("file_name,label\na.wav,dog\nb.wav\n", encoding="utf-8-sig")
    (task,) = read_tasks(tmp_path / "labels.csv")
    assert [clip.path.name for clip in task.clips] == ["a.wav"]  # the row cut short has no label


def test_a_sound_given_as_the_list_is_refused(fixtures_dir):
    with pytest.raises(DataError, match=r"not a CSV|no column"):
        read_tasks(fixtures_dir / "dog_bark_44k1_mono.ogg")
