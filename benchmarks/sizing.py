"""The results of other benchmarks in, what to plan a machine with out: the tables of docs/sizing.md.

Nothing is measured here: overhead and gpu know what a request costs, load and soak what memory a process
needs, long_audio what an hour of sound costs.
"""

from benchmarks import report
from benchmarks.harness.results import ROOT, Result, markdown, read

PAGE = ROOT / "docs" / "sizing.md"
MARKER = "sizing"
PLANNED_LOAD = 0.6  # of a core's time; beyond it requests wait for each other


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(report.with_section(page, MARKER, section()), encoding="utf-8")


def section() -> str:
    """What stands between the page's markers."""
    parts = {
        "overhead": ("Requests", cores),
        "gpu": ("A GPU", gpus),
        "load": ("Memory of a process", memory),
        "soak": ("The same in a storm", storm),
        "long_audio": ("Long audio", hours),
        "live": ("Streams", streams),
    }
    told = []
    for name, (title, part) in parts.items():
        if result := read(name):
            told.append(f"**{title}**: {part(result)}\n\n{report.caption(result)}")
        else:
            told.append(f"**{title}**: *not measured yet; `python -m benchmarks.{name}` does.*")
    return "\n\n".join(told)


def cores(overhead: Result) -> str:
    rows = []
    for row in overhead["rows"]:
        if (row.get("body"), row.get("answer")) == ("raw", "base64"):
            cpu_ms = row["cpu_ms"]["median"]
            full, planned = (f"{1000 * load / cpu_ms:.0f}" for load in (1, PLANNED_LOAD))
            rows.append([row["graph"], f"{cpu_ms:.2f}", full, f"**{planned}**"])
    header = ["graph", "CPU ms per request", "requests/s per core, full", f"at {PLANNED_LOAD:.0%}"]
    return f"clips of 1 s, raw body, base64 answer, 32 clients.\n\n{markdown(header, rows)}"


def gpus(gpu: Result) -> str:
    rows = [
        [row["precision"], row["clients"], f"{row['per_s']['median']:.0f}", f"{row['cpu_ms']['median']:.2f}"]
        for row in gpu["rows"]
        if row["case"] == "server"
    ]
    header = ["precision", "clients", "requests/s of one process", "CPU ms per request"]
    return f"clips of 1 s, raw body, base64 answer.\n\n{markdown(header, rows)}"


def memory(load: Result) -> str:
    held = {row["graph"]: row["memory_mb"] for row in load["rows"] if row["entry"] == f"viola {row['graph']}"}
    return (
        ", ".join(f"{megabytes} MB with {graph}" for graph, megabytes in held.items()) + ", after the load."
    )


def storm(soak: Result) -> str:
    most = max(act["memory_mb"] for act in soak["acts"])
    return f"{most} MB at most in any act, of all processes together (two in some acts)."


def hours(long_audio: Result) -> str:
    (row,) = long_audio["rows"]
    cpu_s, peak_mb = (row[key]["median"] for key in ("cpu_s", "peak_mb"))
    return (
        f"an hour of MP3 takes {cpu_s:.1f} CPU seconds and {peak_mb:.0f} MB at most, which is "
        f"{long_audio['sound_s'] / cpu_s:.0f} seconds of sound per second and core."
    )


def streams(live: Result) -> str:
    """Of the row with the most streams, where the most of them share batches."""
    row = max(live["rows"], key=lambda row: row["streams"])
    cpu_s, share = row["cpu_s"], live["bare_cpu_s"] / row["cpu_s"]
    return (
        f"a second of a stream (16 kHz, a window every {live['hop_s']:g} s) takes {1000 * cpu_s:.2f} CPU ms "
        f"with {row['streams']} of them, {share:.0%} of which is the bare work: {1 / cpu_s:.0f} streams per "
        f"core, full, **{PLANNED_LOAD / cpu_s:.0f}** at {PLANNED_LOAD:.0%}. "
        f"One holds {row['memory_mb']:.1f} MB."
    )


if __name__ == "__main__":
    main()
