import sys
from pathlib import Path

import pytest

from benchmarks.harness.results import command, middle, percentiles_ms


def test_medians_come_with_their_quartiles() -> None:
    assert middle([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3, "low": 2, "high": 4}
    assert middle([7.0]) == {"median": 7, "low": 7, "high": 7}


def test_percentiles_are_in_milliseconds_and_none_of_one_number() -> None:
    assert percentiles_ms([number / 1000 for number in range(101)]) == pytest.approx([50, 95, 99])
    assert percentiles_ms([1.0]) == []


def test_the_command_is_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("somewhere") / "benchmarks"
    monkeypatch.setattr(sys, "argv", [str(folder / "load.py"), "--peers", "Ray Serve"])
    assert command() == "python -m benchmarks.load --peers 'Ray Serve'"
    monkeypatch.setattr(sys, "argv", [str(folder / "soak" / "__main__.py"), "--minutes", "3"])
    assert command() == "python -m benchmarks.soak --minutes 3"
