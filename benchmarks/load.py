"""Requests per second and latency at 1, 8, 32 and 64 clients: viola beside other servers of the same graph.

Two sets, one with the float32 graph and one with the int8 graph. Within a set the servers get bursts in turn,
because a machine's speed drifts: only ratios within one round count, each row's rate over that of viola's
multipart upload with a JSON answer, which is what all peers are asked for. Servers that cost nothing at rest
are up together; each of the others is alone with viola. The order within a round is turned around from round
to round. A peer that has no environment (benchmarks/peers/install.py) or does not start is left out, which is
said.

In the same rounds overhead.py's bare loop, full batches without any server, tells what the cores could do
with the work alone: about as far as any server that runs this graph can be ahead of a peer.

`--add` keeps the last result and adds the peers that it lacks: as fair as one run where they are alone
with viola.

Out: results/load.json. A new peer is one more entry in benchmarks/peers/catalogue.py.
"""

import base64
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.harness import options, uploads
from benchmarks.harness.clients import Burst, burst
from benchmarks.harness.results import Result, command, commit, markdown, middle, read, say, span, write
from benchmarks.harness.servers import ROOT, Running, Server, running, viola
from benchmarks.harness.sounds import word
from benchmarks.overhead import bare_loop
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.install import is_installed, version_of
from service.inference.card import load_card
from service.inference.model import GRAPH_FILES, Model, Precision
from service.inference.threads import plan, usable_cores
from service.process.allocator import keep_freed_arrays
from service.settings import Settings

GRAPHS = ("float32", "int8")
IDLE_S = 3.0  # how long idle CPU is watched
WARM_UP_S = 2.0  # of most clients, then of one: BentoML learns how long batches take
SAME = 0.999  # cosine of an answer with viola's; the int8 graph's depends on nothing but the sound either
GOAL_CLIENTS = 32
RAW = "raw body, base64"  # what only viola is asked for
WORK = "*the work alone*"  # no server: decoding, log-mel and inference in a loop


@dataclass(frozen=True)
class Entry:
    """One row of the table: a server and what it is sent. path, body: see benchmarks/harness/uploads.py."""

    name: str
    server: Server
    path: str = "/embed"
    body: uploads.Body = uploads.multipart

    def request(self, clip: bytes) -> bytes:
        return self.body(self.path, clip)


@dataclass
class Measured:
    """One entry in one group: its bursts by number of clients, the reference's beside them, and what it takes
    at rest."""

    entry: Entry
    bursts: dict[int, list[Burst]] = field(default_factory=lambda: defaultdict(list))
    reference: dict[int, list[Burst]] = field(default_factory=lambda: defaultdict(list))
    idle_cpu: float = 0.0
    memory_mb: float = 0.0


def main() -> None:
    parser = options.command("load", __doc__)
    options.model(parser)
    options.result(parser, "load")
    parser.add_argument("--graphs", default=",".join(GRAPHS))
    parser.add_argument("--peers", help="their names in the table, with a semicolon between; default: all")
    options.counts(parser, "--clients", (1, 8, 32, 64))
    options.bursts(parser, rounds=5)
    parser.add_argument(
        "--goal",
        type=float,
        default=1.0,
        help=f"times the best peer's rate: 1 at any number of clients, more at {GOAL_CLIENTS}",
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the last result, and add the peers that it lacks"
    )
    arguments = parser.parse_args()
    rounds, seconds = arguments.rounds, arguments.seconds
    peers = chosen(arguments.peers)
    keep_freed_arrays()  # as the server does, for the loop that is compared with it
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for graph in arguments.graphs.split(","):
        if GRAPH_FILES[graph] not in load_card(arguments.model).files:
            skipped[f"the {graph} graph"] = "the model has none"
            continue
        work = work_of(arguments.model, graph)
        for group in groups(arguments.model, graph, peers, skipped):
            if arguments.add and all(entry.name.startswith("viola") for entry in group):
                continue
            rows += measure(group, graph, arguments.clients, rounds, seconds, skipped, work)
    versions = {peer.folder: f"{peer.package} {version_of(peer.folder, peer.package)}" for peer in peers}
    about = {
        "rounds": rounds,
        "seconds": seconds,
        "goal": arguments.goal,
        "peers": versions,
        "skipped": skipped,
    }
    last = read(arguments.result) if arguments.add else None
    if last:
        about, rows = added(last, rows, versions, skipped)
    path = write(arguments.result, merged(rows), model=arguments.model.name, **about)
    say(f"{path} written")


