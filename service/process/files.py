"""Files that several processes share: room on the disk before it is written to, locks, and whole files.

A page of a mapped file for which the disk has no room is fatal to whoever writes it (SIGBUS), and a new file
has room for none of its pages: they are holes.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
PIECE = bytes(65_536)
NEW = ".new-"  # before the name of a file that is being written
_NOT_HERE = (errno.EINVAL, errno.EOPNOTSUPP)  # of file systems that cannot take room beforehand


def allocate(file: int, n_bytes: int) -> None:
    """The open file's first `n_bytes` have room on the disk from now on; what it holds stays. Raises OSError,
    such as ENOSPC."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(file, 0, n_bytes)
            return
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    end = os.fstat(file).st_size
    while end < n_bytes:
        end += os.pwrite(file, PIECE[: n_bytes - end], end)


def lock(file: IO[str]) -> None:
    """Lock the file for as long as it is open, once nobody else has it; nothing without locks here."""
    if HAS_LOCKS:
        fcntl.flock(file, fcntl.LOCK_EX)


def try_lock(file: IO[str], *, shared: bool = False) -> bool:
    """Try to lock the file for as long as it is open, or the process lives; without waiting."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end: in one step, and for good, so that
    whoever reads sees the old file or the new one, a power cut later too. Where the writing fails the old
    file stays. Raises OSError, such as ENOSPC."""
    new = path.parent / f"{NEW}{secrets.token_hex(8)}"
    try:
        with new.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """As `whole_file` does. Raises OSError."""
    with whole_file(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """What was renamed or removed in it stays so. Raises OSError."""
    if os.name == "nt":  # a folder is no file there
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
