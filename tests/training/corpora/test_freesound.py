"""FSD50K's folders as its archives unpack."""

from pathlib import Path

import pytest

from tests.training.corpora.conftest import DIGIT
from training.clips import DataError, find_audio
from training.probe.labelled import read_tasks, splits_of

DEV = """\
fname,labels,mids,split
64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train
16399,Bark,/m/05tny_,val
"""
EVAL = "fname,labels,mids\n37199,Bark,/m/05tny_\n"


@pytest.fixture
def fsd50k(tmp_path: Path, sounds: dict[str, bytes]) -> Path:
    for name in ("FSD50K.dev_audio/64760", "FSD50K.dev_audio/16399", "FSD50K.eval_audio/37199"):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sounds[DIGIT.name])
    (tmp_path / "FSD50K.ground_truth").mkdir()
    (tmp_path / "FSD50K.ground_truth" / "dev.csv").write_text(DEV)
    (tmp_path / "FSD50K.ground_truth" / "eval.csv").write_text(EVAL)
    return tmp_path


def test_development_and_evaluation_are_one_task(fsd50k: Path) -> None:
    (task,) = read_tasks(fsd50k)
    assert [(clip.path.name, clip.labels, clip.part) for clip in task.clips] == [
        ("64760.wav", ("Electric_guitar", "Guitar"), "train"),
        ("16399.wav", ("Bark",), "valid"),
        ("37199.wav", ("Bark",), "test"),
    ]
    assert len(splits_of(task)) == 1


def test_one_csv_may_be_named(fsd50k: Path) -> None:
    assert [path.name for path in find_audio(fsd50k / "FSD50K.ground_truth" / "eval.csv")] == ["37199.wav"]


def test_without_its_sounds_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text(DEV)
    with pytest.raises(DataError, match="holds none of the sounds"):
        find_audio(tmp_path / "dev.csv")