def work_of(folder: Path, graph: str) -> Callable[[float], float]:
    """Of so many seconds: what every server does, in a loop in this process, as clips per second with all
    cores busy."""
    threads = plan(Settings()).inference
    model = Model.load(folder, device="cpu", precision=cast(Precision, graph), threads=threads)
    clip = word()
    return lambda seconds: 1000 * usable_cores()[0] / sum(bare_loop(model, clip, seconds).values())


def added(
    last: Result, rows: Sequence[dict[str, Any]], versions: Mapping[str, str], skipped: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last result with the rows of the peers that it lacks: (what is told beside them, all rows)."""
    there = {each["entry"] for each in rows}
    left_out = {name: why for name, why in last["skipped"].items() if name not in there}
    about = {name: value for name, value in last.items() if name != "rows"}
    about["command"] = f"{last['command']}, then {command()} at {commit()}"
    about["peers"] = {**versions, **last["peers"]}
    about["skipped"] = left_out | {name: why for name, why in skipped.items() if name not in left_out}
    return about, [*last["rows"], *rows]


def chosen(names: str | None) -> list[Peer]:
    if names is None:
        return list(PEERS)
    asked = [name.strip() for name in names.split(";") if name.strip()]
    by_name = {peer.name: peer for peer in PEERS}
    unknown = [name for name in asked if name not in by_name]
    if unknown:
        sys.exit(f"there is no peer {unknown[0]!r}; there are {'; '.join(by_name)}")
    return [by_name[name] for name in asked]


def groups(model: Path, graph: str, peers: Sequence[Peer], skipped: dict[str, str]) -> Iterator[list[Entry]]:
    """Entries whose servers are up together, the reference first. Peers without an environment are told."""
    server = viola(model, graph)
    reference = Entry(f"viola {graph}", server)
    own = Entry(f"viola {graph}, {RAW}", server, "/embed?encoding=base64", uploads.raw)
    workers = Entry(f"viola {graph}, 1 worker per core", viola(model, graph, workers=usable_cores()[0]))
    there = [peer for peer in peers if _is_there(peer, skipped)]
    quiet = [peer for peer in there if not peer.busy_at_rest]
    yield [reference, own, workers, *(_entry(peer, model, graph) for peer in quiet)]
    for peer in there:
        if peer.busy_at_rest:
            yield [reference, _entry(peer, model, graph)]


def _is_there(peer: Peer, skipped: dict[str, str]) -> bool:
    if is_installed(peer.folder):
        return True
    if peer.name not in skipped:
        skipped[peer.name] = f"not installed; python -m benchmarks.peers.install {peer.folder}"
        say(f"{peer.name} is left out: {skipped[peer.name]}")
    return False


def _entry(peer: Peer, model: Path, graph: str) -> Entry:
    return Entry(peer.name, peer.server(model, graph), peer.path, peer.body)


def measure(
    group: Sequence[Entry],
    graph: str,
    clients: Sequence[int],
    rounds: int,
    seconds: float,
    skipped: dict[str, str],
    work: Callable[[float], float],
) -> list[dict[str, Any]]:
    """One row for each entry and number of clients, one for the work alone (see `work_of`); servers that fail
    to start or to answer are left out."""
    clip = word()
    posts = {entry.name: entry.request(clip) for entry in group}
    with started(group, skipped) as up:
        reference = group[0]
        vector = vector_of(uploads.answer_to(up[reference.server.name].port, posts[reference.name]))
        compared = [
            Measured(entry)
            for entry in group
            if entry.server.name in up and _answers(up[entry.server.name], entry, clip, vector, skipped)
        ]
        if not compared or compared[0].entry is not reference:
            raise RuntimeError(f"{reference.name} does not answer as a server of the same model would")
        for one in compared:
            _warm_up(up[one.entry.server.name], posts[one.entry.name], max(clients))
        alone = []
        for number, count in product(range(rounds), clients):
            if count == GOAL_CLIENTS:
                alone.append(work(seconds))
            for one in compared if number % 2 == 0 else compared[::-1]:
                server, name = up[one.entry.server.name], one.entry.name
                done = attempt(server, posts[name], clients=count, seconds=seconds)
                one.bursts[count].append(done)
                say(f"{graph} {number + 1}/{rounds}, {count} clients, {name}: {done.per_s:.0f} requests/s")
        for one in compared:
            one.reference = compared[0].bursts
        _watch_at_rest(compared, up)
    rows = [row(one, graph, count) for one, count in product(compared, clients)]
    return rows + ([work_row(graph, alone, compared[0].bursts[GOAL_CLIENTS])] if alone else [])


@contextmanager
def started(group: Sequence[Entry], skipped: dict[str, str]) -> Iterator[dict[str, Running]]:
    """The servers of a group by name, each once: entries may share one. Those that fail to start are told."""
    up: dict[str, Running] = {}
    failed: set[str] = set()
    with ExitStack() as stack:
        for entry in group:
            name = entry.server.name
            if name not in up and name not in failed:
                try:
                    up[name] = stack.enter_context(running(entry.server))
                except RuntimeError as error:
                    failed.add(name)
                    skipped[entry.name] = str(error).replace(f"{ROOT}/", "")
                    say(f"{entry.name} is left out: {error}")
        yield up


def _answers(
    server: Running, entry: Entry, clip: bytes, expected: NDArray[np.float64], skipped: dict[str, str]
) -> bool:
    """With the vector that viola answers. What it does instead is told."""
    try:
        vector = vector_of(uploads.answer_to(server.port, entry.request(clip)))
        likeness = float(vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected))
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        skipped[entry.name] = f"wrong answer: {error}"
    else:
        if likeness >= SAME:
            return True
        skipped[entry.name] = f"another vector than viola's (cosine {likeness:.4f})"
    say(f"{entry.name} is left out: {skipped[entry.name]}")
    return False


def vector_of(answer: bytes) -> NDArray[np.float64]:
    """The embedding in an answer of any server: bare, in a list of one, as `embedding`, or as OpenAI does; as
    numbers or as base64 of float32."""
    found = orjson.loads(answer)
    if isinstance(found, dict):
        found = found["data"][0]["embedding"] if "data" in found else found["embedding"]
    if isinstance(found, list) and isinstance(found[0], list):
        found = found[0]
    if isinstance(found, str):
        return np.frombuffer(base64.b64decode(found), dtype="<f4").astype(np.float64)
    return np.array(found, dtype=np.float64)


def _warm_up(server: Running, request: bytes, most_clients: int) -> None:
    attempt(server, request, clients=most_clients, seconds=WARM_UP_S)
    attempt(server, request, clients=1, seconds=WARM_UP_S / 4)


def attempt(server: Running, request: bytes, *, clients: int, seconds: float) -> Burst:
    """A burst; where nobody listens any more, one of failures alone."""
    try:
        return burst(server.port, request, clients=clients, seconds=seconds, cpu_s=server.cpu_s)
    except OSError:
        return Burst(failures=Counter({"nobody listens": clients}), seconds=seconds)


def _watch_at_rest(compared: Sequence[Measured], up: dict[str, Running]) -> None:
    """Notes each server's memory, and the share of one core that it takes while nobody asks for anything."""
    before = {name: server.cpu_s() for name, server in up.items()}
    time.sleep(IDLE_S)
    idle = {name: (server.cpu_s() - before[name]) / IDLE_S for name, server in up.items()}
    for one in compared:
        name = one.entry.server.name
        one.idle_cpu, one.memory_mb = max(0.0, idle[name]), up[name].memory_mb()


def row(one: Measured, graph: str, clients: int) -> dict[str, Any]:
    bursts, reference = one.bursts[clients], one.reference[clients]
    latencies_ms = [1000 * latency_s for each in bursts for latency_s in each.latencies_s] or [0.0]
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99]).tolist()
    return {
        "graph": graph,
        "entry": one.entry.name,
        "clients": clients,
        "per_s": middle([each.per_s for each in bursts]),
        "ratio": middle([each.per_s / other.per_s for each, other in zip(bursts, reference, strict=True)]),
        "p50_ms": round(p50, 2),
        "p95_ms": round(p95, 2),
        "p99_ms": round(p99, 2),
        "cpu_ms": middle([each.cpu_ms for each in bursts]),
        "requests": sum(len(each.latencies_s) for each in bursts),
        "failures": sum(each.failures.total() for each in bursts),
        "idle_cpu": round(one.idle_cpu, 3),
        "memory_mb": round(one.memory_mb),
    }


