"""Where the CPU time of a request goes: thread by thread, and within each thread by file and by library.

    server under load ─► /proc/PID/task/*   CPU time and waits of each thread, for each request
                      ├► perf               which library, or the kernel, it was in
                      └► py-spy             which Python file it was in, where it held the interpreter's lock

The times are the threads' own, from a burst that nobody watches; the samples of two more bursts only divide
them: perf's the whole, py-spy's the share of the interpreter, so that the parts add up to what a thread took.
py-spy is in the extra `dev`, perf a package of the system (`linux-perf`). Both may have to be run as root.
Linux only.

Out: results/hops.json.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import options, uploads
from benchmarks.harness.clients import burst
from benchmarks.harness.results import Result, markdown, say, write
from benchmarks.harness.servers import Running, running, viola
from benchmarks.harness.sounds import word

SAMPLES_PER_S = 200
SHOWN = 0.02  # of all threads' time; parts that take less are one line
OTHERS = "others"
PYTHON = "Python"


@dataclass
class Thread:
    cpu_s: float
    waits: int  # voluntary switches to another thread


def main() -> None:
    parser = options.command("hops", __doc__)
    options.model(parser)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of counting, and of each kind of sampling"
    )
    parser.add_argument("--path", default="/embed?encoding=base64")
    arguments = parser.parse_args()
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if program is None:
        sys.exit("py-spy is missing: pip install py-spy")
    load = Load(uploads.raw(arguments.path, word()), arguments.clients)
    with running(viola(arguments.model, arguments.precision)) as server, TemporaryDirectory() as folder:
        burst(server.port, load.request, clients=load.clients, seconds=2)
        taken, n = counted(server, load, arguments.seconds)
        files = files_in(sampled_by_py_spy(program, server, load, arguments.seconds, Path(folder)))
        libraries = libraries_in(sampled_by_perf(server, load, arguments.seconds, Path(folder)))
    rows = rows_of(taken, n, files, libraries)
    for row in rows:
        say(f"{row['thread']}: {row['us']:.0f} µs and {row['waits']:.2f} waits a request")
    about = {"requests": n, "clients": load.clients, "precision": arguments.precision, "path": arguments.path}
    say(f"{write('hops', rows, model=arguments.model.name, **about)} written")


@dataclass(frozen=True)
class Load:
    request: bytes
    clients: int


def counted(server: Running, load: Load, seconds: float) -> tuple[dict[int, Thread], int]:
    """What each thread took, by its number, and how many requests were answered meanwhile."""
    before = threads_of(server.pid)
    answered = burst(server.port, load.request, clients=load.clients, seconds=seconds)
    taken = {}
    for number, after in threads_of(server.pid).items():
        then = before.get(number, Thread(0, 0))
        taken[number] = Thread(after.cpu_s - then.cpu_s, after.waits - then.waits)
    return taken, len(answered.latencies_s)


def threads_of(pid: int) -> dict[int, Thread]:
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = int((folder / "schedstat").read_text().split()[0])
            status = (folder / "status").read_text()
        except OSError:  # it has just ended
            continue
        waits = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
        found[int(folder.name)] = Thread(nanoseconds / 1e9, int(waits[1]) if waits else 0)
    return found


def sampled_by_py_spy(program: str, server: Running, load: Load, seconds: float, folder: Path) -> list[str]:
    """Lines as `thread (TID): name;outermost frame;…;innermost frame samples`."""
    out = folder / "stacks"
    command = [program, "record", "--threads", "--gil", "--format", "raw", "--output", str(out)]
    command += ["--rate", str(SAMPLES_PER_S), "--duration", str(round(seconds)), "--pid", str(server.pid)]
    watched(command, server, load)
    if not out.is_file():
        sys.exit("py-spy could not watch the server: it may have to be run as root")
    return out.read_text(encoding="utf-8", errors="replace").splitlines()


def sampled_by_perf(server: Running, load: Load, seconds: float, folder: Path) -> list[str]:
    """Lines as `TID address symbol (library)`, one a sample."""
    program = shutil.which("perf")
    if program is None:
        sys.exit("perf is missing: on Debian, apt-get install linux-perf")
    out = folder / "perf.data"
    command = [
        program,
        "record",
        "-F",
        "2000",
        "-o",
        str(out),
        "-p",
        str(server.pid),
        "--",
        "sleep",
        f"{seconds:g}",
    ]
    watched(command, server, load)
    told = subprocess.run(
        [program, "script", "-i", str(out), "-F", "tid,ip,sym,dso"],
        capture_output=True,
        text=True,
        errors="replace",
    )
    return told.stdout.splitlines()


def watched(command: list[str], server: Running, load: Load) -> None:
    """The server under load until the command ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as watcher:
        while watcher.poll() is None:
            burst(server.port, load.request, clients=load.clients, seconds=1)


