"""A viola's port in, a real Prometheus that scrapes it out; and the rules of deploy/alerts.yml."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.harness.servers import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "alerts.yml"
GROUPS = yaml.safe_load(ALERTS.read_text())["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
WITHOUT = "there is no Prometheus (`apt-get install prometheus`)"
JOB = "kubernetes-pods"  # as where scraping is by annotation; nothing may need that of deploy/prometheus.yml
POD = {"namespace": "viola", "pod": "viola-0"}
PATIENCE_S = 90


@contextlib.contextmanager
def scraping(port: int, folder: Path) -> Iterator[httpx.Client]:
    """The API of a Prometheus with the configuration and rules of deploy/."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    (job,) = config["scrape_configs"]
    job |= {"job_name": JOB, "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": POD}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ALERTS, folder)
    own = free_port()
    command = [str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{own}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=30) as client:
                yield client
        finally:
            process.terminate()


def wait_for_scrapes(client: httpx.Client, n: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while scrapes(client) < n:
        assert time.monotonic() < deadline, "Prometheus does not scrape"
        time.sleep(1)


def scrapes(client: httpx.Client) -> float:
    try:
        is_up = client.get("/-/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        is_up = False
    found = query(client, "count_over_time(viola_ready[5m])") if is_up else []
    return float(found[0]["value"][1]) if found else 0


def query(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result
