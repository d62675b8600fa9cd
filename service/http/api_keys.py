"""The keys of VIOLA_API_KEYS and of a file in; whether a key that was shown is one of them out.

The file holds one key per line; empty lines and those that begin with # are passed over. It may be changed at
any time: the server looks at it once a second at most, when a request comes. A file that is gone or cannot be
read as keys leaves those that were read last; a file without keys refuses everybody.
"""

import hmac
import logging
import time
from collections.abc import Collection
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
MAX_FILE_BYTES = 1_000_000
MAX_KEY_BYTES = 1_000
BOM = b"\xef\xbb\xbf"  # what some editors put before UTF-8


class KeysFileError(ValueError):
    """The file cannot be read as keys; the sentence says why."""


class Keys:
    """`are_asked_for`: whether a request must show one. `admit` tells whether it showed a good one.

    Raises KeysFileError where the file cannot be read at start.
    """

    def __init__(self, fixed: Collection[str] = (), file: Path | None = None) -> None:
        self.are_asked_for = bool(fixed) or file is not None
        self._fixed = [key.encode() for key in fixed]
        self._keys = list(self._fixed)
        self._file = file
        self._look_at = 0.0
        self._seen: object = None
        if file is not None:
            self._seen = _state(file)
            self._take(_read(file))

    def admit(self, shown: bytes) -> bool:
        """Every key is compared, in constant time, so that the time tells nothing about any of them."""
        if self._file is not None and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look(self._file)
        return sum(hmac.compare_digest(shown, key) for key in self._keys) > 0

    def _look(self, file: Path) -> None:
        """Read the file again where it has changed."""
        if (state := _state(file)) == self._seen:
            return
        self._seen = state
        try:
            self._take(_read(file))
        except KeysFileError as error:
            log.error("%s; the keys that were read last stay valid", error)

    def _take(self, keys: list[bytes]) -> None:
        self._keys = self._fixed + keys
        if self._keys:
            log.info("%d API key(s), %d of them from %s", len(self._keys), len(keys), self._file)
        else:
            log.error("%s holds no key: every request that needs one is refused", self._file)


def _state(file: Path) -> object:
    """What changes with the file, a file that is put in its place included; an error is a state too."""
    try:
        found = file.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(file: Path) -> list[bytes]:
    """The keys. Raises KeysFileError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysFileError(f"the keys in {file} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise KeysFileError(f"{file} is longer than {MAX_FILE_BYTES} bytes: it is no file of keys")
    keys = []
    for number, line in enumerate(content.removeprefix(BOM).splitlines(), 1):
        key = line.strip(b" \t")
        if not key or key.startswith(b"#"):
            continue
        if len(key) > MAX_KEY_BYTES or any(byte < 32 or byte == 127 for byte in key):
            raise KeysFileError(f"line {number} of {file} is no key: it is too long, or no text")
        keys.append(key)
    return keys
