"""Counts on a disk that is full, and on systems without Linux' calls."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from service.process import counts_file
from service.process.counts_file import FIRST_BYTES, CountsFile
from service.process.files import allocate
from service.process.workers import Slot


def values(path: Path) -> dict[str, float]:
    """As the library reads them from the file for a scrape."""
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(path)}


@pytest.fixture
def full_when_told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Its last value tells whether the disk is full from now on."""
    is_full = [False]
    take = os.posix_fallocate

    def posix_fallocate(file: int, start: int, n_bytes: int) -> None:
        if is_full[-1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        take(file, start, n_bytes)

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    monkeypatch.setattr(counts_file, "RETRY_S", 0.0)
    return is_full


def test_the_file_is_the_librarys_and_has_room_for_all_that_it_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "counter_0.db"
    CountsFile(str(path)).write_value("a", 3.0, 0.0)
    assert values(path) == {"a": 3}
    assert path.stat().st_blocks * 512 >= path.stat().st_size == FIRST_BYTES, "no holes"
    follows = CountsFile(str(path))
    follows.write_value("b", 4.0, 0.0)
    assert values(path) == {"a": 3, "b": 4}
    assert follows.read_value("a")[0] == 3
    read_by_the_library = MmapedDict(str(path))
    assert read_by_the_library.read_value("b")[0] == 4
    read_by_the_library.close()


def test_it_grows_without_holes(tmp_path: Path) -> None:
    path = tmp_path / "counter_0.db"
    counts = CountsFile(str(path))
    for n in range(3000):
        counts.write_value(f"a key of some length, number {n}", float(n), 0.0)
    assert len(values(path)) == 3000
    assert path.stat().st_size > FIRST_BYTES
    assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_without_room_it_counts_in_memory_until_there_is(
    tmp_path: Path, full_when_told: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "counter_0.db"
    full_when_told.append(True)
    counts = CountsFile(str(path))
    counts.write_value("a", 1.0, 0.0)
    counts.write_value("a", 2.0, 0.0)
    assert list(tmp_path.iterdir()) == [], "an empty file would fail every scrape"
    assert caplog.text.count("No space left on device") == 1
    full_when_told.append(False)
    counts.write_value("b", 3.0, 0.0)
    assert values(path) == {"a": 2, "b": 3}


def test_without_room_to_grow_the_file_stays_as_it_was_and_nothing_is_lost(
    tmp_path: Path, full_when_told: list[bool]
) -> None:
    path = tmp_path / "counter_0.db"
    counts = CountsFile(str(path))
    counts.write_value("first", 1.0, 0.0)
    full_when_told.append(True)
    for n in range(3000):
        counts.write_value(f"a key of some length, number {n}", float(n), 0.0)
    counts.write_value("first", 5.0, 0.0)
    assert values(path)["first"] == 1
    assert len(values(path)) < 3000
    full_when_told.append(False)
    counts.write_value("first", 6.0, 0.0)
    assert values(path)["first"] == 6
    assert len(values(path)) == 3001


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, with a page or two of free room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("only root may mount a disk of its own")
    try:
        (folder / "fill").write_bytes(bytes(512 * 1024 - 16384))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full_kills_nobody(full_disk: Path) -> None:
    """The library's own file dies of SIGBUS in this place."""
    path = full_disk / "counter_0.db"
    slot, counts = Slot.claim(full_disk), CountsFile(str(path))
    for n in range(3000):  # 200 kB
        counts.write_value(f"a key of some length, number {n}", float(n), 0.0)
    assert not path.exists()
    (full_disk / "fill").unlink()
    counts._retry_at = 0.0
    counts.write_value("last", 1.0, 0.0)
    assert len(values(path)) == 3001
    counts.close()
    slot.lock.close()


@pytest.mark.parametrize("held", [b"", b"something"])
@pytest.mark.parametrize("missing", ["the call", "the file system's support"])
def test_room_is_taken_with_zeros_where_it_cannot_be_taken_otherwise(
    held: bytes, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_supported(file: int, start: int, n_bytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if missing == "the call":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", not_supported)
    path = tmp_path / "file"
    path.write_bytes(held)
    with path.open("r+b") as file:
        allocate(file.fileno(), 100_000)
        allocate(file.fileno(), 50_000)
    assert path.read_bytes() == held.ljust(100_000, b"\0")
    assert path.stat().st_blocks * 512 >= 100_000


def test_a_dead_workers_gauges_leave_their_room_to_the_next(tmp_path: Path) -> None:
    dead = Slot.claim(tmp_path)
    gauges = tmp_path / "gauge_livesum_0.db"
    CountsFile(str(gauges)).write_value("ready", 1.0, 0.0)
    dead.lock.close()
    alive = Slot.claim(tmp_path)
    assert alive.number == 0
    assert values(gauges) == {}
    assert gauges.stat().st_blocks * 512 >= FIRST_BYTES
    alive.lock.close()