def files_in(lines: list[str]) -> dict[int, tuple[str, Counter[str]]]:
    """thread's number → its name, and file or package → samples."""
    found: dict[int, tuple[str, Counter[str]]] = {}
    for line in lines:
        stack, _, samples = line.rpartition(" ")
        thread, *frames = stack.split(";")
        told = re.match(r"thread \((\d+)\): (.*)", thread)
        if told and frames:
            _, counts = found.setdefault(int(told[1]), (told[2], Counter()))
            counts[file_of(frames[-1])] += int(samples)
    return found


def file_of(frame: str) -> str:
    """`embed (service/http/routes/embed.py:39)` → that file; `run_asgi (uvicorn/…)` → uvicorn."""
    told = re.search(r"\(([^()]*?)(?::\d+)?\)$", frame)
    path = told[1] if told else frame
    return path if path.startswith("service/") else path.split("/")[0].removesuffix(".py")


def libraries_in(lines: list[str]) -> dict[int, Counter[str]]:
    """thread's number → library, or the kernel → samples."""
    found: dict[int, Counter[str]] = {}
    for line in lines:
        told = re.match(r"\s*(\d+)\s.*\((.*)\)\s*$", line)
        if told:
            found.setdefault(int(told[1]), Counter())[library_of(told[2])] += 1
    return found


def library_of(path: str) -> str:
    """The path of a shared library, or `[kernel.kallsyms]` -> a name."""
    if path.startswith("["):
        return "kernel"
    name = Path(path).name
    return next((shown for known, shown in LIBRARIES if known in name), name.split(".")[0])


LIBRARIES = (
    ("onnxruntime", "onnxruntime"),
    ("pocketfft", "FFT"),
    ("openblas", "BLAS"),
    ("_multiarray", "NumPy"),
    ("python", PYTHON),  # the last of those with `python` in their names
    ("loop.", "uvloop"),
    ("libc.so", "libc"),
    ("sndfile", "libsndfile"),
    ("soxr", "soxr"),
    ("orjson", "orjson"),
    ("_cffi", "cffi"),
)


def rows_of(
    taken: dict[int, Thread],
    n: int,
    files: dict[int, tuple[str, Counter[str]]],
    libraries: dict[int, Counter[str]],
) -> list[dict[str, Any]]:
    """A row for each kind of thread (`viola-decode-0` and `-1` are one), the one that takes most first: µs
    and waits of a request, and its µs by file and by library."""
    rows: dict[str, dict[str, Any]] = {}
    for number, thread in taken.items():
        name, by_file = files.get(number, ("others", Counter()))
        row = rows.setdefault(
            re.sub(r"[-_]\d+$", "", name),
            {"us": 0.0, "waits": 0.0, "files": Counter(), "libraries": Counter()},
        )
        us = 1e6 * thread.cpu_s / n
        row["us"] += us
        row["waits"] += thread.waits / n
        by_library = libraries.get(number, Counter())
        for part, samples in by_library.items():
            row["libraries"][part] += us * samples / by_library.total()
        in_python = us * by_library[PYTHON] / max(1, by_library.total())
        for part, samples in by_file.items():
            row["files"][part] += in_python * samples / by_file.total()
    least = SHOWN * sum(row["us"] for row in rows.values())
    for row in rows.values():
        for key in ("files", "libraries"):
            row[key] = largest(row[key], least / 4)
    named = [{"thread": name, **row} for name, row in rows.items()]
    return sorted(named, key=lambda row: -row["us"])


def largest(parts: Mapping[str, float], least: float) -> dict[str, float]:
    shown: dict[str, float] = {
        name: us for name, us in sorted(parts.items(), key=lambda part: -part[1]) if us >= least
    }
    rest = sum(parts.values()) - sum(shown.values())
    return shown | ({OTHERS: rest} if rest > 0 else {})


def table(result: Result) -> str:
    """For README.md."""
    rows = [
        [
            "the event loop" if row["thread"] == "MainThread" else f"`{row['thread']}`",
            f"**{row['us']:.0f}**",
            f"{row['waits']:.2f}",
            *(
                ", ".join(f"{name} {us:.0f}" for name, us in row[key].items())
                for key in ("libraries", "files")
            ),
        ]
        for row in result["rows"]
        if row["us"] >= 1
    ]
    total = sum(row["us"] for row in result["rows"])
    return (
        markdown(["thread", "µs a request", "waits", "by library", "of it Python, by file"], rows)
        + f"\n\n{total:.0f} µs together; {result['requests']} requests from {result['clients']} clients, "
        f"`{result['path']}`, {result['model']} in {result['precision']}."
    )


if __name__ == "__main__":
    main()
