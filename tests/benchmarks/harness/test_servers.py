import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.harness.servers import Server, family, is_running, memory_kb, running

# Answers GET, and has started a process that would outlive it.
LEAVING = """
import subprocess, sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
subprocess.Popen(["sleep", "60"], start_new_session=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()
"""


def test_a_server_is_started_measured_and_stopped() -> None:
    server = Server(
        "python's", (sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"), ready="/"
    )
    with running(server) as up:
        assert up.cpu_s() > 0
        assert 1 < up.memory_mb() < 1000
        assert family(os.getpid()).count(up.pid) == 1
    assert family(os.getpid()).count(up.pid) == 0


def test_a_server_that_fails_to_start_says_where_its_log_is() -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with code 3; its log is .*broken\.log"),
        running(Server("broken", (sys.executable, "-c", "raise SystemExit(3)"))),
    ):
        pass


def test_what_a_server_leaves_behind_is_ended_with_it() -> None:
    with running(Server("leaves", (sys.executable, "-c", LEAVING, "{port}"), ready="/")) as server:
        (child,) = set(family(server.pid)) - {server.pid}
    for _ in range(100):
        # A process that was ended stays as a zombie (Z) until its parent has seen it.
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the child still runs")


def test_a_process_is_running_until_it_ends_waited_for_or_not() -> None:
    process = subprocess.Popen(["sleep", "60"])
    assert is_running(process.pid)
    assert memory_kb(process.pid, "VmHWM") >= memory_kb(process.pid, "VmRSS") > 0
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie still
    assert not is_running(process.pid)
    process.wait()
    assert not is_running(process.pid)
    assert memory_kb(process.pid, "VmRSS") == 0
