"""A real Prometheus scrapes a live viola under load; every expression of dashboard and alerts gives data.

Skipped where there is no Prometheus (`apt-get install prometheus`).
"""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.servers import free_port, running, viola

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FIXTURES = ROOT / "tests" / "fixtures"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "viola.json").read_text())
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
PATIENCE_S = 90

pytestmark = pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason="there is no Prometheus")


def expressions() -> Iterator[tuple[str, str]]:
    """(panel, expression) as Grafana would ask."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "20s")
            yield panel["title"], expression


def alerts() -> Iterator[tuple[str, str]]:
    """(alert, expression), read without a YAML library: `promtool` has checked the form."""
    text = (DEPLOY / "alerts.yml").read_text()
    for name, body in re.findall(r"- alert: (\w+)\n(.*?)\n\s+for:", text, re.DOTALL):
        expression = re.sub(r"#.*", "", body).split("expr:", 1)[1]
        yield name, " ".join(expression.replace(">-", "").split())


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus' API, with some ten scrapes of a viola that was asked good and bad things."""
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    with running(viola(ROOT / "models" / "byola", "int8")) as server:
        config = (DEPLOY / "prometheus.yml").read_text()
        config = config.replace("viola:8000", f"127.0.0.1:{server.port}").replace("5s", "1s")
        (folder / "prometheus.yml").write_text(config)
        shutil.copy(DEPLOY / "alerts.yml", folder)
        command = [str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                    under_load(server.port, client)
                    yield client
            finally:
                process.terminate()


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

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not scrapes(client) >= 10:
            assert time.monotonic() < deadline, "Prometheus does not scrape"
            time.sleep(1)
    finally:
        done.set()
        for asker in askers:
            asker.join()


def scrapes(client: httpx.Client) -> float:
    try:
        found = query(client, 'count_over_time(up{job="viola"}[5m])')
    except httpx.TransportError:  # it is not up yet
        return 0
    return float(found[0]["value"][1]) if found else 0


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def test_the_configuration_and_the_rules_are_valid() -> None:
    for kind, name in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        done = subprocess.run([str(PROMTOOL), "check", kind, DEPLOY / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("panel", "expression"), list(expressions()))
def test_every_panel_shows_something(prometheus: httpx.Client, panel: str, expression: str) -> None:
    found = query(prometheus, expression)
    assert found, panel
    assert all(each["value"][1] != "NaN" for each in found), panel


@pytest.mark.parametrize(("alert", "expression"), list(alerts()))
def test_every_alert_is_quiet_while_all_is_well(
    prometheus: httpx.Client, alert: str, expression: str
) -> None:
    assert query(prometheus, expression) == [], alert


@pytest.mark.parametrize(("alert", "expression"), list(alerts()))
def test_every_alert_looks_at_metrics_that_there_are(
    prometheus: httpx.Client, alert: str, expression: str
) -> None:
    for name in set(re.findall(r"\b(?:viola_\w+|up)\b", expression)) - {"viola"}:
        assert query(prometheus, name), f"{alert}: {name}"


def test_prometheus_has_loaded_every_alert(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {name for name, _ in alerts()}
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
