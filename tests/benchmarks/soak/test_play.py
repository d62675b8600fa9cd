"""The soak in a short form, and as it is."""

import asyncio

import pytest

from benchmarks.harness.servers import ROOT
from benchmarks.soak.acts import SCRIPT, SHORT_SCRIPT
from benchmarks.soak.ledger import LEFT, rows, table
from benchmarks.soak.play import Play, played
from benchmarks.soak.verdict import complaints

MODEL = ROOT / "models" / "byola"


def check(play: Play) -> None:
    books = play.lives.ledger
    assert complaints(play.record, play.lives) == [], table(rows(books))
    assert books.outcomes("200") > 50
    assert books.outcomes("422") > 10
    assert books.outcomes(LEFT) > 10


@pytest.mark.timeout(600)
def test_nothing_is_lost_in_a_short_run_of_faults() -> None:
    check(asyncio.run(played(MODEL, SHORT_SCRIPT, seconds=6, long_s=150)))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_nothing_is_lost_in_two_minutes_of_faults() -> None:
    check(asyncio.run(played(MODEL, SCRIPT, seconds=100)))
