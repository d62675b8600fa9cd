"""Every alert of deploy/alerts.yml fires in `promtool test rules` on the series that it is there for, with
the sentence that somebody on call will read, and is quiet where nothing is wrong.

Skipped where there is no promtool (`apt-get install prometheus`).
"""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.prometheus import ALERTS, JOB, PROMTOOL, RULES, WITHOUT
from tests.docs.links import anchors

ROOT = Path(__file__).parents[2]
LABELS = {"job": JOB, "instance": "10.0.0.7:8000"}
WHOSE = ", ".join(f'{name}="{value}"' for name, value in LABELS.items())


@dataclass(frozen=True)
class Case:
    """series: metric and labels → values, one a minute as promtool writes them (`1+2x3` is 1 3 5 7), on which
    it fires at the minute `fires_at`; quiet: those on which it never does; labels: beside severity."""

    fires_at: int
    summary: str
    series: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str] = field(default_factory=lambda: LABELS)


CASES = {
    "ViolaDown": Case(
        fires_at=12,
        summary="10.0.0.7:8000 does not answer",
        series={"up": "1x10 0x10", "viola_ready": "1x10 _x10"},
        quiet={"up": "0x20"},  # of another service, which was never a viola
    ),
    "ViolaAbsent": Case(
        fires_at=20,
        summary="Prometheus knows of no viola",
        series={"viola_ready": "1x10 stale _x10"},
        quiet={"viola_ready": "0x20"},
        labels={},
    ),
    "ViolaNotReady": Case(
        fires_at=12,
        summary="10.0.0.7:8000 answers, but is not ready: GET /health/ready says why",
        series={"viola_ready": "1x10 0x10"},
        quiet={"viola_ready": "1x20"},
    ),
    "ViolaWorkerMissing": Case(
        fires_at=17,
        summary="3 workers of 10.0.0.7:8000 are ready, which were more",
        series={"viola_ready": "4x10 3x10"},
        quiet={"viola_ready": "4x10 3x3 4x10"},  # one was replaced
    ),
    "ViolaErrors": Case(
        fires_at=16,
        summary="2% of 10.0.0.7:8000's answers are errors of its own",
        series={
            'viola_requests_total{code="200"}': "0+98x30",
            'viola_requests_total{code="500"}': "0+1x30",
            'viola_requests_total{code="504"}': "0+1x30",
        },
        quiet={
            'viola_requests_total{code="200"}': "0+98x30",
            'viola_requests_total{code="503"}': "0+50x30",
        },
    ),
    "ViolaOverloaded": Case(
        fires_at=16,
        summary="10.0.0.7:8000 refuses 10% of the requests: add capacity",
        series={
            'viola_requests_total{code="200"}': "0+90x30",
            'viola_requests_total{code="503"}': "0+10x30",
            'viola_errors_total{error="overloaded"}': "0+10x30",
        },
        quiet={
            'viola_requests_total{code="200"}': "0+90x30",
            'viola_errors_total{error="overloaded"}': "0x30",
        },
    ),
    "ViolaQueueFilling": Case(
        fires_at=5,
        summary="10.0.0.7:8000's queue is 60% full, and refuses at 100%",
        series={"viola_queue_frames": "600x10", "viola_queue_limit_frames": "1000x10"},
        quiet={"viola_queue_frames": "20000x10", "viola_queue_limit_frames": "200000x10"},
    ),
    "ViolaSlow": Case(
        fires_at=16,
        summary="one in twenty clips waits 3.7s for the model of 10.0.0.7:8000",
        series={
            'viola_queue_wait_seconds_bucket{le="1"}': "0+50x30",
            'viola_queue_wait_seconds_bucket{le="4"}': "0+100x30",
            'viola_queue_wait_seconds_bucket{le="+Inf"}': "0+100x30",
        },
        quiet={
            'viola_queue_wait_seconds_bucket{le="1"}': "0+96x30",
            'viola_queue_wait_seconds_bucket{le="4"}': "0+100x30",
            'viola_queue_wait_seconds_bucket{le="+Inf"}': "0+100x30",
        },
    ),
    "ViolaClientsLeaving": Case(
        fires_at=16,
        summary="clients of 10.0.0.7:8000 leave before they are answered",
        series={'viola_requests_total{code="499"}': "0+120x30", "viola_dropped_total": "0x30"},
        quiet={'viola_requests_total{code="499"}': "0+30x30", "viola_dropped_total": "0+30x30"},
    ),
    "ViolaCutting": Case(
        fires_at=16,
        summary="10.0.0.7:8000 cuts connections (head): slow clients, or an attack",
        series={'viola_connections_cut_total{reason="head"}': "0+120x30"},
        quiet={'viola_connections_cut_total{reason="head"}': "0+30x30"},
        labels=LABELS | {"reason": "head"},
    ),
    "ViolaStreamsLagging": Case(
        fires_at=16,
        summary="one in twenty messages of 10.0.0.7:8000's streams comes 4.7s late",
        series={
            'viola_stream_lag_seconds_bucket{le="2"}': "0+50x30",
            'viola_stream_lag_seconds_bucket{le="5"}': "0+100x30",
            'viola_stream_lag_seconds_bucket{le="+Inf"}': "0+100x30",
        },
        quiet={
            'viola_stream_lag_seconds_bucket{le="2"}': "0+96x30",
            'viola_stream_lag_seconds_bucket{le="5"}': "0+100x30",
            'viola_stream_lag_seconds_bucket{le="+Inf"}': "0+100x30",
        },
    ),
    "ViolaHeadRefused": Case(
        fires_at=16,
        summary="2 heads that byola was taught are not served by 10.0.0.7:8000",
        series={'viola_heads_refused{model="byola"}': "0x10 2x10"},
        quiet={'viola_heads_refused{model="byola"}': "0x20"},
        labels=LABELS | {"model": "byola"},
    ),
    "ViolaMemoryGrowing": Case(
        fires_at=480,
        summary="10.0.0.7:8000 will hold 3.166GiB of memory in a day, twice as much as now",
        series={  # 100 MB an hour from 200 MB on: 1 GB by now
            "process_resident_memory_bytes": "200000000+1666667x500",
            "process_start_time_seconds": "0x500",
            "viola_ready": "1x500",
        },
        quiet={  # it has filled its arena in the first hour
            "process_resident_memory_bytes": "200000000+3000000x60 380000000x440",
            "process_start_time_seconds": "0x500",
            "viola_ready": "1x500",
        },
    ),
    "ViolaFilesRunningOut": Case(
        fires_at=8,
        summary="10.0.0.7:8000 has 87.89% of its files and connections open",
        series={"process_open_fds": "900x10", "process_max_fds": "1024x10", "viola_ready": "1x10"},
        quiet={"process_open_fds": "900x10", "process_max_fds": "1024x10"},  # no viola's
    ),
    "ViolaRestarting": Case(
        fires_at=12,
        summary="10.0.0.7:8000 started 3 times within half an hour",
        series={"process_start_time_seconds": "0 0 120 120 120 300 300 300 540x10", "viola_ready": "1x20"},
        quiet={"process_start_time_seconds": "0 0 120x20", "viola_ready": "1x20"},
    ),
}


