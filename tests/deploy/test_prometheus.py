"""A real Prometheus scrapes a live viola under load; every expression of dashboard and alerts gives data.

Skipped where there is no Prometheus (`apt-get install prometheus`).
"""

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.harness.servers import running, viola
from tests.deploy.prometheus import (
    DEPLOY,
    PROMETHEUS,
    PROMTOOL,
    RULES,
    WITHOUT,
    query,
    scraping,
    wait_for_scrapes,
)

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "viola.json").read_text())
ALERTS = [(name, rule["expr"]) for name, rule in RULES.items()]

pytestmark = pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason=WITHOUT)


def expressions() -> Iterator[tuple[str, str]]:
    """(panel, expression) as Grafana would ask."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "20s")
            yield panel["title"], expression


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus' API, with some ten scrapes of a viola that was asked good and bad things."""
    data = str(tmp_path_factory.mktemp("data"))
    with (
        running(viola(ROOT / "models" / "byola", "int8", data_dir=data)) as server,
        scraping(server.port, tmp_path_factory.mktemp("prometheus")) as client,
    ):
        under_load(server.port, client)
        yield client


def under_load(port: int, client: httpx.Client) -> None:
    """Requests until Prometheus has scraped for a while."""
    done = threading.Event()
    sounds = [(FIXTURES / name).read_bytes() for name in ("rain_44k1_mono.mp3", "invalid/text.wav")]

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as one:
            while not done.is_set():
                for sound in sounds:
                    one.post("/embed", content=sound)
                    one.post("/classify", content=sound)
                one.post("/stream?rate=16000", content=bytes(96_000))
                one.post("/models/byola/heads/weather/examples?label=rain&fit=auto", content=sounds[0])

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        wait_for_scrapes(client, 10)
    finally:
        done.set()
        for asker in askers:
            asker.join()


def test_the_configuration_and_the_rules_are_valid() -> None:
    for kind, name in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        done = subprocess.run([str(PROMTOOL), "check", kind, DEPLOY / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("panel", "expression"), list(expressions()))
def test_every_panel_shows_something(prometheus: httpx.Client, panel: str, expression: str) -> None:
    found = query(prometheus, expression)
    assert found, panel
    assert all(each["value"][1] != "NaN" for each in found), panel


@pytest.mark.parametrize(("alert", "expression"), ALERTS)
def test_every_alert_is_quiet_while_all_is_well(
    prometheus: httpx.Client, alert: str, expression: str
) -> None:
    assert query(prometheus, expression) == [], alert


@pytest.mark.parametrize(("alert", "expression"), ALERTS)
def test_every_alert_looks_at_metrics_that_there_are(
    prometheus: httpx.Client, alert: str, expression: str
) -> None:
    for name in set(re.findall(r"\b(?:(?:viola|process)_\w+|up)\b", expression)):
        assert query(prometheus, name), f"{alert}: {name}"


def test_prometheus_has_loaded_every_alert(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(RULES)
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
