"""`python -m service embed --ray local`, with a Ray of its own, two actors, and processes that are killed."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from service.bulk import ray as bulk_ray
from service.bulk.classify import CLASSIFY
from service.bulk.embed import EMBED
from service.bulk.folder import InputFile
from service.bulk.ray import TRIES, Attempts, smaller
from tests.service.servers import listening

ROOT = Path(__file__).parents[3]
DIGIT, YES = "digit7_8k_mono_pcm16.wav", "keyword_yes_16k_mono_pcm16.wav"


def test_a_unit_is_cut_down_to_its_files_in_three_rounds() -> None:
    units = [[InputFile(Path(f"{n}.wav"), 0.0) for n in range(1024)]]
    for longest in (32, 5, 2):
        units = [list(piece) for unit in units for piece in smaller(unit)]
        assert max(map(len, units)) == longest
    assert [str(sound.location) for unit in units for sound in unit] == [f"{n}.wav" for n in range(1024)]
    assert [len(piece) for piece in smaller(units[0])] == [1, 1]


def test_attempts_are_counted_by_unit() -> None:
    attempts = Attempts()
    assert [attempts.begin(7), attempts.begin(8), attempts.begin(7)] == [1, 1, 2]


def test_without_ray_a_sentence_says_what_to_install(
    tmp_path: Path,
    fixtures_dir: Path,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert EMBED.main(command_of(fixtures_dir / YES, tmp_path / "out", models_dir)) == 1
    assert "--ray needs Ray: pip install '.[ray]'" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_said(
    tmp_path: Path, fixtures_dir: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    command = command_of(fixtures_dir / YES, tmp_path / "out", models_dir, ray="nobody.invalid")
    assert EMBED.main(command) == 1
    assert "no Ray answers at nobody.invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "what answers at {} is no Ray"),
        (b"", "what answers at {} is no Ray"),
        (None, "no Ray answers at {}: timed out"),
    ],
)
def test_an_address_of_something_else_is_said_before_ray_waits_for_it(
    answer: bytes | None,
    sentence: str,
    tmp_path: Path,
    fixtures_dir: Path,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(bulk_ray, "CONNECT_S", 0.2 if answer is None else 30.0)
    with listening(answer) as address:
        command = command_of(fixtures_dir / YES, tmp_path / "out", models_dir, ray=address)
        assert EMBED.main(command) == 1
    assert sentence.format(address) in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "auto"])
def test_an_address_where_nothing_listens_is_said(
    address: str,
    tmp_path: Path,
    fixtures_dir: Path,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # what `auto` finds
    assert EMBED.main(command_of(fixtures_dir / YES, tmp_path / "out", models_dir, ray=address)) == 1
    assert f"no Ray answers at {address}: Connection refused" in capsys.readouterr().err


def command_of(sounds: Path, out: Path, models_dir: Path, *, ray: str = "local") -> list[str]:
    cluster = ["--ray", ray, "--ray-actors", "2", "--part-rows", "3"]
    return [str(sounds), "--out", str(out), "--model", "toy", "--models-dir", str(models_dir), *cluster]


@pytest.fixture
def sounds(tmp_path: Path, fixtures_dir: Path) -> Path:
    """A list of good files, four of them as URLs; of a bad one; and of two that last for an hour."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    names = []
    for n in range(20):
        shutil.copy(fixtures_dir / (DIGIT, YES)[n % 2], folder / f"{n:02d}.wav")
        names.append((folder / f"{n:02d}.wav").as_uri() if n < 4 else f"sounds/{n:02d}.wav")
    shutil.copy(fixtures_dir / "invalid" / "text.wav", folder / "text.wav")
    for name in ("slow.wav", "deadly.wav"):
        write_an_hour(folder / name)
    names[5:5] = ["sounds/slow.wav", "sounds/text.wav"]
    names[15:15] = ["sounds/deadly.wav"]
    (tmp_path / "list.csv").write_text("\n".join(["path", *names]))
    return tmp_path / "list.csv"


def write_an_hour(path: Path) -> None:
    """Of silence, at 16 kHz; its zeros take no room on the disk."""
    n = 2 * 3600 * 16_000
    header = (
        b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
        + b"data"
        + struct.pack("<I", n)
    )
    path.write_bytes(b"RIFF" + struct.pack("<I", len(header) + n) + header)
    os.truncate(path, path.stat().st_size + n)


