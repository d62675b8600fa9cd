"""Where a graph's time goes, operator by operator, beside what the processor can do: one thread, one batch.

    encoder.onnx, encoder.int8.onnx ─► onnxruntime's own profile ─► ms per clip, GMAC/s of each kind of node
    a square matrix product, in float32 and int8 ─────────────────► the GMAC/s that are reached at best

onnxruntime fuses nodes before it runs them; what is shown is what runs. GMAC: a billion multiplications with
their additions, counted for products and convolutions from their shapes. Batch and length are those of the
other benchmarks: 32 clips of a second.

Out: results/operators.json.
"""

import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from benchmarks.harness import options
from benchmarks.harness.results import Result, markdown, say, write
from benchmarks.harness.sounds import word
from service.inference.card import load_card
from service.inference.model import GRAPH_FILES, Model, Precision
from service.sound.audio import decode

BATCH = 32
SQUARE = 1024
SHOWN = 0.02  # of a graph's time
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")

Event = dict[str, Any]


def main() -> None:
    parser = options.command("operators", __doc__)
    parser.add_argument("--model", type=Path, nargs="+", default=[options.ROOT / "models" / "byola"])
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    best = {precision: square_product(precision, arguments.runs) for precision in PRECISIONS}
    say(", ".join(f"{precision}: {gmac:.0f} GMAC/s at best" for precision, gmac in best.items()))
    rows = []
    for folder in arguments.model:
        for precision in PRECISIONS:
            if GRAPH_FILES[precision] in load_card(folder).files:
                rows.append(measure(folder, precision, arguments.runs))
    say(f"{write('operators', rows, best=best, batch=BATCH, runs=arguments.runs)} written")


def measure(folder: Path, precision: Precision, runs: int) -> dict[str, Any]:
    """ms: of a clip, in all; nodes: of each kind its ms of a clip, and its GMAC/s, 0 where it has none."""
    model = Model.load(folder, device="cpu", precision=precision, threads=1)
    samples = decode(word(), sample_rate=model.card.sample_rate).samples
    rows = model.logmel(samples)
    batch = np.repeat(rows[None], BATCH, axis=0)
    feed = {"logmel": batch, "n_frames": np.full(BATCH, batch.shape[-1], dtype=np.int64)}
    events = profile(folder / GRAPH_FILES[precision], feed, runs)
    kernels = kernels_of(folder / GRAPH_FILES[precision])
    kinds: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        kinds[event["args"]["op_name"]].append(event)
    nodes = []
    for kind, found in kinds.items():
        us = sum(event["dur"] for event in found)
        nodes.append(
            {"kind": kind, "ms": us / 1000 / runs / BATCH, "gmac_s": macs(found, kernels, runs) / us / 1000}
        )
    nodes.sort(key=lambda node: -node["ms"])
    total = sum(node["ms"] for node in nodes)
    card = model.card
    say(f"{card.name} {precision}: {total:.2f} ms a clip")
    return {"model": f"{card.name} {card.version}", "precision": precision, "ms": total, "nodes": nodes}


def profile(graph: Path | bytes, feed: dict[str, Any], runs: int) -> list[Event]:
    """The events of onnxruntime's profile, one for each node and run, after a few runs that do not count."""
    with tempfile.TemporaryDirectory() as folder:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        source = graph if isinstance(graph, bytes) else str(graph)
        session = onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
        names = {each.name for each in session.get_inputs()}
        own = {name: value for name, value in feed.items() if name in names}
        for _ in range(runs + WARM_UP):
            session.run(None, own)
        events: list[Event] = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and "kernel_time" in event["name"]]
    per_run = len(kernels) // (runs + WARM_UP)
    return kernels[WARM_UP * per_run :]


WARM_UP = 5


def kernels_of(graph: Path) -> list[int]:
    """Of each convolution, in the graph's order: how many products each of its outputs is the sum of. The
    profile does not tell it of those whose weights onnxruntime has packed."""
    model = onnx.load(graph, load_external_data=False).graph
    sizes = {each.name: math.prod(each.dims[1:]) for each in model.initializer if len(each.dims) == 4}
    maker = {out: node for node in model.node for out in node.output}

    def size(name: str) -> int | None:
        """Of the weights that a name stands for, be they quantised."""
        while name not in sizes and name in maker and "Linear" in maker[name].op_type:
            name = maker[name].input[0]
        return sizes.get(name)

    convolutions = [node for node in model.node if node.op_type in ("Conv", "QLinearConv")]
    return [next(found for each in node.input[1:] if (found := size(each))) for node in convolutions]


def macs(events: list[Event], kernels: list[int], runs: int) -> int:
    """Multiplications of all these nodes: outputs times what each is a sum of; 0 for what multiplies none."""
    total = 0
    for number, event in enumerate(events):
        kind = event["args"]["op_name"]
        inputs, outputs = (shapes(event["args"][key]) for key in ("input_type_shape", "output_type_shape"))
        if "Conv" in kind and len(events) == runs * len(kernels):
            total += math.prod(outputs[0]) * kernels[number % len(kernels)]
        elif "Gemm" in kind or "MatMul" in kind:
            total += math.prod(outputs[0]) * inputs[0][-1]
    return total


def shapes(told: list[dict[str, list[int]]]) -> list[list[int]]:
    return [shape for each in told for shape in each.values()]


def square_product(precision: Precision, runs: int) -> float:
    """GMAC/s of a product of two SQUARE matrices, as onnxruntime does it."""
    whole = precision == "int8"
    rng = np.random.default_rng(0)
    size = [SQUARE, SQUARE]
    left = rng.integers(0, 255, size, dtype=np.uint8) if whole else rng.normal(size=size).astype(np.float32)
    right = (
        rng.integers(-127, 127, size, dtype=np.int8) if whole else rng.normal(size=size).astype(np.float32)
    )
    node = helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "b"], ["c"])
    kinds = (TensorProto.UINT8, TensorProto.INT32) if whole else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "square",
        [helper.make_tensor_value_info("a", kinds[0], size)],
        [helper.make_tensor_value_info("c", kinds[1], size)],
        [onnx.numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    events = profile(model.SerializeToString(), {"a": left}, runs)
    return SQUARE**3 / 1000 / min(event["dur"] for event in events)


def table(result: Result) -> str:
    """For README.md."""
    rows = []
    for row in result["rows"]:
        least = SHOWN * row["ms"]
        shown = [node for node in row["nodes"] if node["ms"] >= least]
        rest = row["ms"] - sum(node["ms"] for node in shown)
        best = result["best"][row["precision"]]
        for node in shown:
            rate = f"{node['gmac_s']:.0f}" if node["gmac_s"] else ""
            share = f"{node['gmac_s'] / best:.0%}" if node["gmac_s"] else ""
            cells = [f"{row['model']}, {row['precision']}", f"`{node['kind']}`", f"{node['ms']:.3f}"]
            rows.append([*cells, f"{node['ms'] / row['ms']:.0%}", rate, share])
        rows.append(["", "the rest", f"{rest:.3f}", f"{rest / row['ms']:.0%}", "", ""])
        rows.append(["", "**all**", f"**{row['ms']:.2f}**", "", "", ""])
    best = ", ".join(f"{gmac:.0f} in {precision}" for precision, gmac in result["best"].items())
    header = ["graph", "operator", "ms of a clip", "share", "GMAC/s", "of the best"]
    return markdown(header, rows) + (
        f"\n\nThe best is a product of two matrices of {SQUARE} × {SQUARE}: GMAC/s {best}. "
        "One thread; batches of 32 clips of a second."
    )


if __name__ == "__main__":
    main()
