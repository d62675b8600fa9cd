"""Measured rows in, `results/<name>.json` out: with the machine, the date and the command beside them."""

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.inference.threads import usable_cores

FOLDER = Path(__file__).parents[1] / "results"
ROOT = Path(__file__).parents[2]

# Linux numbers AMD's processors by family; their names are known by their cores.
AMD_CORES = {"23": "Zen or Zen 2", "25": "Zen 3 or 4", "26": "Zen 5"}

PERCENTS = (50, 95, 99)

Result = dict[str, Any]


def say(line: str) -> None:
    """What a benchmark tells while it runs."""
    sys.stderr.write(f"{line}\n")


def write(name: str, rows: Sequence[dict[str, Any]], **about: Any) -> Path:
    """`about`: how the rows were measured. Replaces the result of an earlier run."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    content = {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": command(),
        "versions": {each: version(each) for each in ("onnxruntime", "torch", "fastapi", "uvicorn")},
        **about,
        "rows": list(rows),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def command() -> str:
    """That this process was started with."""
    path = Path(sys.argv[0])
    name = path.parent.name if path.stem == "__main__" else path.stem  # a folder that is a command: soak
    return f"python -m benchmarks.{name} {shlex.join(sys.argv[1:])}".rstrip()


def read(name: str) -> Result | None:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def machine() -> str:
    """As `AMD EPYC (Zen 5), 2 cores, no GPU`."""
    cores, _ = usable_cores()
    return f"{_processor()}, {cores} cores, {_gpu()}"


def commit() -> str:
    """Of the measured code; `+` where the working tree differs from it."""
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip()


def middle(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, as JSON holds them."""
    # Not by NumPy: it must not be imported before `service`, which pins its threads.
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    low, median, high = quartiles
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}


def percentiles_ms(latencies_s: Sequence[float]) -> list[float]:
    """p50, p95 and p99 of seconds, in milliseconds; none of fewer than two."""
    if len(latencies_s) < 2:
        return []
    cuts = statistics.quantiles(latencies_s, n=100, method="inclusive")
    return [1000 * cuts[percent - 1] for percent in PERCENTS]


def span(value: dict[str, float], digits: int = 2) -> str:
    """As tables show it: `1.42 (1.40–1.45)`."""
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _processor() -> str:
    pairs = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    name = facts.get("model name", os.uname().machine)
    cores = AMD_CORES.get(facts.get("cpu family", "")) if name.startswith("AMD") else None
    return f"{name} ({cores})" if cores else name


def _gpu() -> str:
    if not shutil.which("nvidia-smi"):
        return "no GPU"
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")
    return names[0].strip() or "no GPU"
