"""docs/sizing.md: its figures are those of benchmarks/results, its names those of the server."""

import re
from pathlib import Path

from benchmarks import sizing
from benchmarks.report import with_section
from service.process.metrics import Metrics
from service.settings import Settings

PAGE = sizing.PAGE.read_text(encoding="utf-8")
KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"


def test_the_figures_are_those_of_the_last_results() -> None:
    assert with_section(PAGE, sizing.MARKER, sizing.section()) == PAGE, "run `python -m benchmarks.sizing`"


def test_a_core_of_2_ms_per_request_is_planned_with_300_requests_per_second() -> None:
    rows = [
        {"graph": "int8", "case": "bare loop", "cpu_ms": {"median": 1.0}},
        {"graph": "int8", "body": "multipart", "answer": "base64", "cpu_ms": {"median": 4.0}},
        {"graph": "int8", "body": "raw", "answer": "base64", "cpu_ms": {"median": 2.0}},
    ]
    assert sizing.cores({"rows": rows}).endswith("| int8 | 2.00 | 500 | **300** |")


def test_an_hour_that_takes_36_seconds_is_100_seconds_per_second() -> None:
    row = {"cpu_s": {"median": 36.0}, "peak_mb": {"median": 200.4}}
    told = sizing.hours({"rows": [row], "sound_s": 3600})
    assert "takes 36.0 CPU seconds and 200 MB at most" in told
    assert "100 seconds of sound per second and core" in told


def test_streams_of_2_ms_a_second_are_500_on_a_core() -> None:
    rows = [
        {"streams": 1, "cpu_s": 0.01, "memory_mb": 9.0},
        {"streams": 8, "cpu_s": 0.002, "memory_mb": 0.31},
    ]
    told = sizing.streams({"rows": rows, "bare_cpu_s": 0.0015, "hop_s": 1.0})
    assert "75% of which is the bare work: 500 streams per core, full, **300**" in told
    assert "One holds 0.3 MB." in told


def test_memory_is_that_of_viola_and_the_most_of_the_storm() -> None:
    load = [
        {"graph": "int8", "entry": "viola int8", "memory_mb": 200},
        {"graph": "int8", "entry": "Ray Serve", "memory_mb": 1000},
    ]
    assert sizing.memory({"rows": load}) == "200 MB with int8, after the load."
    assert sizing.storm({"acts": [{"memory_mb": 300}, {"memory_mb": 500}]}).startswith("500 MB at most")


def test_a_gpu_tells_its_servers_rates() -> None:
    rows = [
        {"case": "graph", "precision": "float16", "per_s": {"median": 9000.0}},
        {
            "case": "server",
            "precision": "float16",
            "clients": 32,
            "per_s": {"median": 1234.5},
            "cpu_ms": {"median": 1.5},
        },
    ]
    told = sizing.gpus({"rows": rows})
    assert "| float16 | 32 | 1234 | 1.50 |" in told
    assert "9000" not in told


def test_every_metric_and_setting_that_is_named_is_there() -> None:
    lines = Metrics().page().decode().splitlines()
    metrics = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert set(re.findall(r"\b(?:viola|process)_[a-z_]+", PAGE)) <= metrics
    settings = {f"VIOLA_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"VIOLA_[A-Z_]+", PAGE)) <= settings


def test_the_cores_beside_a_gpu_are_those_of_the_manifest() -> None:
    (cores,) = re.findall(r"begin with (\d+)\s+cores\s+to a GPU", PAGE)
    assert f'requests: {{ cpu: "{cores}"' in (KUBERNETES / "gpu" / "resources.yaml").read_text()
