import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet
import pytest

from service.bulk.errors import CommandError
from service.bulk.folder import Folder, Parts, work_into
from service.bulk.inputs import locations
from service.bulk.kinds import EMBEDDINGS
from service.bulk.offline import FileResult, Location
from service.bulk.table import Row

ROOT = Path(__file__).parents[3]
MODEL = "toy 1"


def embed(paths: Iterable[Location]) -> Iterator[FileResult]:
    """A vector of two numbers, the first of them the size of the file; a file `bad…` cannot be embedded."""
    for path in paths:
        name = Path(path).name
        if name.startswith("bad"):
            yield FileResult(path, error=f"{name} is not audio")
        else:
            size = Path(path).stat().st_size if isinstance(path, Path) else 0
            yield FileResult(path, np.array([size, 1], dtype=np.float32), duration_s=1.0)


def run(out: Path | str, *inputs: Path | str, part_rows: int = 4, model: str = MODEL) -> Parts[Row]:
    parts = Parts(str(out), EMBEDDINGS, model)
    list(work_into(parts, embed, locations(map(str, inputs)), part_rows=part_rows))
    return parts


def rows_of(out: Path) -> dict[str, float]:
    """The size that each file's vector tells, as a reader of the folder sees it; no file twice."""
    rows = pyarrow.parquet.read_table(out)
    names = [Path(path).name for path in rows["paths"].to_pylist()]
    assert max(Counter(names).values(), default=1) == 1
    return dict(zip(names, (vector[0] for vector in rows["embeddings"].to_pylist()), strict=True))


def failures_of(out: Path) -> dict[str, str]:
    tables = [pyarrow.parquet.read_table(path) for path in sorted(out.glob("_failed-*.parquet"))]
    pairs = [pair for table in tables for pair in zip(*table.to_pydict().values(), strict=True)]
    assert len(dict(pairs)) == len(pairs)
    return {Path(path).name: error for path, error in pairs}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for name in "abcdefghij":
        (folder / f"{name}.wav").write_bytes(b"1")
    (folder / "bad.wav").touch()
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def change(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (path.stat().st_mtime + 10,) * 2)


