"""A connected socket in, out: how many of the bytes written to it its other end has not taken yet."""

import socket
import sys

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = termios = None  # type: ignore[assignment]

SO_NWRITE = 0x1024  # macOS, sys/socket.h


def unread_bytes(sock: socket.socket) -> int:
    """0 where the system does not tell."""
    try:
        if sys.platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, SO_NWRITE)
        if sys.platform == "linux":  # elsewhere TIOCOUTQ may be about something else
            return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError, AttributeError):  # it is closed, or of a kind that has no such queue
        pass
    return 0
