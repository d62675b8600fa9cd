"""`python -m service classify`; what it shares with `embed` is tested there."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pyarrow.parquet
import pytest
from starlette.testclient import TestClient

from service.bulk import classify as classify_command
from service.bulk.classify import CLASSIFY
from service.bulk.tags import read_tags
from service.http.app import create_app
from service.inference.model import Model
from service.settings import Settings
from tests.service.conftest import write_toy
from tests.service.text_towers import write_text_toy

ROOT = Path(__file__).parents[3]
SUFFIXES = [".csv", ".jsonl", ".parquet"]
LONG = "birds_30s_16k_mono.opus"  # fifteen of the toy's windows
NAMES = [LONG, "digit7_8k_mono_pcm16.wav", "keyword_yes_16k_mono_pcm16.wav", "robin_44k1_stereo.mp3"]


@pytest.fixture
def sounds(make_sounds: Callable[[Sequence[str]], Path]) -> Path:
    return make_sounds(NAMES)


@pytest.fixture
def classified(note: Callable[[ModuleType, str], list[str]]) -> list[str]:
    """The names of the files that are given to the model."""
    return note(classify_command, "classify_files")


@pytest.fixture
def answered(models_dir: Path, sounds: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """answered(name, **query): what /classify says of the file."""
    settings = Settings(models_dir=models_dir, model="toy", device="cpu", threads=1)
    with TestClient(create_app(settings)) as client:

        def ask(name: str, **query: Any) -> dict[str, Any]:
            headers = {"Content-Type": "application/octet-stream"}
            body = (sounds / name).read_bytes()
            answer: dict[str, Any] = client.post(
                "/classify", content=body, params=query, headers=headers
            ).json()
            return answer

        yield ask


def run(*arguments: str | Path, models_dir: Path) -> int:
    options = ["--model", "toy", "--models-dir", str(models_dir), "--device", "cpu"]
    return CLASSIFY.main([*map(str, arguments), *options])


def lines_of(out: Path) -> dict[str, dict[str, Any]]:
    """The objects of a .jsonl by the name of the file; no file twice."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = {Path(line["path"]).name: line for line in lines}
    assert len(found) == len(lines)
    return found


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Of a .csv, a .parquet, or a folder of parts, as a reader without this project sees them."""
    if out.suffix == ".csv":
        with out.open(newline="") as file:
            return list(csv.DictReader(file))
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(out).to_pylist()
    return rows


def assert_same_tags(tags: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Batches of other lengths move the last digits of float32: 1e-6, as scores are told to six digits, and
    half a digit for the rounding itself."""
    assert [tag["label"] for tag in tags] == [tag["label"] for tag in expected]
    assert [tag["score"] for tag in tags] == pytest.approx([tag["score"] for tag in expected], abs=1.5e-6)


@pytest.mark.parametrize("head", ["pets", "moods"])
def test_a_line_says_what_classify_answers_for_the_file(
    head: str, sounds: Path, models_dir: Path, answered: Callable[..., dict[str, Any]]
) -> None:
    out = sounds.parent / "tags.jsonl"
    assert run(sounds, "--out", out, "--head", head, "--top-k", "2", models_dir=models_dir) == 0
    lines = lines_of(out)
    assert list(lines) == NAMES
    for name, line in lines.items():
        expected = answered(name, head=head, top_k=2)
        assert list(line)[:5] == ["path", *list(expected)[:4]]
        assert line["path"] == str(sounds / name)
        assert_same_tags(line["tags"], expected["tags"])
        for key in ("model", "head", "duration_s"):
            assert line[key] == expected[key]


def test_a_running_server_gives_the_same_tags(
    sounds: Path, models_dir: Path, serve: Callable[..., AbstractContextManager[str]], capsys: Any
) -> None:
    here, there = sounds.parent / "here.jsonl", sounds.parent / "there.jsonl"
    options = ["--head", "moods", "--threshold", "0.4"]
    run(sounds, "--out", here, *options, models_dir=models_dir)
    with serve(api_keys=("secret",)) as url:
        remote = ["--url", url, "--api-key", "secret", "--model", "toy"]
        assert CLASSIFY.main([str(sounds), "--out", str(there), *options, *remote]) == 0
        wrong = [str(sounds), "--out", str(sounds.parent / "no.csv"), "--head", "birds", *remote]
        assert CLASSIFY.main(wrong) == 1
    said = capsys.readouterr().err
    assert "text.wav: the file is not audio" in said
    assert "the model `toy` has no head `birds`; it has `pets`, `moods`" in said
    mine, theirs = lines_of(here), lines_of(there)
    assert list(theirs) == list(mine)
    for name, line in theirs.items():
        assert_same_tags(line["tags"], mine[name]["tags"])
        assert (line["model"], line["head"]) == ("toy", "moods")
        assert line["duration_s"] == mine[name]["duration_s"]
    *_, head, top_k, threshold, version = theirs[LONG]["made_by"].split(", ")
    assert head in mine[LONG]["made_by"]  # the same file of the head
    assert (top_k, threshold, version) == ("top_k 5", "threshold 0.4", "tags 1")


