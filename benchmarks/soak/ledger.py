"""What clients sent and saw in, a ledger out: every request once, held against what the server counted.

outcome           the client                                    the server counts it
200, 422, …       read the whole answer                         once, under this code
wrong             read a 200 whose numbers are not its sound's  once, as 200
left              hung up before its answer                     once, as 499 or as what it did not wait for
cut               was too slow, and was hung up on              once, or never where it sent no whole head
not accepted      found nobody listening, or was turned away    never
                  before `100 Continue`
lost by a kill    waited when the server was killed             nobody knows
lost              none of these: there must be none
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.connection import Answer
from benchmarks.harness.results import markdown

WRONG, LEFT, CUT, NOT_ACCEPTED, LOST_BY_KILL, LOST = (
    "wrong",
    "left",
    "cut",
    "not accepted",
    "lost by a kill",
    "lost",
)
WINDOWS_IN_QUEUE = 8  # of one request, at most: two shares of a long clip
REFUSED_FOR_NOW = {"503", "504"}  # the only answers of 500 and more that are right
NOT_OF_CLIENTS = {"/health/live", "/health/ready", "/metrics"}  # asked for by the watch


class Entry(NamedTuple):
    kind: str  # of client: normal, poison, …
    outcome: str


@dataclass
class Ledger:
    """Of one server's life, or of several: `+`.

    counted: answers that the server has counted, by status
    owed: requests that it has counted once, under a code that no client saw
    perhaps: requests that it may have counted
    codes: the error codes of the answers, those of a batch's files among them
    droppable: clips and windows that it may have thrown away, because nobody waited for them any more
    """

    entries: Counter[Entry] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    owed: int = 0
    perhaps: int = 0
    droppable: int = 0
    complaints: list[str] = field(default_factory=list)

    def answered(self, kind: str, answer: Answer, *, counted: bool | None = True) -> None:
        """counted: None where the server may or may not have counted it."""
        status = str(answer.status)
        self.entries[Entry(kind, status)] += 1
        self.droppable += WINDOWS_IN_QUEUE if status == "504" else 0
        if counted:
            self.counted[status] += 1
            self.codes.update(_codes(answer))
        elif counted is None:
            self.perhaps += 1
        if answer.status >= 500 and status not in REFUSED_FOR_NOW:
            self.complaints.append(f"{kind}: answered {status}: {answer.body[:200]!r}")
        if answer.error == "overloaded" and int(answer.headers.get("retry-after", "0")) < 1:
            self.complaints.append(f"{kind}: refused without Retry-After")

    def wrong(self, kind: str, complaint: str) -> None:
        self.entries[Entry(kind, WRONG)] += 1
        self.counted["200"] += 1
        self.complaints.append(f"{kind}: {complaint}")

    def left(self, kind: str, *, counted: bool | None = True) -> None:
        self.entries[Entry(kind, LEFT)] += 1
        self._unseen(counted)
        self.droppable += WINDOWS_IN_QUEUE

    def cut(self, kind: str, *, counted: bool | None) -> None:
        self.entries[Entry(kind, CUT)] += 1
        self._unseen(counted)

    def not_accepted(self, kind: str) -> None:
        self.entries[Entry(kind, NOT_ACCEPTED)] += 1

    def lost(self, kind: str, *, by_kill: bool, complaint: str = "") -> None:
        self.entries[Entry(kind, LOST_BY_KILL if by_kill else LOST)] += 1
        self.perhaps += 1
        if not by_kill:
            self.complaints.append(f"{kind}: lost: {complaint}")

    def outcomes(self, *names: str) -> int:
        """How many requests ended so."""
        return sum(count for entry, count in self.entries.items() if entry.outcome in names)

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(
            self.entries + other.entries,
            self.counted + other.counted,
            self.codes + other.codes,
            self.owed + other.owed,
            self.perhaps + other.perhaps,
            self.droppable + other.droppable,
            self.complaints + other.complaints,
        )

    def _unseen(self, counted: bool | None) -> None:
        self.owed += counted is True
        self.perhaps += counted is None


def unbalanced(ledger: Ledger, page: str) -> list[str]:
    """Where the server's metrics, the text of /metrics, do not add up with the clients' ledger: sentences."""
    by_code, by_error = Counter[str](), Counter[str]()
    dropped = 0
    for sample in (each for family in text_string_to_metric_families(page) for each in family.samples):
        if sample.name == "viola_requests_total" and sample.labels["route"] not in NOT_OF_CLIENTS:
            by_code[sample.labels["code"]] += round(sample.value)
        elif sample.name == "viola_errors_total":
            by_error[sample.labels["error"]] += round(sample.value)
        elif sample.name == "viola_dropped_total":
            dropped += round(sample.value)
    unseen = ledger.owed + ledger.perhaps
    found = list(_beyond("answered", ledger.counted, by_code, unseen))
    found += _beyond("with the error", ledger.codes, by_error, unseen)
    total, least = by_code.total(), ledger.counted.total() + ledger.owed
    if not least <= total <= least + ledger.perhaps:
        found.append(
            f"the server counted {total} requests, the clients {least} that it must have seen and "
            f"{ledger.perhaps} that it may have"
        )
    if dropped > ledger.droppable:
        found.append(f"the server dropped {dropped} windows, but only {ledger.droppable} were given up")
    return found


def still_queued(page: str) -> list[str]:
    """At rest the server's queue is empty; a sentence where the text of /metrics tells otherwise."""
    values = [line.split()[-1] for line in page.splitlines() if line.startswith("viola_queue_frames")]
    frames = sum(map(float, values))
    return [f"the queue still holds {frames:g} frames, though nobody waits"] if frames else []


def rows(ledger: Ledger) -> list[dict[str, str | int]]:
    """One per kind of client: its name, what it sent, and how many of them ended in which way."""
    found: dict[str, dict[str, str | int]] = {}
    for (kind, outcome), number in ledger.entries.items():
        row = found.setdefault(kind, {"client": kind, "sent": 0})
        row["sent"] = int(row["sent"]) + number
        row[outcome] = number
    return [*found.values()]


def table(rows: Sequence[Mapping[str, str | int]]) -> str:
    """`rows`, and their sums: answers first, by code, then what was not answered."""
    names = {name for row in rows for name in row} - {"client", "sent"}
    outcomes = ["sent", *sorted(names, key=lambda name: (not name.isdigit(), name))]
    sums = [sum(int(row.get(name, 0)) for row in rows) for name in outcomes]
    return markdown(
        ["client", *outcomes],
        [
            *([row["client"], *(row.get(name, "") for name in outcomes)] for row in rows),
            ["**together**", *sums],
        ],
    )


def _codes(answer: Answer) -> Iterable[str]:
    """The answer's error code, or those of a batch's files."""
    if answer.error:
        return [answer.error]
    if not answer.body.startswith(b'{"results"'):
        return []
    return [result["error"] for result in answer.json["results"] if "error" in result]


def _beyond(what: str, seen: Mapping[str, int], counted: Mapping[str, int], unseen: int) -> Iterable[str]:
    """The server must have counted what was seen, and beyond it no more than what nobody saw."""
    for name in sorted(set(seen) | set(counted)):
        clients, server = seen.get(name, 0), counted.get(name, 0)
        if not clients <= server <= clients + unseen:
            yield f"{what} {name}: {clients} by the clients' ledger, {server} by the server's metrics"