class Killer:
    """Kills each process that has `deadly.wav` open, and the first that has `slow.wav` open: that file is a
    short one from then on. pids: those that were killed."""

    def __init__(self, folder: Path, short: Path) -> None:
        self.pids: list[int] = []
        self._deadly, self._slow, self._short = folder / "deadly.wav", folder / "slow.wav", short

    def look(self) -> None:
        for pid, opened in open_files():
            if pid in self.pids:  # it is still ending
                continue
            if opened == self._deadly:
                self._kill(pid)
            elif opened == self._slow and self._short.exists():
                self._short.replace(self._slow)
                self._kill(pid)

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.pids.append(pid)


def open_files() -> Iterator[tuple[int, Path]]:
    """(pid, file) of Ray's actors."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"PartWriter" in (process / "cmdline").read_bytes():
                for opened in (process / "fd").iterdir():
                    yield int(process.name), opened.readlink()
        except OSError:  # it has ended, or closed the file, meanwhile
            continue


@contextmanager
def running(name: str, command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The command, told to stop if the test fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole = [sys.executable, "-m", "service", name, *command]
    with subprocess.Popen(whole, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@pytest.mark.timeout(1200)  # Ray starts, and then seven actors one after the other
@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc for who reads what")
def test_workers_are_killed_and_every_file_is_in_the_result_once_as_embed_answers(
    sounds: Path, models_dir: Path, fixtures_dir: Path, serve: Callable[[], AbstractContextManager[str]]
) -> None:
    pytest.importorskip("ray")
    folder, out = sounds.parent / "sounds", sounds.parent / "out"
    short = Path(shutil.copy(fixtures_dir / YES, sounds.parent / "short"))
    killer = Killer(folder, short)
    command = command_of(sounds.relative_to(sounds.parent), out.relative_to(sounds.parent), models_dir)
    with running("embed", command, sounds.parent) as process:
        while process.poll() is None:
            killer.look()
            time.sleep(0.02)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert len(killer.pids) == 1 + 2 * TRIES, said  # in its unit, then alone
    assert "21 of 23 files in out" in said

    rows = pyarrow.parquet.read_table(out)
    names = [Path(path).name for path in rows["paths"].to_pylist()]
    assert sorted(names) == [*(f"{n:02d}.wav" for n in range(20)), "slow.wav"]
    assert sum(path.startswith("file://") for path in rows["paths"].to_pylist()) == 4
    failed = [pyarrow.parquet.read_table(path).to_pylist() for path in out.glob("_failed-*")]
    assert {row["paths"]: row["errors"][:20] for table in failed for row in table} == {
        "sounds/text.wav": "the file is not audi",
        "sounds/deadly.wav": "whoever reads it die",
    }
    with serve() as url:
        answers = {name: embed(url, fixtures_dir / name) for name in (DIGIT, YES)}
    for name, vector in zip(names, rows["embeddings"].to_pylist(), strict=True):
        expected = answers[YES if name == "slow.wav" or int(name[:2]) % 2 else DIGIT]
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.timeout(600)  # Ray starts
def test_tags_are_written_by_actors_too(
    sounds: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    folder = sounds.parent / "sounds"
    for name in ("slow.wav", "deadly.wav"):
        (folder / name).unlink()
    here, there = sounds.parent / "here", sounds.parent / "there"
    asked = ["--head", "moods", "--threshold", "0.3"]
    cluster = command_of(folder, there, models_dir)
    alone = cluster[: cluster.index("--ray")]
    alone[alone.index("--out") + 1] = f"{here}/"
    with running("classify", [*cluster, *asked], sounds.parent) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert "20 of 21 files in" in said
    assert CLASSIFY.main([*alone, *asked, "--device", "cpu"]) == 0
    mine, theirs = (sorted_rows(out) for out in (here, there))
    assert len(mine) > 20
    assert [row | {"score": 0} for row in theirs] == [row | {"score": 0} for row in mine]
    # Other batches move the last digits of float32; scores are told to six.
    assert [row["score"] for row in theirs] == pytest.approx([row["score"] for row in mine], abs=1.5e-6)
    assert CLASSIFY.main([*alone, "--head", "pets"]) == 1
    assert "holds tags of toy 1 (float32, " in capsys.readouterr().err


def sorted_rows(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(out).to_pylist()
    return sorted(rows, key=lambda row: (row["path"], row["rank"]))


def embed(url: str, sound: Path) -> list[float]:
    headers = {"Content-Type": "audio/wav"}
    request = urllib.request.Request(f"{url}/embed", sound.read_bytes(), headers)
    with urllib.request.urlopen(request) as answer:
        embedding: list[float] = json.load(answer)["embedding"]
        return embedding
