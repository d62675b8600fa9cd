"""What a client has not read yet, where the system tells and where it does not."""

import socket
import sys
from collections.abc import Iterator

import pytest

from service.process import send_queue
from service.process.send_queue import unread_bytes


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """Of a connection whose client does not read: as much is written to it as it takes."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        accepted.setblocking(False)
        try:
            while True:
                accepted.send(bytes(65_536))
        except BlockingIOError:
            yield accepted


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no other system tells")
def test_it_tells_what_waits_in_the_system(sock: socket.socket) -> None:
    assert unread_bytes(sock) > 10_000


@pytest.mark.parametrize("missing", ["fcntl", "termios"])
def test_without_the_call_nothing_is_known(
    missing: str, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_queue, missing, None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert unread_bytes(sock) == 0


@pytest.mark.parametrize("system", ["freebsd14", "win32"])
def test_nobody_else_is_asked_in_linux_words(
    system: str, sock: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert unread_bytes(sock) == 0


def test_macos_is_asked_in_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket:
        def getsockopt(self, level: int, option: int) -> int:
            assert (level, option) == (socket.SOL_SOCKET, 0x1024)
            return 123

    monkeypatch.setattr(sys, "platform", "darwin")
    assert unread_bytes(Socket()) == 123  # type: ignore[arg-type]


def test_a_socket_that_is_closed_holds_nothing(sock: socket.socket) -> None:
    sock.close()
    assert unread_bytes(sock) == 0
