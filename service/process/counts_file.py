"""What a worker counts in, a file of prometheus_client's format out, in which a full disk kills nobody.

room on the disk      the file, as the library writes it; every byte has room before it is written
none, or not enough   memory, unseen by the other workers; the file again within RETRY_S of room
"""

import logging
import mmap
import struct
import time
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from service.process.files import allocate

log = logging.getLogger(__name__)

FIRST_BYTES = 65_536  # most files never need more
HEADER = struct.Struct("i4x")  # how many bytes are used
BESIDE_THE_KEY = 28  # bytes of an entry, at most: the key's length, its padding, value and time
RETRY_S = 1.0


class CountsFile(MmapedDict):
    """In place of prometheus_client's own. Counts on where the file's last writer stopped."""

    def __init__(self, filename: str) -> None:
        self._path = Path(filename)
        held = self._path.read_bytes() if self._path.exists() else b""
        self._used = max(HEADER.size, HEADER.unpack_from(held)[0]) if held else HEADER.size
        self._m = held[: self._used]
        self._is_in_file = True
        self._move(max(FIRST_BYTES, len(held)))
        self._positions = {key: position for key, _, _, position in self._read_all_values()}

    def close(self) -> None:
        self._m.close()

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + BESIDE_THE_KEY
        if needed > self._capacity:
            self._move(max(needed, 2 * self._capacity))
        super()._init_value(key)

    def _move(self, capacity: int) -> None:
        """Go on in so many bytes, of the file if there is room."""
        held = self._m[: self._used]
        try:
            self._m = self._mapped(capacity)
            if not self._is_in_file:
                log.info("counting in %s again", self._path)
            self._is_in_file = True
            vars(self).pop("write_value", None)
        except OSError as error:
            if self._is_in_file:
                log.error(
                    "no room for %s: counting in memory, which /metrics does not show: %s", self._path, error
                )
            self._is_in_file, self._retry_at = False, time.monotonic() + RETRY_S
            self._m = mmap.mmap(-1, capacity)
            # Only for now: a request writes a dozen values, at the library's own speed.
            vars(self)["write_value"] = self._try_again_and_write
        self._capacity = capacity
        # The header last: others may be reading.
        self._m[HEADER.size : self._used] = held[HEADER.size :].ljust(self._used - HEADER.size, b"\0")
        self._m[: HEADER.size] = HEADER.pack(self._used)

    def _try_again_and_write(self, key: str, value: float, timestamp: float) -> None:
        if time.monotonic() >= self._retry_at:
            self._move(self._capacity)
        MmapedDict.write_value(self, key, value, timestamp)

    def _mapped(self, capacity: int) -> mmap.mmap:
        """The file, mapped and with room. It appears with its full size: an empty one would fail its readers.
        Raises OSError."""
        if not self._path.exists():
            new = self._path.with_suffix(".new")
            try:
                with new.open("wb") as file:
                    allocate(file.fileno(), capacity)
                new.replace(self._path)
            except OSError:
                new.unlink(missing_ok=True)
                raise
        with self._path.open("r+b") as file:
            allocate(file.fileno(), capacity)
            return mmap.mmap(file.fileno(), capacity)
