"""Real workers with a small application, which die, hang, refuse or never start; and what the others do."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from uvicorn.config import STARTUP_FAILURE

from tests.service.servers import ROOT, free_port, until

# A supervisor of two workers; its limits are short.
SUPERVISOR = """
import sys
import uvicorn
from service.process.logs import configuration
from service.process.serving import bound_socket
from service.process.supervisor import Supervisor
from service.process.workers import metrics_folder

if __name__ == "__main__":
    port, start_s, hang_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    config = uvicorn.Config(
        "tests.service.process.toy_app:app", workers=2, lifespan="on", loop="service.process.balancing:Loop",
        http="service.http.drain:DrainingProtocol", log_config=configuration("text"), access_log=False,
    )
    sockets = [bound_socket("127.0.0.1", port)]
    supervisor = Supervisor(config, sockets, end_s=20, start_s=start_s, hang_s=hang_s)
    with metrics_folder(2) as folder:
        sys.exit(supervisor.run(folder))
"""


class Supervised:
    def __init__(self, folder: Path, *, start_s: float = 60, hang_s: float = 60) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._log_path = folder / "log"
        with self._log_path.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, str(port), str(start_s), str(hang_s)],
                cwd=ROOT,
                env=os.environ | {"TOY": str(folder), "TMPDIR": str(folder)},
                stderr=log,
            )

    def log(self) -> str:
        return self._log_path.read_text()

    def wait_for(self, pattern: str, *, times: int = 1) -> list[Any]:
        """Until the log has so many lines that match; what they match."""

        def is_there() -> bool:
            return len(re.findall(pattern, self.log())) >= times

        with contextlib.suppress(AssertionError):
            until(is_there, seconds=150)
        found = re.findall(pattern, self.log())
        assert len(found) >= times, f"{pattern} is not in\n{self.log()}"
        return found

    def wait_until_both_serve(self) -> None:
        self.wait_for("serving on", times=2)

    def pids(self) -> set[int]:
        """Of the workers that live."""
        slots = (path.read_text().strip() for path in self.folder.glob("viola-metrics-*/*.pid"))
        return {int(pid) for pid in slots if Path(f"/proc/{pid}").exists()} - {0}

    def answer(self) -> int:
        """The process id of whoever answers."""
        return int(httpx.get(self.url, timeout=20).text)

    def does(self, what: str, text: str = "") -> None:
        """From now on new workers do that."""
        (self.folder / what).write_text(text)

    def does_no_longer(self, what: str) -> None:
        (self.folder / what).unlink()

    def ends(self, code: int = 0) -> None:
        assert self.process.wait(30) == code, self.log()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    started: list[Supervised] = []

    def start(**limits: float) -> Supervised:
        started.append(Supervised(tmp_path, **limits))
        return started[0]

    yield start
    for each in started:
        each.process.kill()  # its workers end with it
        each.process.wait()


def test_a_restart_brings_new_workers_and_keeps_the_old_ones_where_it_cannot(
    supervised: Callable[..., Supervised],
) -> None:
    server = supervised(start_s=15)
    server.wait_until_both_serve()
    old = server.pids()
    assert len(old) == 2
    given_up = [
        ("refuse", "its model is torn", r"given up.* is not ready: its model is torn"),
        ("die", "", r"given up.* has died: exit code 7, before it was ready"),
        ("fail", "", rf"given up.* has died: exit code {STARTUP_FAILURE}, before"),
        ("hang", "", r"has not started within 15 s; it is killed\n.*given up.* has died: killed by SIGKILL"),
    ]
    for what, text, sentence in given_up:
        server.does(what, text)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(sentence)
        server.does_no_longer(what)
        assert server.answer() in old
        until(lambda: server.pids() == old, seconds=150)

    server.process.send_signal(signal.SIGHUP)
    server.wait_for("all workers are new")
    until(lambda: len(server.pids()) == 2 and not server.pids() & old, seconds=150)
    assert server.answer() in server.pids()
    server.process.send_signal(signal.SIGTERM)
    server.ends()


def test_workers_that_die_again_and_again_are_replaced_more_and_more_slowly(
    supervised: Callable[..., Supervised],
) -> None:
    server = supervised()
    server.wait_until_both_serve()
    killed, healthy = sorted(server.pids())
    server.does("die")
    os.kill(killed, signal.SIGKILL)
    how = (
        r"the worker (\d+) has died after [\d.]+ s: ([^.]*)\. The next one starts in (\d+) s: (\d) died young"
    )
    deaths = [re.fullmatch(how, each[0]) for each in server.wait_for(f"({how})", times=3)]  # type: ignore[arg-type]
    told = [each.groups()[1:] for each in deaths if each]
    assert told == [
        ("killed by SIGKILL (out of memory?)", "1", "1"),
        ("exit code 7, before it was ready; the lines above may tell why", "2", "2"),
        ("exit code 7, before it was ready; the lines above may tell why", "4", "3"),
    ]
    assert server.answer() == healthy
    server.does_no_longer("die")
    server.wait_for("serving on", times=3)
    assert healthy in server.pids()


def test_a_worker_that_hangs_is_killed_and_replaced(supervised: Callable[..., Supervised]) -> None:
    server = supervised(hang_s=5)
    server.wait_until_both_serve()
    hangs, healthy = sorted(server.pids())
    os.kill(hangs, signal.SIGSTOP)
    server.wait_for(rf"the worker {hangs} hangs: nothing was heard of it for \d+ s; it is killed")
    server.wait_for("serving on", times=3)
    assert healthy in server.pids()
    assert hangs not in server.pids()


def test_nobody_waits_for_a_worker_that_hung_and_was_killed(supervised: Callable[..., Supervised]) -> None:
    server = supervised(hang_s=3600)
    server.wait_until_both_serve()
    hangs, _ = server.pids()
    os.kill(hangs, signal.SIGSTOP)
    os.kill(hangs, signal.SIGKILL)
    server.wait_for(f"the worker {hangs} has died")
    server.process.send_signal(signal.SIGTERM)
    server.ends()


def test_a_worker_that_hangs_holds_up_the_end_for_seconds_only(
    supervised: Callable[..., Supervised],
) -> None:
    server = supervised(hang_s=3600)
    server.wait_until_both_serve()
    hangs, _ = server.pids()
    os.kill(hangs, signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    server.ends()  # within HANG_AT_THE_END_S
    assert f"the worker {hangs} hangs" in server.log()


def test_one_that_is_not_ready_leaves_connections_to_the_others(
    supervised: Callable[..., Supervised],
) -> None:
    server = supervised()
    server.wait_until_both_serve()
    killed, healthy = sorted(server.pids())
    server.does("refuse", "its model is torn")
    os.kill(killed, signal.SIGKILL)
    server.wait_for("serving on", times=3)
    assert {server.answer() for _ in range(20)} == {healthy}


def test_a_server_none_of_whose_workers_can_start_ends(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    (tmp_path / "fail").touch()
    server = supervised()
    server.ends(STARTUP_FAILURE)
    assert "none has served yet: the server ends" in server.log()
