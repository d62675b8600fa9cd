"""Slots of worker processes, and what several of them count together."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.process.files import try_lock
from service.process.workers import METRICS_DIR, Slot, TemporaryFolderError, metrics_folder

ROOT = Path(__file__).parents[3]

# A worker that counts what it is told to, says so and holds its slot until its input ends.
WORKER = """
import sys
from service.process.metrics import Metrics
from service.process.workers import Slot
metrics = Metrics(Slot.of_this_worker())
n, ends = int(sys.argv[1]), sys.argv[2:]
queue = [float(n)]
metrics.watch_queue(lambda: queue[0])
metrics.tell_model("toy", version="1", encoder="toy", precision="int8", device="cpu", embedding_size=16)
for _ in range(n):
    metrics.count_request("/embed", "toy", 200, 0.003)
metrics.page()  # writes the gauges down
print("counted", flush=True)
sys.stdin.read()
sys.stdout.write(metrics.page().decode())
"""


class Worker:
    def __init__(self, folder: Path, n: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(n)],
            cwd=ROOT,
            env=os.environ | {METRICS_DIR: str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "counted\n"

    def page(self) -> dict[str, float]:
        """What a scrape of it gives, by name and labels. It ends with that."""
        text = self.process.communicate(timeout=60)[0]
        return {
            sample.name
            + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


REQUESTS = "viola_requests_total,code=200,model=toy,route=/embed"
DURATIONS = "viola_request_duration_seconds_bucket,le=0.004,route=/embed"
MODEL = "viola_model_info,device=cpu,embedding_size=16,encoder=toy,model=toy,precision=int8,version=1"


def test_a_scrape_of_one_worker_tells_of_all(tmp_path: Path) -> None:
    first, second = Worker(tmp_path, 3), Worker(tmp_path, 4)
    page = first.page()
    second.kill()
    assert page[REQUESTS] == page[DURATIONS] == page["viola_queue_frames"] == 7
    assert page[MODEL] == 1
    assert page["process_resident_memory_bytes"] > 2 * 20e6
    assert page["process_open_fds"] > 10


def test_a_dead_workers_counts_stay_and_its_gauges_go(tmp_path: Path) -> None:
    dead, alive = Worker(tmp_path, 3), Worker(tmp_path, 4)
    dead.kill()
    page = alive.page()
    assert page[REQUESTS] == page[DURATIONS] == 7
    assert page["viola_queue_frames"] == 4


def test_the_worker_that_follows_counts_on_in_the_same_files(tmp_path: Path) -> None:
    Worker(tmp_path, 3).kill()
    files = sorted(tmp_path.iterdir())
    page = Worker(tmp_path, 4).page()
    assert page[REQUESTS] == 7
    assert page["viola_queue_frames"] == 4
    assert sorted(tmp_path.iterdir()) == files


def test_a_slot_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    first, second = Slot.claim(tmp_path), Slot.claim(tmp_path)
    assert (first.number, second.number) == (0, 1)
    first.lock.close()  # as the kernel does when a process ends
    third = Slot.claim(tmp_path)
    assert third.number == 0
    second.lock.close()
    third.lock.close()


def test_a_slot_that_somebody_looks_at_is_free(tmp_path: Path) -> None:
    """Who looks shares the lock for a moment; a worker that took another slot then would count in new files,
    for which a full disk has no room."""
    Slot.claim(tmp_path).lock.close()
    look = (tmp_path / "0.pid").open()
    assert try_lock(look, shared=True)
    threading.Timer(0.1, look.close).start()
    slot = Slot.claim(tmp_path)
    assert slot.number == 0
    slot.lock.close()


def test_one_process_alone_has_no_folder_and_several_have_one_that_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(METRICS_DIR, str(tmp_path))  # somebody else's
    with metrics_folder(1):
        Slot.of_this_worker.cache_clear()
        assert Slot.of_this_worker() is None
    with metrics_folder(2):
        folder = Path(os.environ[METRICS_DIR])
        assert folder.is_dir()
        assert folder != tmp_path
    assert not folder.exists()


def test_without_a_temporary_folder_several_workers_cannot_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(TemporaryFolderError, match="let TMPDIR name a folder"), metrics_folder(2):
        pass
    with metrics_folder(1):  # one counts in its memory
        pass


def test_the_folder_of_a_killed_supervisor_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, orphaned, starting = (
        tmp_path / f"viola-metrics-{name}" for name in ("dead", "orphaned", "starting")
    )
    for folder in (dead, orphaned, starting):
        folder.mkdir()
    for folder in (dead, orphaned):
        (folder / "supervisor.lock").touch()
    worker = Slot.claim(orphaned)  # it lives longer than its supervisor
    with metrics_folder(2):
        living = Path(os.environ[METRICS_DIR])
        with metrics_folder(2):
            assert living.is_dir()
            assert not dead.exists()
            assert orphaned.is_dir()
            assert starting.is_dir()  # it holds no lock yet
    worker.lock.close()
    with metrics_folder(2):
        assert not orphaned.exists()


def test_a_folder_that_was_deleted_is_noticed_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with metrics_folder(2) as folder:
        assert folder
        path = Path(os.environ[METRICS_DIR])
        held = Slot.claim(path)
        assert held.is_there()
        for delete in (
            (path / "1.pid").unlink,
            (path / "supervisor.lock").unlink,
            partial(shutil.rmtree, path),
        ):
            assert folder.is_there()
            delete()
            assert not folder.is_there()
            folder.make_again()
        assert folder.is_there()
        assert path.stat().st_mode & 0o777 == 0o700
        again = Slot.claim(path)
        assert again.is_there()
        assert not held.is_there()
        assert again.number == held.number, "who held it counts where nobody looks, and is to be replaced"
        for slot in (held, again):
            slot.lock.close()
    assert not path.exists()


def test_a_folder_in_use_never_looks_old_to_those_who_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with metrics_folder(2) as folder:
        assert folder
        path = Path(os.environ[METRICS_DIR])
        for each in (path, *path.iterdir()):
            os.utime(each, (0, 0))
        folder.touch()
        assert path.stat().st_mtime == 0, "not at every look"
        monkeypatch.setattr("service.process.workers.TOUCH_S", 0.0)
        folder.touch()
        assert all(each.stat().st_mtime > 0 for each in (path, *path.iterdir()))


def test_a_slot_needs_no_room_on_the_disk_that_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are there before the workers are, as long as any process id."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with metrics_folder(2):
        path = Path(os.environ[METRICS_DIR])
        before = {each.name: each.stat().st_size for each in path.iterdir()}
        slots = [Slot.claim(path) for _ in range(3)]  # of two workers, and of one that replaces another
        assert {each.name: each.stat().st_size for each in path.iterdir()} == before
        for slot in slots:
            assert int((path / f"{slot.number}.pid").read_text()) == os.getpid()
            slot.lock.close()


def test_without_file_locks_one_process_serves_and_several_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.process.workers.HAS_LOCKS", False)
    with metrics_folder(1) as folder:
        assert folder is None
    with pytest.raises(TemporaryFolderError, match="VIOLA_WORKERS=1"), metrics_folder(2):
        pass