def named(series: str) -> str:
    """With the labels that a scrape adds: `up` → `up{job=…, instance=…}`."""
    metric, _, labels = series.removesuffix("}").partition("{")
    return f"{metric}{{{', '.join(filter(None, [WHOSE, labels]))}}}"


def promtool(test: dict[str, Any], folder: Path) -> None:
    """Raises AssertionError with what promtool says of a test, JSON being YAML."""
    if PROMTOOL is None:
        pytest.skip(WITHOUT)
    file = folder / "test.json"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def inputs(series: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": named(name), "values": values} for name, values in series.items()]


def test_every_alert_has_its_case() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("alert", RULES)
def test_it_fires_and_says_what_is_wrong(alert: str, tmp_path: Path) -> None:
    case, rule = CASES[alert], RULES[alert]
    expected = {
        "exp_labels": case.labels | rule["labels"],
        "exp_annotations": {"summary": case.summary, "runbook_url": rule["annotations"]["runbook_url"]},
    }
    when = {"eval_time": f"{case.fires_at}m", "alertname": alert, "exp_alerts": [expected]}
    promtool(
        {"interval": "1m", "input_series": inputs(case.series), "alert_rule_test": [when]},
        tmp_path,
    )


@pytest.mark.parametrize("alert", RULES)
def test_it_is_quiet_where_nothing_is_wrong(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    quiet = [
        {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []}
        for minute in range(max(case.fires_at, 20) + 1)
    ]
    promtool(
        {"interval": "1m", "input_series": inputs(case.quiet), "alert_rule_test": quiet},
        tmp_path,
    )


def test_a_wrong_expectation_is_noticed(tmp_path: Path) -> None:
    """promtool passes over much in silence; that an alert is missing it does not."""
    when = {"eval_time": "10m", "alertname": "ViolaDown", "exp_alerts": [{"exp_labels": LABELS}]}
    with pytest.raises(AssertionError, match="ViolaDown"):
        promtool(
            {"interval": "1m", "input_series": inputs({"up": "1x20"}), "alert_rule_test": [when]}, tmp_path
        )


def test_no_alert_needs_the_name_of_a_job() -> None:
    assert not [alert for alert, rule in RULES.items() if re.search(r"\bjob\s*[=!]", rule["expr"])]


@pytest.mark.parametrize("alert", RULES)
def test_its_runbook_is_a_section_of_the_docs(alert: str) -> None:
    page, _, anchor = RULES[alert]["annotations"]["runbook_url"].partition("#")
    assert anchor == alert.lower()
    assert anchor in anchors(ROOT / page)
