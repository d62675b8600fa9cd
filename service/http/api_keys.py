"""The keys of the settings and of files in; what the keys that a request shows let it do out.

    keys in the settings     no key shown    a client's      an admin's
    none                     everything      everything      everything
    clients'                 401             all but writes  -
    admins'                  all but writes  -               everything
    both                     401             all but writes  everything

Writes are the routes that are marked `admin_only` (admin.py); they answer 403 to a client's key.

A file holds one key per line; empty lines and those that begin with # are skipped. It may be changed at any
time: when a request comes, the server looks whether it has changed, once a second at most. Where the file is
gone, or cannot be read as keys, the keys that were read last stay valid; with an empty file no key is valid.
"""

import hmac
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import unquote_to_bytes

from service.errors import Forbidden, Unauthorized
from service.settings import Settings

log = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
MAX_FILE_BYTES = 1_000_000
MAX_KEY_BYTES = 1_000
MAX_SHOWN = 8  # keys of one request that are looked at
# Browsers can set no header of a WebSocket; a subprotocol they can. What follows is the key, with whatever a
# subprotocol may not hold as %XX, as JavaScript's encodeURIComponent writes it.
SUBPROTOCOL = b"viola.key."
BOM = b"\xef\xbb\xbf"  # what some editors put before UTF-8


class ApiKeysFileError(ValueError):
    """The file cannot be read as keys; the sentence says why. kind: of the setting, `API` or `ADMIN`."""

    kind = "API"


class Access:
    """Who may do what. Raises ApiKeysFileError where a file of keys cannot be read at start."""

    def __init__(self, clients: "ApiKeys", admins: "ApiKeys") -> None:
        self._clients = clients
        self._admins = admins
        self.is_restricted = clients.are_required or admins.are_required

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            ApiKeys(settings.api_keys, settings.api_keys_file),
            ApiKeys(settings.admin_keys, settings.admin_keys_file, kind="admin"),
        )

    def check_client(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """For routes that anybody with a key may use. headers: a request's. Raises Unauthorized."""
        if self._clients.are_required:
            shown = shown_keys(headers)
            if not (self._clients.has_one_of(shown) or self._admins.has_one_of(shown)):
                raise Unauthorized("show a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")

    def check_admin(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """For routes that change what is served, after `check_client`. Raises Unauthorized or Forbidden."""
        if not self.is_restricted or self._admins.has_one_of(shown_keys(headers)):
            return
        if self._clients.are_required:
            which = "another key" if self._admins.are_required else "VIOLA_ADMIN_KEYS, which is not set here"
            raise Forbidden(f"the key is a client's, and this route needs an admin's: show {which}")
        raise Unauthorized("show an admin key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")


def shown_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """All keys that a request shows, wherever: a proxy or a client library may add one of its own."""
    shown = []
    for name, value in headers:
        if name == b"x-api-key":
            shown.append(value.strip(b" \t"))
        elif name == b"authorization":
            scheme, _, token = value.strip(b" \t").partition(b" ")
            if scheme.lower() == b"bearer":
                shown.append(token.strip(b" \t"))
        elif name == b"sec-websocket-protocol":
            for protocol in value.split(b","):
                key = protocol.strip(b" \t").removeprefix(SUBPROTOCOL)
                if len(key) < len(protocol.strip(b" \t")):
                    shown.append(unquote_to_bytes(key))
    return shown[:MAX_SHOWN]


class ApiKeys:
    """Of clients, or of admins. are_required: whether a request needs a key at all.

    Raises ApiKeysFileError where the file cannot be read at start.
    """

    def __init__(
        self, from_settings: Collection[str] = (), file: Path | None = None, *, kind: str = "API"
    ) -> None:
        self._kind = kind
        self.are_required = bool(from_settings) or file is not None
        self._from_settings = [key.encode() for key in from_settings]
        self._keys = list(self._from_settings)
        self._file = file
        self._next_check = 0.0
        self._file_state: object = None
        if file is not None:
            self._file_state = _state(file)
            try:
                self._use(_read(file))
            except ApiKeysFileError as error:
                error.kind = kind.upper()
                raise

    def has_one_of(self, shown: Sequence[bytes]) -> bool:
        """Whether any of the keys that a request shows is valid."""
        return any(self.is_valid(key) for key in shown)

    def is_valid(self, key: bytes) -> bool:
        """Every key is compared, in constant time, so that the time tells nothing about any of them."""
        if self._file is not None and (now := time.monotonic()) >= self._next_check:
            self._next_check = now + CHECK_EVERY_S
            self._read_if_changed(self._file)
        return sum(hmac.compare_digest(key, valid) for valid in self._keys) > 0

    def _read_if_changed(self, file: Path) -> None:
        if (state := _state(file)) == self._file_state:
            return
        self._file_state = state
        try:
            self._use(_read(file))
        except ApiKeysFileError as error:
            log.error("%s; the keys that were read last stay valid", error)

    def _use(self, keys: list[bytes]) -> None:
        """From now on these, beside those of the settings."""
        self._keys = self._from_settings + keys
        if self._keys:
            log.info("%d %s key(s), %d of them from %s", len(self._keys), self._kind, len(keys), self._file)
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
    """The keys. Raises ApiKeysFileError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ApiKeysFileError(f"the keys in {file} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ApiKeysFileError(f"{file} is longer than {MAX_FILE_BYTES} bytes: it is no file of keys")
    keys = []
    for number, line in enumerate(content.removeprefix(BOM).splitlines(), 1):
        key = line.strip(b" \t")
        if not key or key.startswith(b"#"):
            continue
        if len(key) > MAX_KEY_BYTES or any(byte < 32 or byte == 127 for byte in key):
            raise ApiKeysFileError(f"line {number} of {file} is no key: it is too long, or no text")
        keys.append(key)
    return keys
