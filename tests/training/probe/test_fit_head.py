import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from service.inference.card import load_card
from service.inference.model import Model
from service.inference.windows import embed
from training.__main__ import main
from training.clips import DataError
from training.probe.fit_head import fit_head, write_head
from training.probe.labelled import read_tasks

FIXTURES = Path("tests/fixtures")
SPEECH = (
    "digit3_8k_mono_ulaw.wav",
    "digit5_8k_mono_u8.wav",
    "digit7_8k_mono_pcm16.wav",
    "speech_16k_mono.flac",
)
HITS = (
    "body_tap_44k1_stereo_pcm24.wav",
    "finger_snap_44k1_stereo_float32.wav",
    "hihat_96k_mono.flac",
    "hihat_192k_mono.flac",
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spoken and struck sounds as a CSV: three of each to train on, one to test on."""
    table = tmp_path_factory.mktemp("labels") / "kinds.csv"
    rows = ["file_name,label,split"]
    for label, names in (("speech", SPEECH), ("hit", HITS)):
        for i, name in enumerate(names):
            rows.append(f"{(FIXTURES / name).resolve()},{label},{'test' if i == 3 else 'train'}")
    table.write_text("\n".join(rows) + "\n")
    return table


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A copy of the default model, to write into."""
    return Path(shutil.copytree("models/byola", tmp_path / "byola"))


def test_a_head_is_fitted_written_and_served(labelled, model_folder, capsys):
    arguments = [
        "--model",
        str(model_folder),
        "--data",
        str(labelled),
        "--head",
        "kinds",
        "--precision",
        "float32",
    ]
    before = set(Model.load(model_folder).heads)
    assert main(["fit-head", *arguments]) == 0
    said = capsys.readouterr().out

    model = Model.load(model_folder, precision="float32")  # hashes and card fit, or it would be refused
    head = model.heads["kinds"]
    assert (head.labels, head.task) == (("hit", "speech"), "multiclass")
    assert head.results["test_clips"] == 2
    assert f"2 labels, accuracy {head.results['value']:.3f} on test" in said
    assert set(model.heads) == before | {"kinds"}


def test_a_head_of_the_same_name_is_replaced(labelled, model_folder):
    (task,) = read_tasks(labelled)
    fitted = fit_head(task, np.random.default_rng(0).normal(size=(8, 3072)).astype(np.float32))
    write_head(model_folder, "digits", fitted, "another")
    assert Model.load(model_folder).heads["digits"].training_data == "another"
    assert list((model_folder / "heads").glob(".new-*")) == []
    assert "heads/digits.safetensors" in load_card(model_folder).files


def test_a_head_whose_name_leaves_the_folder_is_refused_first(labelled, model_folder, capsys):
    arguments = ["--model", str(model_folder), "--data", str(labelled), "--head", "../x"]
    assert main(["fit-head", *arguments]) == 1
    assert capsys.readouterr().err == (
        "error: A head cannot be called '../x': letters, digits, '.', '_' and '-' make a name.\n"
    )
    assert load_card(model_folder) == load_card(Path("models/byola"))


def test_several_folds_need_the_one_that_is_tested(tmp_path):
    (tmp_path / "list.csv").write_text(
        "file_name,label,fold\n" + "".join(f"{i},{'ab'[i % 2]},{i}\n" for i in range(3))
    )
    (task,) = read_tasks(tmp_path / "list.csv")
    with pytest.raises(DataError, match="--test-fold"):
        fit_head(task, np.zeros((3, 4), dtype=np.float32))


def test_a_class_that_is_tested_alone_is_refused(tmp_path):
    rows = ["0,a,train", "1,b,train", "2,c,test", "3,a,test"]
    (tmp_path / "list.csv").write_text("\n".join(["file_name,label,split", *rows]))
    (task,) = read_tasks(tmp_path / "list.csv")
    with pytest.raises(DataError, match="has 'c' in test alone, and a class is learnt from sounds that are"):
        fit_head(task, np.zeros((4, 4), dtype=np.float32))


@pytest.mark.parametrize("command", [["fit-head", "--head", "kinds"], ["evaluate", "--out", "kinds.json"]])
def test_data_that_cannot_be_split_are_said_before_the_work(command, tmp_path, capsys):
    """Not even the model is looked for."""
    (tmp_path / "list.csv").write_text("file_name,label,split\na,dog,train\nb,dog,test\n")
    arguments = ["--model", str(tmp_path / "nobody"), "--data", str(tmp_path / "list.csv")]
    assert main([*command, *arguments]) == 1
    assert "error: The task list has one class only, 'dog'" in capsys.readouterr().err


def test_a_file_that_cannot_be_embedded_is_named(labelled, model_folder, tmp_path, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_text(labelled.read_text() + f"{(FIXTURES / 'invalid/text.wav').resolve()},hit,train\n")
    assert main(["fit-head", "--model", str(model_folder), "--data", str(bad), "--head", "kinds"]) == 1
    assert "text.wav cannot be embedded" in capsys.readouterr().err
    assert "kinds" not in Model.load(model_folder).heads


def test_a_picture_that_fails_loses_no_result(labelled, model_folder, tmp_path, capsys, monkeypatch):
    def draw_nothing(*_):
        raise ValueError("no colours left")

    monkeypatch.setattr("training.__main__.draw_confusion", draw_nothing)
    out = tmp_path / "kinds.json"
    arguments = ["--model", str(model_folder), "--data", str(labelled), "--out", str(out), "--seeds", "42"]
    assert main(["evaluate", *arguments]) == 0
    said = capsys.readouterr()
    assert "The pictures of kinds could not be drawn: no colours left" in said.err
    assert "| kinds | accuracy |" in said.out
    assert list(json.loads(out.read_text())["results"]) == ["byola"]


def test_evaluate_writes_json_pictures_and_the_card(labelled, model_folder, tmp_path, capsys):
    out = tmp_path / "results" / "kinds.json"
    arguments = ["--model", str(model_folder), "--data", str(labelled), "--out", str(out), "--seeds", "42"]
    assert main(["evaluate", *arguments, "--baselines", "--write-card"]) == 0
    written = json.loads(out.read_text())
    assert list(written["results"]) == ["byola", "untrained", "log-mel statistics"]
    assert 0 <= written["results"]["byola"]["mean"] <= 1
    assert out.with_suffix(".kinds.confusion.png").stat().st_size > 5000
    assert out.with_suffix(".kinds.tsne.png").stat().st_size > 5000
    assert "| kinds | accuracy |" in capsys.readouterr().out
    rows = load_card(model_folder).evaluation
    assert "esc50" in {row["task"] for row in rows}  # the others are kept
    (row,) = [row for row in rows if row["task"] == "kinds"]
    assert {"task", "value", "ci95", "untrained", "log-mel statistics"} <= set(row)


DIGITS = "digit3_8k_mono_ulaw.wav", "digit5_8k_mono_u8.wav", "digit7_8k_mono_pcm16.wav"


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sixty hisses and sixty rumbles, a fifth of them kept back; and what is neither: speech and tones."""
    folder = tmp_path_factory.mktemp("noises")
    random = np.random.default_rng(0)
    rows = ["file_name,label,split"]
    for i in range(120):
        sound = random.normal(size=8000) * random.uniform(0.02, 0.2)
        if i % 2:
            sound = np.convolve(sound, np.ones(24) / 5, "same")
        soundfile.write(folder / f"{i}.wav", sound, 16_000)
        rows.append(f"{i}.wav,{('hiss', 'rumble')[i % 2]},{'test' if i % 10 < 2 else 'train'}")
    (folder / "noises.csv").write_text("\n".join(rows) + "\n")
    others = folder / "others"
    (others / "tones").mkdir(parents=True)
    for i in range(6):
        tone = 0.2 * np.sin(2 * np.pi * (300 + 200 * i) * np.arange(8000) / 16_000)
        soundfile.write(others / "tones" / f"{i}.wav", tone, 16_000)
    (others / "speech").mkdir()
    for name in DIGITS:
        shutil.copy(FIXTURES / name, others / "speech")
    return folder / "noises.csv", others


def test_a_head_tells_what_is_none_of_its_labels(noises, model_folder, capsys):
    table, others = noises
    arguments = ["fit-head", "--model", str(model_folder), "--data", str(table), "--head", "noises"]
    assert main([*arguments, "--none-of-these", str(others)]) == 0
    said = capsys.readouterr().out
    model = Model.load(model_folder)
    head = model.heads["noises"]
    apart = head.results["none_of_these"]
    assert apart["clips"] == {"speech": 3, "tones": 6}
    assert apart["auroc"] == {"speech": 1.0, "tones": 1.0, "all": 1.0}
    assert "told from tones: AUROC 1.000" in said
    assert head.known.min_known == apart["min_known"] > 0
    assert (model_folder / "heads" / "noises.safetensors").stat().st_size < 300_000
    # A tone that was not in the data, and a hiss that was not: as served.
    sounds = {
        "tone": 0.1 * np.sin(2 * np.pi * 950 * np.arange(16_000) / 16_000),
        "hiss": np.random.default_rng(9).normal(size=8000) * 0.1,
    }
    vectors = {
        name: embed(model.run, model.card, [model.logmel(sound.astype(np.float32))]).vector
        for name, sound in sounds.items()
    }
    known = {name: head.score_and_know(vector[None])[0, -1] for name, vector in vectors.items()}
    assert known["tone"] < head.known.min_known <= known["hiss"]


def test_heads_without_others_tell_too_and_take_nothing_away(noises, model_folder):
    arguments = ["fit-head", "--model", str(model_folder), "--data", str(noises[0]), "--head", "noises"]
    assert main(arguments) == 0
    known = Model.load(model_folder).heads["noises"].known
    assert known is not None
    assert known.min_known == 0
    assert len(known.distances) == 24


def test_too_few_clips_to_tell_what_is_none_of_them_are_said(labelled, noises, model_folder, capsys):
    arguments = ["fit-head", "--model", str(model_folder), "--data", str(labelled), "--head", "kinds"]
    assert main([*arguments, "--none-of-these", str(noises[1])]) == 1
    assert "takes one label a clip and 20 clips that are tested on, and the task kinds has 2" in (
        capsys.readouterr().err
    )
    assert "kinds" not in Model.load(model_folder).heads
    assert main(arguments) == 0
    assert Model.load(model_folder).heads["kinds"].known is None