def test_a_folder_of_parts_reads_as_one_table_and_failures_stand_beside_it(out: Path, sounds: Path) -> None:
    parts = run(out, sounds)
    assert sorted(path.name for path in out.iterdir()) == [
        "_failed-00000.parquet",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    assert rows_of(out) == {f"{name}.wav": 1 for name in "abcdefghij"}
    assert failures_of(out) == {"bad.wav": "bad.wav is not audio"}
    assert (parts.n_found, parts.counts()) == (11, (10, 1))


def test_a_file_that_is_named_twice_is_embedded_once(out: Path, sounds: Path) -> None:
    assert run(out, sounds, sounds / "a.wav").n_found == 11
    assert len(rows_of(out)) == 10


def test_a_second_run_embeds_new_and_failed_files_alone(out: Path, sounds: Path) -> None:
    run(out, sounds)
    (sounds / "k.wav").write_bytes(b"22")
    parts = run(out, sounds)
    assert parts.n_done_already == 10
    assert rows_of(out) == {f"{name}.wav": 1 for name in "abcdefghij"} | {"k.wav": 2}
    assert failures_of(out) == {"bad.wav": "bad.wav is not audio"}
    assert sorted(path.name for path in out.glob("_*")) == ["_failed-00003.parquet"]


def test_files_that_a_run_does_not_find_keep_their_rows(out: Path, sounds: Path) -> None:
    run(out, sounds)
    assert run(out, sounds / "a.wav").counts() == (1, 0)
    assert len(rows_of(out)) == 10
    assert len(failures_of(out)) == 1


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests/service/bulk")
from test_folder import embed
from service.bulk.folder import Parts, work_into
from service.bulk.inputs import locations
from service.bulk.kinds import EMBEDDINGS

def killed_in_the_middle(paths):
    for n, result in enumerate(embed(paths)):
        if n == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        yield result

out, sounds = sys.argv[1:]
list(work_into(Parts(out, EMBEDDINGS, "toy 1"), killed_in_the_middle, locations([sounds]), part_rows=3))
"""


def test_a_killed_run_goes_on_and_every_file_is_there_once(out: Path, sounds: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, out, sounds], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(rows_of(out)) + len(failures_of(out)) == 6
    (out / ".new-0123456789abcdef").write_bytes(b"half a par")  # as if it was killed while it wrote
    parts = run(out, sounds, part_rows=3)
    assert parts.n_done_already == 5  # and one had failed
    assert rows_of(out) == {f"{name}.wav": 1 for name in "abcdefghij"}
    assert set(failures_of(out)) == {"bad.wav"}
    assert not list(out.glob(".*"))


def test_a_stopped_run_keeps_what_it_has(out: Path, sounds: Path) -> None:
    results = work_into(Parts(str(out), EMBEDDINGS, MODEL), embed, locations([str(sounds)]), part_rows=100)
    for _ in range(3):
        next(results)
    results.close()  # as Ctrl-C does
    assert set(rows_of(out)) == {"a.wav", "b.wav"}
    assert set(failures_of(out)) == {"bad.wav"}


def test_a_changed_file_is_embedded_again_and_its_older_row_goes(out: Path, sounds: Path) -> None:
    run(out, sounds)
    change(sounds / "b.wav", b"333")
    run(out, sounds)
    assert rows_of(out)["b.wav"] == 3
    assert len(rows_of(out)) == 10


def test_rows_that_a_killed_run_left_twice_are_cleared_by_the_next(
    out: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(out, sounds)
    for name in "abc":  # of the first part no row stays
        change(sounds / f"{name}.wav", b"333")
    change(sounds / "bad.wav", b"1")
    (sounds / "bad.wav").rename(sounds / "good.wav")
    with monkeypatch.context() as killed:
        killed.setattr(Parts, "tidy", lambda parts: None)
        run(out, sounds)
    with pytest.raises(AssertionError):
        rows_of(out)
    run(out, sounds)
    assert rows_of(out) == {f"{name}.wav": 3 if name in "abc" else 1 for name in "abcdefghij"} | {
        "good.wav": 1
    }
    assert not (out / "part-00000.parquet").exists()


def test_a_file_that_has_become_bad_keeps_its_row_and_one_that_has_become_good_loses_its_failure(
    out: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(out, sounds)
    change(sounds / "a.wav", b"333")
    with monkeypatch.context() as broken:
        broken.setitem(globals(), "embed", lambda paths: (FileResult(path, error="broken") for path in paths))
        assert run(out, sounds).counts() == (10, 2)
    assert rows_of(out)["a.wav"] == 1
    assert failures_of(out) == {"a.wav": "broken", "bad.wav": "broken"}
    assert run(out, sounds).counts() == (10, 1)
    assert rows_of(out)["a.wav"] == 3
    assert set(failures_of(out)) == {"bad.wav"}


def test_names_that_are_no_utf_8_are_written_with_their_bytes_and_found_again(
    out: Path, tmp_path: Path
) -> None:
    names = [b"caf\xe9.wav", "café.wav".encode(), b"bad\xff.wav"]
    try:
        for name in names:
            (tmp_path / os.fsdecode(name)).write_bytes(b"1")
    except OSError:
        pytest.skip("this file system knows only UTF-8")
    run(out, tmp_path)
    assert rows_of(out) == {r"caf\xe9.wav": 1, "café.wav": 1}
    assert failures_of(out) == {r"bad\xff.wav": r"bad\xff.wav is not audio"}
    for shown in (*rows_of(out), *failures_of(out)):  # as the guide says
        found = subprocess.run(["bash", "-c", 'printf %b "$1"', "", shown], capture_output=True, check=True)
        assert found.stdout in names
    assert run(out, tmp_path).n_done_already == 2


def test_parts_of_another_model_are_not_mixed_in(out: Path, sounds: Path) -> None:
    run(out, sounds)
    with pytest.raises(CommandError, match="holds embeddings of toy 1, not of toy 2"):
        run(out, sounds, model="toy 2")
    (out / "mine.txt").touch()
    Parts(str(out), EMBEDDINGS, "toy 2", overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_a_damaged_part_is_said(content: bytes | None, out: Path) -> None:
    out.mkdir()
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"names": ["a"]}), out / "part-00000.parquet")
    else:
        (out / "part-00000.parquet").write_bytes(content)
    with pytest.raises(CommandError, match=r"out/part-00000.parquet is not a table of embeddings"):
        Parts(str(out), EMBEDDINGS, MODEL)


def test_an_out_that_cannot_be_made_is_said(sounds: Path) -> None:
    with pytest.raises(CommandError, match="cannot be written: Not a directory"):
        Parts(str(sounds / "a.wav" / "out"), EMBEDDINGS, MODEL)


def test_parts_are_written_where_a_url_says() -> None:
    elsewhere = fsspec.filesystem("memory")
    for name in "abcde":
        elsewhere.pipe_file(f"/afar/sounds/{name}.wav", b"1")
    run("memory://afar/out", "memory://afar/sounds", part_rows=2)
    assert run("memory://afar/out", "memory://afar/sounds", part_rows=2).n_done_already == 5
    folder = Folder("memory://afar/out/", "embeddings")
    assert folder.names("part-") == [f"part-0000{n}.parquet" for n in range(3)]
    paths = [path for name in folder.names("part-") for path in folder.read(name)["paths"].to_pylist()]
    assert paths == [f"memory:///afar/sounds/{name}.wav" for name in "abcde"]


MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np
from service.bulk.folder import Parts, work_into
from service.bulk.inputs import locations
from service.bulk.kinds import EMBEDDINGS
from service.bulk.offline import FileResult

out, n = Path(sys.argv[1]), int(sys.argv[2])

def embed(paths):
    for path in paths:
        yield FileResult(path, np.zeros(1024, dtype=np.float32), duration_s=1.0)

def peak_mb(n, name):
    table = out / f"{name}.csv"
    with table.open("w") as file:
        file.write("path\\n")
        file.writelines(f"memory://a/folder/with/a/long/name/{i:08d}.wav\\n" for i in range(n))
    parts = Parts(str(out / name), EMBEDDINGS, "toy 1")
    for _ in work_into(parts, embed, locations([str(table)]), part_rows=256):
        pass
    again = Parts(str(out / name), EMBEDDINGS, "toy 1")
    assert not list(work_into(again, embed, locations([str(table)]), part_rows=256))
    assert again.n_done_already == n
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = peak_mb(512, "few")
print(peak_mb(n, "many") - few)
"""


def test_memory_does_not_grow_with_the_number_of_files(out: Path) -> None:
    out.mkdir()
    n = 16_000  # 64 MB of vectors
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, out, str(n)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 24