def test_csv_and_parquet_have_a_row_per_tag_and_pandas_reads_both_alike(
    sounds: Path, models_dir: Path
) -> None:
    outs = [sounds.parent / f"tags{suffix}" for suffix in SUFFIXES]
    for out in outs:
        assert run(sounds, "--out", out, models_dir=models_dir) == 0
    pd = pytest.importorskip("pandas")
    table, columns = pd.read_csv(outs[0]), pd.read_parquet(outs[2])
    pd.testing.assert_frame_equal(table, columns, check_dtype=False, check_exact=True)
    assert list(columns["rank"]) == [1, 2, 3] * 4
    assert columns.dtypes["score"] == "float64"
    ranked = columns[columns["path"] == str(sounds / LONG)]
    expected = lines_of(outs[1])[LONG]["tags"]
    assert ranked[["label", "score"]].to_dict("records") == expected
    assert set(columns["head"]) == {"pets"}  # the card's first
    assert columns["made_by"].nunique() == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_no_tag_reaches_is_there_too_and_is_not_classified_again(
    suffix: str, sounds: Path, models_dir: Path, classified: list[str]
) -> None:
    out = sounds.parent / f"tags{suffix}"
    arguments = [sounds / NAMES[1], "--out", out, "--threshold", "1"]
    assert run(*arguments, models_dir=models_dir) == 0
    assert run(*arguments, models_dir=models_dir) == 0
    assert classified == [NAMES[1]]
    if suffix == ".jsonl":
        assert lines_of(out)[NAMES[1]]["tags"] == []
    else:
        (row,) = rows_of(out)
        assert (row["label"], row["score"], row["rank"]) in [("", "", "0"), (None, None, 0)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_second_run_classifies_only_new_changed_and_bad_files(
    suffix: str, sounds: Path, models_dir: Path, fixtures_dir: Path, classified: list[str]
) -> None:
    out = sounds.parent / f"tags{suffix}"
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    before, _ = read_tags(out)
    shutil.copy(fixtures_dir / "click_10ms_16k_mono.wav", sounds / "a_new_one.wav")
    os.utime(sounds / NAMES[1], (0, 1e9 + 0.123456789))
    classified.clear()
    assert run(sounds, "--out", out, models_dir=models_dir) == 0
    assert classified == ["a_new_one.wav", NAMES[1], "text.wav"]
    after, _ = read_tags(out)
    assert [Path(path).name for path in after] == ["a_new_one.wav", *NAMES]
    assert {path: row.tags.best for path, row in after.items() if path in before} == {
        path: row.tags.best for path, row in before.items()
    }


@pytest.mark.parametrize("suffix", [*SUFFIXES, "/"])
@pytest.mark.parametrize(
    "other", [("--head", "moods"), ("--top-k", "1"), ("--threshold", "0.5")], ids=lambda other: other[0]
)
def test_tags_of_another_head_or_another_question_are_not_mixed_in(
    suffix: str, other: tuple[str, str], sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [sounds / NAMES[1], "--out", f"{sounds.parent}/tags{suffix}"]
    assert run(*arguments, models_dir=models_dir) == 0
    capsys.readouterr()
    assert run(*arguments, *other, models_dir=models_dir) == 1
    said = capsys.readouterr().err
    assert "holds tags of toy 1 (float32, " in said
    assert "choose another --out, or start anew with --overwrite" in said
    assert run(*arguments, *other, "--overwrite", models_dir=models_dir) == 0


def test_tags_of_another_version_are_not_mixed_in(
    sounds: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [sounds / NAMES[1], "--out", sounds.parent / "tags.csv"]
    run(*arguments, models_dir=models_dir)
    monkeypatch.setattr(classify_command, "VERSION", 2)
    assert run(*arguments, models_dir=models_dir) == 1
    assert "threshold 0.0, tags 1, not of toy 1" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from service.bulk import classify, resumable
from service.bulk.offline import classify_files

def killed_in_the_middle(model, paths, **options):
    for n, result in enumerate(classify_files(model, paths, **options)):
        if n == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield result

resumable.SHARD_FILES = 1
classify.classify_files = killed_in_the_middle
classify.CLASSIFY.main(sys.argv[1:])
"""


@pytest.mark.parametrize("suffix", [*SUFFIXES, "/"])
def test_a_killed_run_goes_on_where_it_was(
    suffix: str, sounds: Path, models_dir: Path, classified: list[str]
) -> None:
    out = f"{sounds.parent}/tags{suffix}"
    arguments = [str(sounds), "--out", out, "--part-rows", "1", "--model", "toy"]
    own = ["--models-dir", str(models_dir), "--device", "cpu"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments, *own], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    if suffix != "/":
        assert not Path(out).exists()
    assert run(*arguments, models_dir=models_dir) == 0
    assert classified == [NAMES[3], "text.wav"]
    assert not Path(f"{out}.partial").exists()
    if suffix == "/":
        assert Counter(row["path"] for row in rows_of(Path(out))) == {str(sounds / name): 3 for name in NAMES}
    else:
        assert list(read_tags(Path(out))[0]) == [str(sounds / name) for name in NAMES]


def test_a_folder_of_parts_has_the_same_rows_and_says_what_failed(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / "tags"
    for part_rows in ("2", "3"):
        assert run(sounds, "--out", f"{out}/", "--part-rows", part_rows, models_dir=models_dir) == 0
    said = capsys.readouterr().err
    assert "4 of 5 files were classified already" in said
    assert "1 could not be classified" in said
    assert len(list(out.glob("part-*"))) == 2
    run(sounds, "--out", f"{out}.parquet", models_dir=models_dir)
    assert rows_of(out) == rows_of(Path(f"{out}.parquet"))
    (failed,) = out.glob("_failed-*.parquet")
    (row,) = rows_of(failed)
    assert row["path"] == str(sounds / "text.wav")
    assert row["error"].startswith("the file is not audio")

    os.utime(sounds / NAMES[0], (0, 1e9))  # which has changed: its three rows are replaced
    run(sounds, "--out", out, models_dir=models_dir)
    rows = rows_of(out)
    assert Counter(row["path"] for row in rows) == {str(sounds / name): 3 for name in NAMES}
    changed = [(row["rank"], row["modified_s"]) for row in rows if row["path"] == str(sounds / NAMES[0])]
    assert changed == [(1, 1e9), (2, 1e9), (3, 1e9)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--out", "out.npz"],
            "the name must end in .csv, .jsonl or .parquet, or in / for a folder of parts",
        ),
        (
            ["--out", "out.csv", "--head", "birds"],
            "the model `toy` has no head `birds`; it has `pets`, `moods`",
        ),
        (["--out", "out.csv", "--ray", "local"], "it is a folder; write out/"),
        (["--out", "out.csv", "--url", "http://127.0.0.1:9"], "no viola server answers"),
    ],
)
def test_what_cannot_run_says_why(
    arguments: list[str],
    sentence: str,
    sounds: Path,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(sounds.parent)
    assert run(sounds, *arguments, models_dir=models_dir) == 1
    assert sentence in capsys.readouterr().err
    assert [path.name for path in sounds.parent.iterdir()] == ["sounds"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--top-k", "0"],
        ["--top-k", "1001"],
        ["--threshold", "1.1"],
        ["--threshold", "nan"],
        ["--threshold", "half"],
        ["--head", ""],
    ],
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str], sounds: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        CLASSIFY.main([str(sounds), "--out", "out.csv", *arguments])
    assert ended.value.code == 2


def test_no_good_file_and_an_empty_folder_are_exit_code_1(
    sounds: Path, tmp_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tags.csv"
    assert run(sounds / "text.wav", "--out", out, models_dir=models_dir) == 1
    assert "no file could be classified" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--out", out, models_dir=models_dir) == 1
    assert "no audio file found" in capsys.readouterr().err
    assert not out.exists()


def test_the_list_that_names_the_sounds_is_not_written_over(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = sounds.parent / "list.csv"
    table.write_text(f"path,label\nsounds/{NAMES[1]},seven\n")
    for flags in ([], ["--overwrite"]):
        assert run(table, "--out", table, *flags, models_dir=models_dir) == 1
        assert "is what names the sounds; choose another --out" in capsys.readouterr().err
    assert run(sounds, "--out", table, models_dir=models_dir) == 1
    assert f"{table} is not a table of tags" in capsys.readouterr().err
    assert table.read_text().endswith("seven\n")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_table_is_said(
    suffix: str, sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = sounds.parent / f"tags{suffix}"
    for content in (b"PK\x03\x04 no table", b'path,label\n"a', b'{"path": "a.wav"}', b"\xff\xfe", b""):
        out.write_bytes(content)
        assert run(sounds, "--out", out, models_dir=models_dir) == 1
        assert f"{out} is not a table of tags" in capsys.readouterr().err
        assert out.read_bytes() == content


@pytest.fixture(scope="module")
def words_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy` without a text tower and `words` with one."""
    folder = tmp_path_factory.mktemp("words")
    write_toy(folder / "toy")
    write_text_toy(folder / "words", name="words")
    return folder


LABELS = ["--labels", "doorbell, dog barks,rain"]


@pytest.mark.parametrize("template", [[], ["--template", "the {}"]])
def test_labels_in_words_have_the_scores_of_classify_here_and_from_a_server(
    template: list[str], sounds: Path, words_dir: Path, serve: Callable[..., AbstractContextManager[str]]
) -> None:
    out = sounds.parent / "here.jsonl", sounds.parent / "there.jsonl"
    arguments = [str(sounds), *LABELS, *template, "--model", "words"]
    here = ["--models-dir", str(words_dir), "--device", "cpu"]
    assert CLASSIFY.main([*arguments, "--out", str(out[0]), *here]) == 0
    with serve(models_dir=words_dir) as url:
        assert CLASSIFY.main([*arguments, "--out", str(out[1]), "--url", url]) == 0
        query = {"model": "words", "labels": LABELS[1]} | ({"template": template[1]} if template else {})
        answers = {
            name: httpx.post(f"{url}/classify", params=query, content=(sounds / name).read_bytes()).json()
            for name in NAMES
        }
    mine, theirs = map(lines_of, out)
    assert list(mine) == list(theirs) == NAMES
    for name in NAMES:
        for line in (mine[name], theirs[name]):
            assert line["head"] == "zero-shot"
            assert_same_tags(line["tags"], answers[name]["tags"])
    made_by = [lines[LONG]["made_by"].split(", ")[-4] for lines in (mine, theirs)]
    assert made_by[0] == made_by[1]
    assert made_by[0].startswith("head zero-shot (")


def test_tags_of_other_labels_or_another_template_are_not_mixed_in(
    sounds: Path, words_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(sounds / NAMES[1]), "--out", str(sounds.parent / "tags.csv"), "--model", "words"]
    arguments += ["--models-dir", str(words_dir), "--device", "cpu"]
    assert CLASSIFY.main([*arguments, *LABELS]) == 0
    for other in (["--labels", "doorbell,rain"], [*LABELS, "--template", "a {}"], []):
        assert CLASSIFY.main([*arguments, *other]) == 1
        assert "holds tags of words 1 (float32, " in capsys.readouterr().err
    assert CLASSIFY.main([*arguments, *LABELS]) == 0


def test_a_cluster_compares_the_same_labels(sounds: Path, words_dir: Path) -> None:
    """What travels to its machines is the head, not the words: they need no tokenizer."""
    model = Model.load(words_dir / "words", device="cpu")
    arguments = classify_command.argparse.Namespace(
        head=None, labels=("dog", "rain"), template=None, top_k=5, threshold=0.0
    )
    _, work = CLASSIFY.here(arguments, model)
    paths = [sounds / NAMES[1]]
    (expected,) = work(model, paths, workers=1)
    model.text = None
    (found,) = pickle.loads(pickle.dumps(work))(model, paths, workers=1)
    assert found.tags == expected.tags
    assert {tag.label for tag in found.tags.best} == {"dog", "rain"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--template", "a {}"], "template means nothing without labels; give both or none"),
        ([*LABELS, "--head", "pets"], "head is a head's, and labels stand in place of one"),
        (LABELS, "the model `toy` has no text tower, so that words are nowhere among its sounds"),
    ],
)
@pytest.mark.parametrize("is_remote", [False, True])
def test_labels_that_cannot_be_meant_are_refused_with_the_words_of_classify(
    arguments: list[str],
    sentence: str,
    is_remote: bool,
    sounds: Path,
    words_dir: Path,
    live_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--url", live_url] if is_remote else []
    asked = [str(sounds), "--out", str(sounds.parent / "tags.csv"), *arguments, *where]
    assert run(*asked, models_dir=words_dir) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert "text.wav" not in said  # no file was looked at


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--labels", "dog"], "there are 2 to 256 labels, not 1"),
        (["--labels", "dog,dog"], "the label `dog` is given more than once"),
        (["--labels", "[dog"], "begins with [ and is no list in JSON"),
        ([*LABELS, "--template", "a"], "the template holds {} 0 times"),
        ([*LABELS, "--template", "x" * 501], "at most 500"),
    ],
)
def test_wrong_labels_are_exit_code_2_and_say_what_classify_says(
    arguments: list[str], sentence: str, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        CLASSIFY.main([str(sounds), "--out", "out.csv", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_labels_that_no_address_holds_are_refused_before_the_first_file(
    sounds: Path, words_dir: Path, serve: Callable[..., AbstractContextManager[str]], capsys: Any
) -> None:
    labels = ",".join(f"{i} " + "é" * 45 for i in range(200))
    with serve(models_dir=words_dir) as url:
        out = str(sounds.parent / "tags.csv")
        assert (
            CLASSIFY.main([str(sounds), "--labels", labels, "--model", "words", "--url", url, "--out", out])
            == 1
        )
    assert "bytes of a request's address, and 32000 is the most" in capsys.readouterr().err
