"""The autoscaler's metric, by the adapter's own rule, in a real Prometheus that scrapes a viola at its limit.

Skipped where there is no Prometheus (`apt-get install prometheus`).
"""

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from benchmarks.harness.servers import running, viola
from tests.deploy.prometheus import PATIENCE_S, POD, PROMETHEUS, WITHOUT, query, scraping, wait_for_scrapes

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
SOUND = (ROOT / "tests" / "fixtures" / "keyword_yes_16k_mono_pcm16.wav").read_bytes()
CLIENTS = 40
REPLICAS = 2

pytestmark = pytest.mark.skipif(not PROMETHEUS, reason=WITHOUT)


def expression() -> str:
    """The rule of prometheus-adapter.yaml, filled in as the adapter does for the pods of a Deployment."""
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    matchers = ",".join(f'{name}="{value}"' for name, value in POD.items())
    filled: str = rule["metricsQuery"].replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")
    return filled


def target() -> float:
    """`100m` -> 0.1."""
    path = KUBERNETES / "components" / "queue" / "horizontalpodautoscaler.yaml"
    metric = yaml.safe_load(path.read_text())["spec"]["metrics"][0]
    return float(metric["pods"]["target"]["averageValue"].removesuffix("m")) / 1000


def fill(client: httpx.Client) -> float:
    (found,) = query(client, expression())
    assert found["metric"] == {"pod": POD["pod"]}  # the adapter finds the pod by it
    return float(found["value"][1])


def wanted(fill: float) -> int:
    """Replicas, as the HorizontalPodAutoscaler reckons them."""
    return math.ceil(REPLICAS * fill / target())


@contextmanager
def flood(port: int) -> Iterator[list[int]]:
    """Statuses of the answers to more clients than the queue has room for; who is refused waits a little."""
    statuses: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as one:
            while not done.is_set():
                statuses.append(one.post("/embed", content=SOUND).status_code)
                if statuses[-1] == 503:
                    time.sleep(0.1)  # at once again, the refused took the cores from those that are admitted

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(CLIENTS)]
    for asker in askers:
        asker.start()
    try:
        yield statuses
    finally:
        done.set()
        for asker in askers:
            asker.join()


# The first bounds the queue in seconds, as the defaults do, so that its frames depend on the machine.
# The second bounds it in frames.
@pytest.mark.parametrize("settings", [{"max_queue_s": "0.2"}, {"max_queue_frames": "2000"}], ids=str)
def test_a_server_at_its_limit_wants_more_pods_and_an_idle_one_does_not(
    settings: dict[str, str], tmp_path: Path
) -> None:
    with (
        running(viola(ROOT / "models" / "byola", "int8", **settings)) as server,
        scraping(server.port, tmp_path) as client,
    ):
        wait_for_scrapes(client, 6)  # one of the steps of five seconds is among them
        assert wanted(fill(client)) == 0
        with flood(server.port) as statuses:
            deadline = time.monotonic() + PATIENCE_S
            while not (503 in statuses and fill(client) > target()):
                assert time.monotonic() < deadline, (fill(client), len(statuses), set(statuses))
                time.sleep(0.5)
        assert set(statuses) == {200, 503}
        assert wanted(fill(client)) > REPLICAS
        (limit,) = query(client, "viola_queue_limit_frames")
        # In frames no number would do for every machine and setting: 20 000 were never reached here.
        assert float(limit["value"][1]) < 20_000


def test_the_rule_names_nothing_that_the_adapter_leaves_in_place() -> None:
    assert not re.search(r"<<|>>", expression())
