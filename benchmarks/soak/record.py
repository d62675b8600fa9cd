"""What a run sees in, act by act; out: the figures and complaints of which the verdict is made."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.harness.results import say


class AtRest(NamedTuple):
    """The server after an act, when nobody waits: itself and its children."""

    act: str
    memory_mb: float
    open_files: int


@dataclass
class Record:
    """act: the one that is on; may_refuse: whether 503 is a right answer to a good request in it
    latencies_s: of right answers, by act
    health_s: of /health, in all acts
    admitted_s, refused_s: of overloads"""

    act: str = ""
    may_refuse: bool = False
    complaints: list[str] = field(default_factory=list)
    latencies_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    health_s: list[float] = field(default_factory=list)
    admitted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    at_rest: list[AtRest] = field(default_factory=list)

    def check(self, is_right: bool, complaint: str) -> None:
        if not is_right:
            self.complain(complaint)

    def complain(self, complaint: str) -> None:
        """Each sentence once."""
        if complaint not in self.complaints:
            say(f"! {complaint}")
            self.complaints.append(complaint)
