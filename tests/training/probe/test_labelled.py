import os
from pathlib import Path

import numpy as np
import pytest

from training.clips import DataError
from training.probe.labelled import read_tasks, splits_of


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


def sounds_in(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            ["a,dog,train", "b,cat,train", "a,dog,test"],
            "has .*a in train and in test: a file that is trained",
        ),
        (["a,dog,train", "b,cat,train", "./x/../a,dog,val"], "in train and in valid, as .*x/../a: a file"),
        (["a,dog,1", "b,cat,2", "a,dog,2"], "has .*a in 1 and in 2"),
        (["a,dog,", "b,cat,", "a,cat,"], "has .*a twice: a file"),
    ],
)
def test_a_file_that_is_trained_on_is_not_tested_on(tmp_path, lines, sentence):
    column = "fold" if "1" in lines[0] else "split"
    with pytest.raises(DataError, match=sentence):
        splits_of(read_tasks(write_csv(tmp_path, f"file_name,label,{column}", *lines))[0])


def test_a_link_to_a_file_of_another_class_is_that_file(tmp_path):
    sounds_in(tmp_path, "dog/a.wav", "rain/b.wav")
    (tmp_path / "rain" / "c.wav").symlink_to(tmp_path / "dog" / "a.wav")
    with pytest.raises(DataError, match=r"has .*dog/a\.wav twice, as .*rain/c\.wav"):
        splits_of(read_tasks(tmp_path)[0])


def test_a_file_that_two_tasks_share_or_one_part_names_twice_is_taken(tmp_path):
    rows = ["a,t,dog,train", "a,u,bark,test", "b,t,cat,test", "c,u,rain,train", "b,t,cat,test"]
    tasks = read_tasks(write_csv(tmp_path, "file_name,task,label,split", *rows))
    assert [len(splits_of(task)) for task in tasks] == [1, 1]


@pytest.mark.parametrize("names", [["dog/a.wav", "dog/b.wav"], ["train/a.wav", "train/b.wav"]])
def test_one_class_is_refused(tmp_path, names):
    sounds_in(tmp_path, *names)
    with pytest.raises(
        DataError, match=r"has one class only, '(dog|train)': there is nothing to tell it from"
    ):
        splits_of(read_tasks(tmp_path)[0])


def test_a_class_without_a_sound_is_refused(tmp_path):
    sounds_in(tmp_path, "dog/a.wav", "rain/b.wav", "wind/notes.txt")
    with pytest.raises(DataError, match="wind holds no sound, and a class without any cannot be learnt"):
        read_tasks(tmp_path)


@pytest.mark.parametrize(
    "folders", [("train", "test"), ("Train", "Val", "Test"), ("training", "validation", "dog")]
)
def test_folders_of_parts_are_not_taken_for_classes(tmp_path, folders):
    sounds_in(tmp_path, *(f"{folder}/dog/a{i}.wav" for i, folder in enumerate(folders)))
    with pytest.raises(
        DataError, match=r"which are parts and no classes: give a CSV with file_name, label and"
    ):
        read_tasks(tmp_path)


def test_a_train_among_other_vehicles_is_a_class(tmp_path):
    sounds_in(tmp_path, "train/a.wav", "bus/b.wav")
    assert read_tasks(tmp_path)[0].labels == ("bus", "train")


def test_a_label_that_is_no_utf_8_is_refused(tmp_path):
    try:
        sounds_in(tmp_path, "dog/a.wav", os.fsdecode(b"caf\xe9/b.wav"))
    except OSError:
        pytest.skip("this file system knows only UTF-8")
    with pytest.raises(DataError, match=r"caf\\xe9, a label that is no UTF-8"):
        read_tasks(tmp_path)


def test_a_quote_that_is_not_closed_loses_no_row(tmp_path):
    rows = ['a,"7 inch single,train', "b,rain,train", "c,dog,test"]
    with pytest.raises(DataError, match=r"labels\.csv, line 2: .*is a quote not closed\?"):
        read_tasks(write_csv(tmp_path, "file_name,label,split", *rows))
