"""What the server adds to the work itself: CPU time per request, against a bare loop over the same clips.

The bare loop decodes 32 clips, computes their log-mels and runs them as one full batch, again and again, with
the server's own code and as many inference threads. The server gets the same clip over HTTP from 32 clients.
Bursts of loop and server alternate, because a machine's speed drifts; the ratio is that of one round.

Out: results/overhead.json.
"""

import time
from itertools import product
from pathlib import Path
from typing import Any

import orjson

from benchmarks.harness import options, uploads
from benchmarks.harness.clients import Burst, burst
from benchmarks.harness.results import Result, markdown, middle, say, span, write
from benchmarks.harness.servers import Running, running, viola
from benchmarks.harness.sounds import word
from service.inference.card import load_card
from service.inference.model import GRAPH_FILES, Model, Precision
from service.inference.threads import plan
from service.process.allocator import keep_freed_arrays
from service.settings import Settings
from service.sound.audio import decode

CLIENTS = 32
BATCH = 32
BODIES: dict[str, uploads.Body] = {"raw": uploads.raw, "multipart": uploads.multipart}
PATHS = {"JSON": "/embed", "base64": "/embed?encoding=base64"}
STAGES = ("decode", "log-mel", "inference")

Case = tuple[str, str]  # (body, answer)
CASES: tuple[Case, ...] = tuple(product(BODIES, PATHS))


def main() -> None:
    parser = options.command("overhead", __doc__)
    options.model(parser)
    options.result(parser, "overhead")
    options.bursts(parser, rounds=7)
    arguments = parser.parse_args()
    clip = word()
    keep_freed_arrays()  # as the server does, for the loop that is compared with it
    rows = []
    for precision in precisions(arguments.model):
        rows += measure(arguments.model, precision, clip, arguments.rounds, arguments.seconds)
    path = write(
        arguments.result,
        rows,
        model=arguments.model.name,
        clients=CLIENTS,
        batch=BATCH,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        threads=plan(Settings()).reason,
    )
    say(f"{path} written")


def precisions(model: Path) -> list[Precision]:
    """The graphs for a CPU that the folder has."""
    files = load_card(model).files
    return ["float32", "int8"] if GRAPH_FILES["int8"] in files else ["float32"]


def measure(
    folder: Path, precision: Precision, clip: bytes, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Rows for one graph: the bare loop, then the server in each case."""
    threads = plan(Settings()).inference
    model = Model.load(folder, device="cpu", precision=precision, threads=threads)
    loops: list[dict[str, float]] = []
    bursts: dict[Case, list[Burst]] = {case: [] for case in CASES}
    with running(viola(folder, precision)) as server:
        posts = {(body, answer): BODIES[body](PATHS[answer], clip) for body, answer in CASES}
        for request in posts.values():
            check(server, request, model.card.embedding_size)
            burst(server.port, request, clients=CLIENTS, seconds=seconds / 2)
        bare_loop(model, clip, seconds / 2)
        for number in range(rounds):
            loops.append(bare_loop(model, clip, seconds))
            for case, request in posts.items():
                one = burst(server.port, request, clients=CLIENTS, seconds=seconds, cpu_s=server.cpu_s)
                bursts[case].append(one)
            work_ms = sum(loops[-1].values())
            served = ", ".join(f"{bursts[case][-1].cpu_ms:.2f}" for case in CASES)
            say(f"{precision} {number + 1}/{rounds}: the work {work_ms:.2f} ms of CPU, served {served}")
    return [bare_row(precision, loops), *(server_row(precision, case, loops, bursts[case]) for case in CASES)]


def bare_loop(model: Model, clip: bytes, seconds: float) -> dict[str, float]:
    """CPU milliseconds per clip of each stage, over full batches."""
    spent = dict.fromkeys(STAGES, 0.0)
    clips, stop_at = 0, time.perf_counter() + seconds
    while time.perf_counter() < stop_at:
        marks = [time.process_time()]
        waveforms = [decode(clip, sample_rate=model.card.sample_rate).samples for _ in range(BATCH)]
        marks.append(time.process_time())
        logmels = [model.logmel(samples) for samples in waveforms]
        marks.append(time.process_time())
        model.run(logmels)
        marks.append(time.process_time())
        clips += BATCH
        for stage, began, ended in zip(STAGES, marks, marks[1:], strict=False):
            spent[stage] += ended - began
    return {stage: 1000 * cpu_s / clips for stage, cpu_s in spent.items()}


def check(server: Running, request: bytes, embedding_size: int) -> None:
    answer = orjson.loads(uploads.answer_to(server.port, request))
    assert answer["embedding_size"] == embedding_size, "the server answers with another model"


def bare_row(precision: str, loops: list[dict[str, float]]) -> dict[str, Any]:
    stages = {f"{stage}_cpu_ms": middle([loop[stage] for loop in loops]) for stage in STAGES}
    return {
        "graph": precision,
        "case": "bare loop",
        **stages,
        "cpu_ms": middle([sum(x.values()) for x in loops]),
    }


def server_row(
    precision: str, case: Case, loops: list[dict[str, float]], bursts: list[Burst]
) -> dict[str, Any]:
    ratios = [one.cpu_ms / sum(loop.values()) for one, loop in zip(bursts, loops, strict=True)]
    return {
        "graph": precision,
        "case": "server",
        "body": case[0],
        "answer": case[1],
        "cpu_ms": middle([one.cpu_ms for one in bursts]),
        "ratio": middle(ratios),
        "per_s": middle([one.per_s for one in bursts]),
        "requests": sum(len(one.latencies_s) for one in bursts),
        "failures": sum(one.failures.total() for one in bursts),
    }


def table(result: Result) -> str:
    """For README.md."""
    bare = [_bare_cells(row) for row in result["rows"] if row["case"] == "bare loop"]
    served = [_served_cells(row) for row in result["rows"] if row["case"] == "server"]
    return "\n\n".join(
        [
            "The work itself, CPU ms per clip:",
            markdown(["graph", *STAGES, "together"], bare),
            "The server, CPU ms per request:",
            markdown(["graph", "body", "answer", "CPU ms", "× the work", "requests/s", "failures"], served),
        ]
    )


def _bare_cells(row: dict[str, Any]) -> list[str]:
    stages = [f"{row[f'{stage}_cpu_ms']['median']:.2f}" for stage in STAGES]
    return [row["graph"], *stages, span(row["cpu_ms"])]


def _served_cells(row: dict[str, Any]) -> list[str]:
    failures = f"{row['failures']} of {row['requests']}"
    return [
        *(row[name] for name in ("graph", "body", "answer")),
        span(row["cpu_ms"]),
        f"**{span(row['ratio'])}**",
        f"{row['per_s']['median']:.0f}",
        failures,
    ]


if __name__ == "__main__":
    main()
