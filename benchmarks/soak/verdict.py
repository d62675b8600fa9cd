"""What a play saw in; out: everything that was wrong, and the rows and tables of the result."""

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.results import Result, markdown, percentiles_ms
from benchmarks.soak import ledger
from benchmarks.soak.ledger import LOST, WRONG
from benchmarks.soak.lives import Lives
from benchmarks.soak.record import Record


def complaints(record: Record, lives: Lives) -> list[str]:
    """Everything that was wrong; empty when all is well."""
    books = lives.ledger
    found = [*record.complaints, *books.complaints]
    for life in lives.all:
        text = life.log.read_text(errors="replace")
        if "Traceback" in text:
            found.append(f"{life.log} holds a traceback: {text[text.index('Traceback') :][-1500:]}")
    for outcome in (LOST, WRONG):
        if number := books.outcomes(outcome):
            found.append(f"{number} requests {outcome}")
    return found


def figures(record: Record) -> dict[str, Any]:
    """What the result tells beside the ledger: see `act_rows`, and three sets of percentiles."""
    return {
        "acts": act_rows(record),
        "admitted_ms": whole_ms(record.admitted_s),
        "refused_ms": whole_ms(record.refused_s),
        "health_ms": whole_ms(record.health_s),
    }


def act_rows(record: Record) -> list[dict[str, Any]]:
    """One per performance of an act: the right answers in it (of all its performances), their latencies in
    milliseconds, and the server at rest after it."""
    return [
        {
            "act": act,
            "answers": len(record.latencies_s[act]),
            "latencies_ms": whole_ms(record.latencies_s[act]),
            "memory_mb": round(memory_mb),
            "open_files": open_files,
        }
        for act, memory_mb, open_files in record.at_rest
    ]


def whole_ms(latencies_s: Sequence[float]) -> list[int]:
    """p50, p95 and p99; none of fewer than two."""
    return [round(ms) for ms in percentiles_ms(latencies_s)]


def table(result: Result) -> str:
    """For README.md."""
    wrong = result["complaints"] or ["nothing was lost, nothing was wrong"]
    waits = markdown(
        ["in an overload", "p50 / p95 / p99 ms"],
        [
            ["admitted", _spelt(result["admitted_ms"])],
            ["refused", _spelt(result["refused_ms"])],
            ["/health, in all acts", _spelt(result["health_ms"])],
        ],
    )
    sentences = "\n".join(f"- {sentence}" for sentence in wrong)
    return "\n\n".join([ledger.table(result["rows"]), sentences, _act_table(result["acts"]), waits])


def _act_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["act", "right answers", "p50 / p95 / p99 ms", "resident MB after it", "open files"]
    cells = [
        [row["act"], row["answers"], _spelt(row["latencies_ms"]), row["memory_mb"], row["open_files"]]
        for row in rows
    ]
    return markdown(header, cells)


def _spelt(milliseconds: Sequence[int]) -> str:
    return " / ".join(map(str, milliseconds))
