"""What the workers of one server share: a temporary folder, and in it a slot for each of them.

    supervisor               supervisor.lock
      ├── worker   slot 0    0.pid  counter_0.db  gauge_livesum_0.db  histogram_0.db  ...
      └── worker   slot 1    1.pid  counter_1.db  ...

A slot is a number that one living process holds at a time. The worker that replaces a dead one takes the
lowest free slot and goes on counting in its files, so that no count is lost and the files do not pile up.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from service.process.files import HAS_LOCKS, try_lock

# The variable by which prometheus_client's files are found; workers inherit it from the supervisor.
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"

PREFIX = "viola-metrics-"  # of the folder's name
SUPERVISOR = "supervisor.lock"  # in the folder: held by the supervisor as long as it lives
TOUCH_S = 3600.0  # far less than cleaners of /tmp wait

_NOBODY = "0".ljust(10)  # in the file of a slot; a process id takes its place


class TemporaryFolderError(RuntimeError):
    """The folder in which several workers count together cannot be made."""


class MetricsFolder:
    """The supervisor's: it has a slot for each worker, and for one that takes another's place, before they
    start, so that they need no room later; looks as used as it is to those who clean temporary folders; and
    is made again where it was deleted. Raises OSError."""

    def __init__(self, path: Path, workers: int) -> None:
        self._path = path
        self._n_slots = workers + 1
        self._touched_at = time.monotonic()
        self._lock = self._fill()

    def close(self) -> None:
        self._lock.close()

    def is_there(self) -> bool:
        """Whether nobody has deleted it, or some of its files."""
        return is_at(self._path / SUPERVISOR, self._lock) and all(slot.exists() for slot in self._slots())

    def make_again(self) -> None:
        """Those who have held slots in the old one must be replaced. Raises OSError."""
        shutil.rmtree(self._path, ignore_errors=True)
        self._path.mkdir(mode=0o700)
        deleted, self._lock = self._lock, self._fill()
        deleted.close()

    def touch(self) -> None:
        """Every TOUCH_S: all of it was used just now."""
        if time.monotonic() - self._touched_at > TOUCH_S:
            self._touched_at = time.monotonic()
            for path in (self._path, *self._path.iterdir()):
                with contextlib.suppress(OSError):
                    os.utime(path)

    def _fill(self) -> IO[str]:
        """The supervisor's lock, which it holds."""
        with contextlib.ExitStack() as on_failure:
            lock = on_failure.enter_context((self._path / SUPERVISOR).open("w"))
            try_lock(lock)
            for slot in self._slots():
                slot.write_text(_NOBODY)
            on_failure.pop_all()
        return lock

    def _slots(self) -> list[Path]:
        return [self._path / f"{number}.pid" for number in range(self._n_slots)]


@contextlib.contextmanager
def metrics_folder(workers: int) -> Iterator[MetricsFolder | None]:
    """A folder for the counts of several workers, named in the environment and removed at the end.

    To be entered before anybody imports prometheus_client. One process alone counts in its memory, whatever
    the environment says. Raises TemporaryFolderError.
    """
    os.environ.pop(METRICS_DIR, None)
    if workers == 1:
        yield None
        return
    if not HAS_LOCKS:
        raise TemporaryFolderError(
            "several workers need file locks, which this system has not; set VIOLA_WORKERS=1"
        )
    try:
        temporary = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        folder = MetricsFolder(Path(temporary.name), workers)
    except OSError as error:
        raise TemporaryFolderError(
            f"{error.strerror}; let TMPDIR name a folder that may be written to"
        ) from error
    _remove_abandoned(Path(temporary.name).parent)
    with temporary as path, contextlib.closing(folder):
        os.environ[METRICS_DIR] = path
        yield folder


def _remove_abandoned(temporary: Path) -> None:
    """The folders of supervisors that were killed, once their last worker has ended."""
    for supervisor in temporary.glob(f"{PREFIX}*/{SUPERVISOR}"):
        folder = supervisor.parent
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            held = (stack.enter_context(path.open()) for path in (supervisor, *folder.glob("*.pid")))
            if all(try_lock(lock) for lock in held):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Slot:
    """What a worker holds until it ends, in whatever way: the kernel then lets go of the lock."""

    number: int
    folder: Path
    lock: IO[str]

    @classmethod
    @functools.cache
    def of_this_worker(cls) -> "Slot | None":
        """The lowest free slot of the supervisor's folder, the same one whenever it is asked for; None in a
        process that serves alone."""
        folder = os.environ.get(METRICS_DIR)
        return cls.claim(Path(folder)) if folder else None

    @classmethod
    def claim(cls, folder: Path) -> "Slot":
        """The lowest free slot of `folder`."""
        for number in itertools.count():
            path = folder / f"{number}.pid"
            path.touch()
            lock = path.open("r+")
            while not (is_ours := try_lock(lock)) and not cls._is_held(path):
                time.sleep(0.001)  # somebody looked whether it is held
            if is_ours:
                lock.write(f"{os.getpid():<{len(_NOBODY)}}")  # over what is there: the disk may be full
                lock.flush()
                slot = cls(number, folder, lock)
                slot._forget_gauges(number)  # a worker that died here left them
                return slot
            lock.close()
        raise AssertionError("numbers do not end")

    def living(self) -> list[int]:
        """The process ids of all workers that live; the gauges of those that do not are removed."""
        pids = [os.getpid()]
        for path in self.folder.glob("*.pid"):
            number = int(path.stem)
            if number == self.number:
                continue
            with path.open() as lock:
                if try_lock(lock, shared=True):
                    self._forget_gauges(number)
                elif pid := int(lock.read() or 0):
                    pids.append(pid)
        return pids

    def is_there(self) -> bool:
        """Whether its folder is still the one that the workers share."""
        return is_at(self.folder / f"{self.number}.pid", self.lock)

    def is_held(self, number: int) -> bool:
        """Whether a living process holds the slot of this number."""
        return self._is_held(self.folder / f"{number}.pid")

    @staticmethod
    def _is_held(path: Path) -> bool:
        """Who holds it has the lock alone; whoever looks shares it for a moment."""
        try:
            with path.open() as lock:
                return not try_lock(lock, shared=True)
        except FileNotFoundError:
            return False
        except OSError:  # this process may open no more files
            return True

    def _forget_gauges(self, number: int) -> None:
        """What a dead worker measured last is no more; what it counted stays. The files stay, too, with their
        room on the disk: their first bytes tell how many of the others are used."""
        for path in self.folder.glob(f"gauge_live*_{number}.db"):
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                file.write(bytes(8))


def is_at(path: Path, file: IO[str]) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def end_with_the_supervisor() -> None:
    """In a worker: SIGTERM to itself once the supervisor is gone. A worker without one would hold the port
    forever."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def watch() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="viola-supervisor", daemon=True).start()
