"""viola beside its peers: wrong answers are left out and told, ratios are of one round, the best is named."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import load
from benchmarks.harness.clients import Burst
from benchmarks.harness.results import middle
from benchmarks.harness.servers import Server, running
from benchmarks.load import Entry
from benchmarks.peers import install
from benchmarks.peers.catalogue import PEERS

CLIP = b"not really sound"

# A server that answers every request with the body in its last argument.
ANSWERING = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(sys.argv[2])))
        self.end_headers()
        self.wfile.write(sys.argv[2].encode())
    do_POST = do_GET
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def answering(name: str, answer: str) -> Entry:
    return Entry(name, Server(name, (sys.executable, "-c", ANSWERING, "{port}", answer), ready="/"))


def numbers(*values: float) -> str:
    return json.dumps({"embedding": values})


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "WARM_UP_S", 0.05)
    monkeypatch.setattr(load, "IDLE_S", 0.05)


@pytest.mark.usefixtures("hurried")
def test_servers_are_compared_that_answer_alike_and_the_others_are_told() -> None:
    skipped: dict[str, str] = {}
    broken = Entry("broken", Server("broken", (sys.executable, "-c", "raise SystemExit(3)")))
    group = [
        answering("viola float32", numbers(1, 2)),
        answering("a peer", "[[1.0, 2.0]]"),
        answering("of another model", numbers(2, -1)),
        broken,
    ]
    *rows, work = load.measure(
        group, "float32", [1, 32], rounds=2, seconds=0.1, skipped=skipped, work=lambda seconds: 1e9
    )
    assert [(row["entry"], row["clients"]) for row in rows] == [
        *(("viola float32", 1), ("viola float32", 32), ("a peer", 1), ("a peer", 32))
    ]
    assert (work["entry"], work["clients"], work["per_s"]["median"]) == (load.WORK, 32, 1e9)
    assert work["ratio"]["median"] > 1000
    for row in rows:
        assert row["requests"] > 0
        assert row["failures"] == 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["memory_mb"] > 1
    assert [row["ratio"]["median"] for row in rows[:2]] == [1, 1]
    assert "ended with code 3" in skipped["broken"]
    assert skipped["of another model"] == "another vector than viola's (cosine 0.0000)"


@pytest.mark.usefixtures("hurried")
def test_nothing_is_compared_when_viola_itself_is_missing() -> None:
    entry = answering("viola float32", "no JSON")
    with pytest.raises(ValueError):
        load.measure([entry], "float32", [1], rounds=1, seconds=0.1, skipped={}, work=lambda seconds: 1.0)


def test_a_server_that_is_gone_has_failures_and_no_answers() -> None:
    entry = answering("gone", numbers(1))
    with running(entry.server) as server:
        pass
    result = load.attempt(server, entry.request(CLIP), clients=3, seconds=0.1)
    assert result.failures == {"nobody listens": 3}
    assert result.per_s == 0


@pytest.mark.parametrize(
    "answer",
    [
        {"embedding": [1.5, -2.0]},
        [[1.5, -2.0]],
        [1.5, -2.0],
        {"data": [{"embedding": [1.5, -2.0]}]},
        {"data": [{"embedding": base64.b64encode(np.float32([1.5, -2.0]).tobytes()).decode()}]},
    ],
)
def test_the_vector_is_found_in_every_form_of_answer(answer: Any) -> None:
    assert load.vector_of(json.dumps(answer).encode()).tolist() == [1.5, -2.0]


def test_peers_without_an_environment_are_told_and_busy_ones_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "ENVIRONMENTS", tmp_path)
    skipped: dict[str, str] = {}
    (alone,) = load.groups(Path("models/byola"), "int8", PEERS, skipped)
    ours = ["viola int8", "viola int8, raw body, base64", "viola int8, 1 worker per core"]
    assert [entry.name for entry in alone] == ours
    assert set(skipped) == {peer.name for peer in PEERS}
    assert skipped["Ray Serve"] == "not installed; python -m benchmarks.peers.install ray"

    for name in ("fastapi", "ray"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "installed.txt").write_text(install.requirements(name).read_text())
    together, busy = load.groups(Path("models/byola"), "int8", PEERS, {})
    assert [entry.name for entry in together[3:]] == ["FastAPI", "FastAPI, 1 thread a call"]
    assert [entry.name for entry in busy] == ["viola int8", "Ray Serve"]


def row(entry: str, clients: int, ratio: float, graph: str = "int8") -> dict[str, Any]:
    return {
        "graph": graph,
        "entry": entry,
        "clients": clients,
        "per_s": middle([100 * ratio]),
        "ratio": middle([ratio]),
        "p50_ms": 1.25,
        "p95_ms": 2.0,
        "p99_ms": 3.0,
        "cpu_ms": middle([4.0]),
        "requests": 98,
        "failures": 2,
        "idle_cpu": 0.07,
        "memory_mb": 200,
    }


def test_the_table_tells_the_best_peer_and_whether_the_goal_is_reached() -> None:
    viola_rows = [row("viola int8", 32, 1.0), row("viola int8, raw body, base64", 32, 1.6)]
    peers = [row("slow", 32, 0.25), row("infinity", 32, 0.4)]
    assert load.verdict([*viola_rows, *peers], "int8", 2.0).endswith(
        "32 clients, infinity: 2.50 × by viola int8, 4.00 × by viola int8, raw body, base64 (reached)."
    )
    near = row("infinity", 32, 0.8)
    assert "infinity: 1.25 × by viola int8, 2.00 ×" in (
        text := load.verdict([*viola_rows, near], "int8", 2.0)
    )
    assert "(**not reached**)" in text
    workers = row("viola int8, 1 worker per core", 32, 1.8)
    assert load.verdict([*viola_rows, workers, near], "int8", 1.5).endswith("per core (reached).")
    work = load.work_row("int8", [180.0], [Burst(latencies_s=[0.01] * 100, seconds=1.0)])
    assert load.verdict([*viola_rows, near, work], "int8", 2.0).endswith(
        "(**not reached**); the work alone, without a server: 2.25 ×."
    )
    assert load.verdict([*viola_rows, work], "int8") == "No peer was measured."
    assert "| 32 | *the work alone* | 180 | **1.80 (1.80–1.80)** |  | " in load.table(
        {"rows": [*viola_rows, work], "peers": {}, "skipped": {}}
    )
    ahead = [row("viola float32", 1, 1.0, "float32"), row("infinity", 1, 1.25, "float32")]
    assert "1 client, infinity: 0.80 × by viola float32" in (text := load.verdict(ahead, "float32"))
    assert "(**not reached**)" in text


def test_the_summary_has_a_line_for_each_server() -> None:
    rows = [row("viola int8", 1, 1.0), row("viola int8", 32, 1.0), row("slow", 1, 0.5), row("slow", 32, 0.25)]
    work = load.work_row("int8", [180.0], [Burst(latencies_s=[0.01] * 100, seconds=1.0)])
    assert load.summary({"rows": [*rows, work]}).splitlines() == [
        "| int8; clients: | 1 | 32 | MB |",
        "| --- | --- | --- | --- |",
        "| viola int8 | 1.00 | 1.00 | 200 |",
        "| slow | 0.50 | 0.25 | 200 |",
        "| *the work alone* |  | 1.80 |  |",
    ]


def test_a_peer_is_added_to_a_result_that_keeps_all_else() -> None:
    last = {
        "date": "2026-11-01",
        "command": "python -m benchmarks.load",
        "rows": [row("viola int8", 32, 1.0), row("a", 32, 0.5)],
        "peers": {"a": "a 1"},
        "skipped": {"b": "not installed", "c": "not installed"},
    }
    measured = [row("viola int8", 32, 1.0), row("b", 32, 0.25), row("a", 32, 0.75)]
    about, rows = load.added(last, measured, {"a": "a 2", "b": "b 1"}, {"c": "it did not start"})
    assert about["date"] == "2026-11-01"
    assert about["command"].startswith("python -m benchmarks.load, then ")
    assert about["peers"] == {"a": "a 1", "b": "b 1"}
    assert about["skipped"] == {"c": "not installed"}
    kept = {each["entry"]: each["ratio"]["median"] for each in load.merged(rows)}
    assert kept == {"viola int8": 1.0, "a": 0.5, "b": 0.25}


def test_without_a_peer_there_is_no_verdict() -> None:
    assert load.verdict([row("viola int8", 32, 1.0)], "int8") == "No peer was measured."


def test_the_table_shows_failures_and_who_was_left_out() -> None:
    result = {
        "rows": [row("infinity", 8, 0.5), row("viola int8", 8, 1.0)],
        "peers": {"infinity": "infinity_emb 0.0.78"},
        "skipped": {"Ray Serve": "not installed"},
    }
    text = load.table(result)
    cells = "| 8 | infinity | 50 | **0.50 (0.50–0.50)** | 1.2 / 2.0 / 3.0 | 4.00 | 7% | 200 | 2 of 100 |"
    assert cells in text
    assert "float32" not in text
    assert "Left out: Ray Serve (not installed)." in text


def test_viola_is_told_once_though_it_is_measured_beside_every_group() -> None:
    rows = [row("viola int8", 1, 1.0), row("a", 1, 0.5), row("viola int8", 1, 0.9), row("b", 1, 0.5)]
    assert [each["entry"] for each in load.merged(rows)] == ["viola int8", "a", "b"]
    assert load.merged(rows)[0]["ratio"]["median"] == 1.0
