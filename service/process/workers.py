"""Several server processes behind one port: who starts, replaces and ends them, and the slot each one holds.

    supervisor ── binds the port, starts the workers, replaces those that die, ends all of them
      ├── worker   slot 0   counter_0.db  gauge_livesum_0.db  histogram_0.db
      └── worker   slot 1   counter_1.db  ...

A slot is a number that one living process holds at a time. The worker that replaces a dead one takes the
lowest free slot and goes on counting in its files, so that no count is lost and the files do not pile up.
"""

import contextlib
import fcntl
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

# The variable by which prometheus_client's files are found; workers inherit it from the supervisor.
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"

PREFIX = "viola-metrics-"  # of the folder's name
SUPERVISOR = "supervisor.lock"  # in the folder: held by the supervisor as long as it lives


class NoTemporaryFolder(RuntimeError):  # noqa: N818 - it says what is missing
    """Several workers count in a folder together, and none can be made."""


class Supervisor(Multiprocess):
    """uvicorn's supervisor, which lets go of the port as soon as it ends its workers.

    As long as it held the port, connections would be taken that nobody answers while the workers finish.
    """

    def terminate_all(self) -> None:
        super().terminate_all()
        for each in self.sockets:
            each.close()

    @property
    def has_failed(self) -> bool:
        """Whether it ended because a worker could not start."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)


@contextlib.contextmanager
def metrics_folder(workers: int) -> Iterator[None]:
    """A folder for the counts of several workers, named in the environment and removed at the end.

    To be entered before anybody imports prometheus_client. One process alone counts in its memory, whatever
    the environment says. Raises NoTemporaryFolder.
    """
    os.environ.pop(METRICS_DIR, None)
    if workers == 1:
        yield
        return
    try:
        temporary = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        raise NoTemporaryFolder(
            f"{error.strerror}; let TMPDIR name a folder that may be written to"
        ) from error
    _remove_abandoned(Path(temporary.name).parent)
    with temporary as folder, (Path(folder) / SUPERVISOR).open("w") as lock:
        _locks(lock, fcntl.LOCK_EX)
        os.environ[METRICS_DIR] = folder
        yield


def _remove_abandoned(temporary: Path) -> None:
    """The folders of supervisors that were killed, once their last worker has ended."""
    for supervisor in temporary.glob(f"{PREFIX}*/{SUPERVISOR}"):
        folder = supervisor.parent
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            held = (stack.enter_context(path.open()) for path in (supervisor, *folder.glob("*.pid")))
            if all(_locks(lock, fcntl.LOCK_EX) for lock in held):
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
            lock = (folder / f"{number}.pid").open("a+")
            if _locks(lock, fcntl.LOCK_EX):
                lock.truncate(0)
                lock.write(str(os.getpid()))
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
                if _locks(lock, fcntl.LOCK_SH):
                    self._forget_gauges(number)
                elif pid := lock.read():
                    pids.append(int(pid))
        return pids

    def is_held(self, number: int) -> bool:
        """Whether a living process holds the slot of this number."""
        try:
            with (self.folder / f"{number}.pid").open() as lock:
                return not _locks(lock, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False
        except OSError:  # this process may open no more files
            return True

    def _forget_gauges(self, number: int) -> None:
        """What a dead worker measured last is no more; what it counted stays."""
        for path in self.folder.glob(f"gauge_live*_{number}.db"):
            path.unlink(missing_ok=True)


def end_with_the_supervisor() -> None:
    """In a worker: SIGTERM to oneself when the supervisor is gone. A worker without one would hold the port
    for ever."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def watch() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="viola-supervisor", daemon=True).start()


def _locks(file: IO[str], kind: int) -> bool:
    """Whether the file could be locked, without waiting."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
