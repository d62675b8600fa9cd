"""SIGTERM, SIGINT and SIGHUP, from the first instruction on until there is a server that hears them.

Imported before everything else, so that it imports next to nothing itself. The first process of a container
needs it most: for that one the kernel drops every signal that it has no handler for.
"""

import os
import signal
from typing import Any

# On Windows there is no SIGHUP.
SIGHUP: signal.Signals | None = getattr(signal, "SIGHUP", None)

_TERMINALS = [number for number in (0, 1, 2) if os.isatty(number)]


def end_at_once() -> None:
    """Until others set their own handlers: the first SIGTERM ends the process with exit code 0, Ctrl-C with
    130, and SIGHUP is passed over, for what it asks to be loaded is still to be loaded."""
    signal.signal(signal.SIGTERM, exit_now)
    signal.signal(signal.SIGINT, exit_now)
    if SIGHUP:
        signal.signal(SIGHUP, lambda number, frame: os._exit(0) if has_lost_its_terminal() else None)


def exit_now(number: int, frame: Any) -> None:
    """A handler for a process that has not accepted any request. It raises nothing: whatever is being
    imported might catch it."""
    os._exit(128 + number if number == signal.SIGINT else 0)


def has_lost_its_terminal() -> bool:
    """Whether SIGHUP means what its name says: the terminal in which the process was started was closed."""
    return bool(_TERMINALS) and not any(map(os.isatty, _TERMINALS))
