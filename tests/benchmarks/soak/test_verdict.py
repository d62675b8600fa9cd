import subprocess
from pathlib import Path

from benchmarks.harness.connection import Answer
from benchmarks.harness.servers import ROOT
from benchmarks.soak.lives import Life, Lives
from benchmarks.soak.record import AtRest, Record
from benchmarks.soak.verdict import act_rows, complaints


def lives_with_the_log(folder: Path, text: str) -> Lives:
    """One life, whose process has ended."""
    log = folder / "server-1.log"
    log.write_text(text)
    lives = Lives(ROOT / "models" / "byola", folder, Record())
    lives.all.append(Life(subprocess.Popen(["true"]), log, {}))
    lives.kill_all()
    return lives


def test_all_is_well_where_nothing_was_seen(tmp_path: Path) -> None:
    assert complaints(Record(), lives_with_the_log(tmp_path, "ready\n")) == []


def test_a_traceback_a_loss_and_a_wrong_number_are_each_told(tmp_path: Path) -> None:
    lives = lives_with_the_log(tmp_path, "ready\nTraceback (most recent call last):\n  KeyError\n")
    lives.last.ledger.wrong("good", "off by 0.1")
    lives.last.ledger.lost("good", by_kill=False, complaint="no answer")
    record = Record()
    record.check(True, "all is well")
    record.check(False, "the port is taken")
    record.check(False, "the port is taken")
    found = complaints(record, lives)
    assert found[:3] == ["the port is taken", "good: off by 0.1", "good: lost: no answer"]
    assert "holds a traceback" in found[3]
    assert found[4:] == ["1 requests lost", "1 requests wrong"]


def test_an_act_has_a_row_for_each_performance() -> None:
    record = Record()
    record.latencies_s["calm"] += [0.01, 0.03]
    record.at_rest += [AtRest("calm", 300.4, 14), AtRest("calm", 310.0, 15), AtRest("kill", 200.0, 14)]
    assert [list(row.values()) for row in act_rows(record)] == [
        ["calm", 2, [20, 29, 30], 300, 14],
        ["calm", 2, [20, 29, 30], 310, 15],
        ["kill", 0, [], 200, 14],
    ]


def test_refusals_are_counted_and_are_no_complaints(tmp_path: Path) -> None:
    lives = lives_with_the_log(tmp_path, "")
    lives.last.ledger.answered("good", Answer(503, {"retry-after": "1"}, b'{"error": "overloaded"}'))
    assert complaints(Record(), lives) == []