def work_row(graph: str, per_s: Sequence[float], reference: Sequence[Burst]) -> dict[str, Any]:
    ratios = [each / other.per_s for each, other in zip(per_s, reference, strict=True)]
    return {
        "graph": graph,
        "entry": WORK,
        "clients": GOAL_CLIENTS,
        "per_s": middle(per_s),
        "ratio": middle(ratios),
        "cpu_ms": middle([usable_cores()[0] * 1000 / each for each in per_s]),
    }


def merged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without viola's rows of the later groups: it is measured in each, and told as it was beside most."""
    first: dict[tuple[str, str, int], dict[str, Any]] = {}
    for each in rows:
        first.setdefault((each["graph"], each["entry"], each["clients"]), each)
    return list(first.values())


def table(result: Result) -> str:
    """For README.md: one table and one verdict for each graph."""
    parts = []
    for graph in GRAPHS:
        rows = [each for each in result["rows"] if each["graph"] == graph]
        if rows:
            parts += [
                f"The {graph} graph:",
                _rows_of(rows, graph),
                verdict(rows, graph, result.get("goal", 1.0)),
            ]
    peers = ", ".join(sorted(set(result["peers"].values())))
    parts.append(f"The peers: {peers}.")
    parts += [f"Left out: {name} ({reason})." for name, reason in result["skipped"].items()]
    return "\n\n".join(parts)


