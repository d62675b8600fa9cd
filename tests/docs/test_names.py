"""Whatever page names a setting, metric, alert, error or target of make names one that there is."""

import re
from pathlib import Path

import pytest

from service.process.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.deploy.prometheus import RULES
from tests.docs.test_operations import NOT_ANSWERED, statuses

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python" / "viola_client"
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", ".env.example")),  # CHANGELOG.md names what was
    ROOT / "docker-compose.yml",
    ROOT / "clients" / "python" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SETTINGS = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
OF_THE_GUIDES = {"VIOLA_API_KEY", "VIOLA_URL"}  # their programs' own variable
METRICS = {line.split()[2] for line in Metrics().page().decode().splitlines() if line.startswith("# TYPE")}
NO_METRICS = {
    "viola_client": "the package",
    "viola_model": "in the metadata of parquet files",
    "viola_queue_fill": "the autoscaler's, from the adapter",
}
EXCEPTIONS = set(re.findall(r"^class (\w+)", (CLIENT / "errors.py").read_text(), re.MULTILINE))
TARGETS = set(re.findall(r"^([.\w/-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
TARGETS |= {f"test-{folder.name}" for folder in (ROOT / "tests").iterdir() if folder.is_dir()}  # make test-%

pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def found(pattern: str, page: Path) -> set[str]:
    return set(re.findall(pattern, page.read_text(encoding="utf-8")))


def test_settings(page: Path) -> None:
    assert found(r"\bVIOLA_[A-Z_]*[A-Z]\b", page) <= SETTINGS | OF_THE_GUIDES


def test_metrics(page: Path) -> None:
    named = found(r"\bviola_[a-z_]+\b(?!\.)", page)
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= METRICS | set(NO_METRICS)


def test_alerts(page: Path) -> None:
    assert found(r"\bViola[A-Z]\w+", page) <= set(RULES) | EXCEPTIONS


def test_errors_with_their_status(page: Path) -> None:
    told = set(re.findall(r"\b(\d{3}) `([a-z_]+)`", page.read_text(encoding="utf-8")))
    assert told <= {(str(status), code) for code, status in (statuses() | NOT_ANSWERED).items()}


def test_targets_of_make(page: Path) -> None:
    assert found(r"`make ([.\w/-]+)", page) | found(r"(?m)^(?:    |\$ )make ([.\w/-]+)", page) <= TARGETS
