"""docs/operations.md against the code: codes, statuses, metrics and settings are those there are."""

import re
from pathlib import Path

import pytest

from service.errors import ViolaError
from service.http.error_response import FRAMEWORK_CODES, error_codes
from service.http.middleware import CLIENT_CLOSED_REQUEST
from service.process.metrics import Metrics
from service.settings import PREFIX, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z_]+)` \| (\d{3}) \|", re.MULTILINE)
NOT_ANSWERED = {"not_ready": 503, "client_left": CLIENT_CLOSED_REQUEST}  # of readiness, and of the log


def statuses() -> dict[str, int]:
    """Of every code, by the classes themselves."""
    found = {code: status for status, code in FRAMEWORK_CODES.items()}
    kinds = ViolaError.__subclasses__()
    while kinds:
        kind = kinds.pop()
        found[kind.code] = kind.status
        kinds += kind.__subclasses__()
    return found


def metric_names() -> set[str]:
    lines = Metrics().page().decode().splitlines()
    return {line.split()[2] for line in lines if line.startswith("# TYPE")}


def test_every_error_is_explained_with_its_status() -> None:
    told = {code: int(status) for code, status in ROW.findall(PAGE)}
    assert set(statuses()) == error_codes()
    assert told == statuses() | NOT_ANSWERED


def test_every_metric_is_named_and_none_that_there_is_not() -> None:
    words = set(re.findall(r"\b(?:viola|process)_[a-z_]+", PAGE))
    named = {re.sub(r"_(bucket|sum|count)$", "", word) for word in words}
    assert named == metric_names()


def test_every_setting_that_is_named_is_there() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(rf"{PREFIX}[A-Z_]+", PAGE)) <= known


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (Path(__file__).parents[2] / "docs" / link).exists()