def summary(result: Result) -> str:
    """For docs/comparison.md: each server's rates over viola's, by graph and number of clients."""
    parts = []
    for graph in GRAPHS:
        rows = [each for each in result["rows"] if each["graph"] == graph]
        counts = sorted({int(each["clients"]) for each in rows})
        servers: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for each in rows:
            servers[each["entry"]][int(each["clients"])] = each
        lines = []
        for name, by_count in servers.items():
            rates = [f"{_median_ratio(by_count[n]):.2f}" if n in by_count else "" for n in counts]
            memory = next(iter(by_count.values())).get("memory_mb", "")
            lines.append([name, *rates, memory])
        if lines:
            header = [f"{graph}; clients:", *map(str, counts), "MB"]
            parts.append(markdown(header, lines))
    return "\n\n".join(parts)


def _rows_of(rows: Sequence[dict[str, Any]], graph: str) -> str:
    header = ["clients", "server", "requests/s", f"× viola {graph}", "p50 / p95 / p99 ms", "CPU ms"]
    header += ["CPU at rest", "MB", "failures"]
    by_clients = sorted(rows, key=lambda each: int(each["clients"]))
    return markdown(header, [_cells(each) for each in by_clients])


def verdict(rows: Sequence[dict[str, Any]], graph: str, goal: float = 1.0) -> str:
    """Against the goal, in a sentence for each number of clients."""
    counts = sorted({int(each["clients"]) for each in rows})
    sentences = list(filter(None, (_sentence(rows, count, goal) for count in counts)))
    if not sentences:
        return "No peer was measured."
    told = "ahead of every peer" if goal == 1 else f"{goal:g} × the best at {GOAL_CLIENTS}"
    return f"The {graph} graph beside the best peer (the goal: {told}): " + "; ".join(sentences) + "."


def _sentence(rows: Sequence[dict[str, Any]], clients: int, goal: float) -> str:
    here = [each for each in rows if each["clients"] == clients]
    peers = [each for each in here if not each["entry"].startswith(("viola", WORK))]
    if not peers:
        return ""
    best = max(peers, key=_median_ratio)
    if not (ratio := _median_ratio(best)):
        return f"no peer answers at {clients}"
    ours = {each["entry"]: _median_ratio(each) / ratio for each in here if each["entry"].startswith("viola")}
    alike = max(times for name, times in ours.items() if RAW not in name)  # asked for what the peers are
    has_goal = goal == 1 or clients == GOAL_CLIENTS
    reached = "" if not has_goal else " (reached)" if alike > goal else " (**not reached**)"
    each = ", ".join(f"{times:.2f} × by {name}" for name, times in ours.items())
    work = [_median_ratio(each) / ratio for each in here if each["entry"] == WORK]
    bound = f"; the work alone, without a server: {work[0]:.2f} ×" if work else ""
    return f"{clients} client{'s' * (clients > 1)}, {best['entry']}: {each}{reached}{bound}"


def _median_ratio(each: dict[str, Any]) -> float:
    return float(each["ratio"]["median"])


def _cells(each: dict[str, Any]) -> list[object]:
    rate = [each["clients"], each["entry"], f"{each['per_s']['median']:.0f}", f"**{span(each['ratio'])}**"]
    if each["entry"] == WORK:
        return [*rate, "", f"{each['cpu_ms']['median']:.2f}", "", "", ""]
    return [
        *rate,
        f"{each['p50_ms']:.1f} / {each['p95_ms']:.1f} / {each['p99_ms']:.1f}",
        f"{each['cpu_ms']['median']:.2f}",
        f"{each['idle_cpu']:.0%}",
        each["memory_mb"],
        f"{each['failures']} of {each['requests'] + each['failures']}",
    ]


if __name__ == "__main__":
    main()
