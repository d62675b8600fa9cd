"""What the log-mel costs, beside its parts and other ways to make them: CPU µs for each second of sound.

    as served              service/sound/logmel.py, with the allocator told to keep what was freed
    default allocator      the same, in a process that gives freed pages back
    one matrix product     with the whole filterbank instead of its bands
    sparse product         by scipy.sparse
    the FFT alone          SciPy's, which is used; NumPy's; torch's, which is Intel's MKL on x86

The ways take turns in short bursts. Each allocator is a process of its own, because it is told once; the
system's share of its CPU time, in which pages are given, counts. Of a model folder the front-end is taken.

Out: results/logmel.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse
from safetensors.numpy import load_file

from benchmarks.harness.results import Result, markdown, middle, say, span, write
from benchmarks.harness.servers import ROOT
from service.inference.card import load_card
from service.process.allocator import keep_freed_arrays
from service.sound.logmel import Array, Frontend, LogMel

LENGTHS_S = (1.0, 10.0)
SERVED, DEFAULT = "as served", "default allocator"
WAYS = {
    SERVED: "**as served**",
    DEFAULT: "the same, glibc's default allocator",
    "one product": "the same, one matrix product",
    "sparse": "the same, a sparse product",
    "scipy": "the FFT alone: SciPy",
    "numpy": "the FFT alone: NumPy",
    "torch": "the FFT alone: torch (MKL)",
}


class OneProduct(LogMel):
    """With the whole filterbank at once."""

    def __init__(self, frontend: Frontend, window: Array, filterbank: Array) -> None:
        super().__init__(frontend, window, filterbank)
        self._filterbank = np.ascontiguousarray(filterbank, dtype=np.float32)

    def _filtered(self, power: Array) -> Array:
        return np.asarray(power @ self._filterbank)


class Sparse(OneProduct):
    def __init__(self, frontend: Frontend, window: Array, filterbank: Array) -> None:
        super().__init__(frontend, window, filterbank)
        self._rows = scipy.sparse.csr_array(self._filterbank.T)

    def _filtered(self, power: Array) -> Array:
        return np.asarray((self._rows @ power.T).T)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logmel", description=__doc__)
    parser.add_argument(
        "--model", type=Path, nargs="+", default=[ROOT / "models" / "byola"], metavar="FOLDER"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.1, help="CPU time of each burst")
    parser.add_argument("--allocator", choices=("keeps", "default"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.allocator:
        answer(arguments.model[0], keeps=arguments.allocator == "keeps")
        return
    rows = []
    for model in arguments.model:
        rows += measure(model, arguments.rounds, arguments.seconds)
    say(f"{write('logmel', rows, rounds=arguments.rounds, seconds=arguments.seconds)} written")


def measure(model: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """us: CPU µs per second of sound, of each way that there is."""
    card = load_card(model)
    command = [sys.executable, "-m", "benchmarks.logmel", "--model", str(model), "--allocator"]
    processes = {
        name: subprocess.Popen(
            [*command, name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("keeps", "default")
    }

    def ask(process: subprocess.Popen[str], question: dict[str, Any]) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    found = []
    try:
        for length_s in LENGTHS_S:
            taken: dict[str, list[float]] = {}
            for number in range(rounds + 1):
                for way in WAYS:
                    process = processes["default" if way == DEFAULT else "keeps"]
                    us = ask(process, {"way": way, "length_s": length_s, "seconds": seconds})
                    if us is not None and number:  # the first round warms up
                        taken.setdefault(way, []).append(us / length_s)
            row: dict[str, Any] = {
                "model": f"{card.name} {card.version}",
                "frontend": f"{card.frontend.n_rows} mels at {card.sample_rate // 1000} kHz",
                "length_s": length_s,
                "us": {way: middle(values) for way, values in taken.items()},
            }
            found.append(row)
            say(
                f"{row['model']}, {length_s} s: " + json.dumps({k: v["median"] for k, v in row["us"].items()})
            )
    finally:
        for process in processes.values():
            process.communicate()
    return found


def answer(model: Path, *, keeps: bool) -> None:
    """The process that measures: a question a line in, µs for each time out, null where there is no way."""
    if keeps:
        keep_freed_arrays()
    card = load_card(model)
    if not isinstance(card.frontend, Frontend):
        sys.exit(f"{model} takes waveforms and has no log-mel")
    arrays = load_file(model / "frontend.safetensors")
    parts = (card.frontend, arrays["window"], arrays["filterbank"])
    mel = {
        SERVED: LogMel(*parts),
        DEFAULT: LogMel(*parts),
        "one product": OneProduct(*parts),
        "sparse": Sparse(*parts),
    }
    transforms: dict[str, Callable[[Any], Any]] = {"scipy": scipy.fft.rfft, "numpy": np.fft.rfft}
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        question = json.loads(line)
        samples = rng.normal(0, 0.1, int(card.sample_rate * question["length_s"])).astype(np.float32)
        way, us = question["way"], None
        if way in mel:
            us = spent(partial(mel[way], samples), question["seconds"])
        else:
            if way == "torch" and way not in transforms:
                transforms |= of_torch()
            frames = rng.normal(size=(card.frontend.n_frames(len(samples)), card.frontend.n_fft))
            frames = frames.astype(np.float32)
            if way in transforms:
                us = spent(partial(transforms[way], frames), question["seconds"])
        sys.stdout.write(json.dumps(us) + "\n")
        sys.stdout.flush()


def of_torch() -> dict[str, Callable[[Any], Any]]:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    return {"torch": lambda frames: torch.fft.rfft(torch.from_numpy(frames))}


def spent(once: Callable[[], Any], seconds: float) -> float:
    """CPU µs for each time."""
    began, n = time.process_time(), 0
    while time.process_time() - began < seconds:
        once()
        n += 1
    return 1e6 * (time.process_time() - began) / n


def table(result: Result) -> str:
    """For README.md."""
    rows = result["rows"]
    header = ["µs for a second of sound", *(f"{row['frontend']}, {row['length_s']:g} s" for row in rows)]
    lines = []
    for way, shown in WAYS.items():
        if any(way in row["us"] for row in rows):
            lines.append([shown, *(span(row["us"][way], 0) if way in row["us"] else "" for row in rows)])
    return markdown(header, lines)


if __name__ == "__main__":
    main()
