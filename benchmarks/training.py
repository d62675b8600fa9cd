"""Training speed: segments per second of the real command, and the share that is not the network.

`python -m training pretrain` trains byola-2022 in batches of 128 on made-up clips for a few steps, without
and with --compile, on the CPU and on a GPU if there is one; `python -m training distil` trains the same
encoder, taught by --teacher and begun from models/byola. The run's own log tells each step's time and the
share of waiting for data, log-mel and augmentation; its clock tells the rate, writing the log included.
The first steps, which compile and warm up, do not count.

Out: results/training.json.
"""

import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.harness import options
from benchmarks.harness.results import Result, markdown, middle, say, span, write
from benchmarks.harness.servers import LOGS, ROOT, without_thread_pins
from service.inference.model import Model

SAMPLE_RATE = 16_000
CLIPS, CLIP_S = 512, 2.0
BATCH = 128
WARM_UP = 3  # steps
STEPS = {"cpu": 12, "cuda": 300}  # that count, half a minute on two cores, a few seconds on a GPU
LIMIT_S = 600.0
START = Path("models/byola")
# recipe, and whether it is compiled
CASES = (("byola-2022", False), ("byola-2022", True), ("distil", False))


def main() -> None:
    parser = options.command("training", __doc__)
    parser.add_argument("--steps", type=int, help=f"of each run, by default {STEPS}")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--teacher", type=Path, default=START, help="a model folder (default: %(default)s)")
    arguments = parser.parse_args()
    rows = []
    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LOGS) as folder:
        write_clips(Path(folder) / "clips")
        for device, (recipe, compiled) in product(devices(), CASES):
            words = words_of(recipe, compiled, arguments.teacher)
            run = Path(folder) / f"{device}-{recipe}-{'compiled' if compiled else 'eager'}"
            steps = arguments.steps or STEPS[device]
            lines = train(run, Path(folder) / "clips", device, words, arguments.batch, steps)
            speed = speed_of(lines[WARM_UP:])
            rows.append({"device": device, "recipe": recipe, "compiled": compiled, **speed})
            say(f"{device}, {recipe}, compiled: {compiled}, {span(speed['segments_per_s'], 0)} segments/s")
    path = write("training", rows, batch=arguments.batch, teacher=arguments.teacher.name)
    say(f"{path} written")


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def write_clips(folder: Path) -> None:
    """WAV files, each a tone in coloured noise, no two alike, so that there is something to learn."""
    folder.mkdir()
    random = np.random.default_rng(0)
    times_s = np.arange(int(CLIP_S * SAMPLE_RATE)) / SAMPLE_RATE
    for number in range(CLIPS):
        spectrum = np.fft.rfft(random.normal(size=len(times_s)))
        noise = np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** random.uniform(0, 1.5))
        tone = np.sin(2 * np.pi * random.uniform(80, 7000) * times_s)
        clip = noise / np.abs(noise).max() + random.uniform(0, 1) * tone
        soundfile.write(folder / f"{number}.wav", (0.4 * clip).astype(np.float32), SAMPLE_RATE)


def words_of(recipe: str, compiled: bool, teacher: Path) -> list[str]:
    """The command and its recipe; a teacher without tags of several labels teaches its embedding alone."""
    if recipe != "distil":
        return ["pretrain", "--recipe", recipe, *(["--compile"] if compiled else [])]
    words = ["distil", "--recipe", recipe, "--teacher", str(teacher), "--init", str(START)]
    has_tags = any(head.task == "multilabel" for head in Model.load(teacher, device="cpu").heads.values())
    return words if has_tags else [*words, "--set", "distil.tag_weight=0"]


def train(
    run: Path, clips: Path, device: str, words: list[str], batch: int, steps: int
) -> list[dict[str, float]]:
    """The lines of log.jsonl, one per step. Raises CalledProcessError or TimeoutExpired."""
    command = [sys.executable, "-m", "training", *words, "--data", str(clips), "--out", str(run)]
    command += ["--set", f"optimisation.batch_size={batch}", "--device", device]
    command += ["--stop-after", str(WARM_UP + steps), "--log-every", "1"]
    # The thread counts that `service` pins for itself are not for training.
    subprocess.run(command, cwd=ROOT, env=without_thread_pins(), check=True, timeout=LIMIT_S)
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def speed_of(lines: list[dict[str, float]]) -> dict[str, Any]:
    seen = lines[-1]["segments_seen"] - lines[0]["segments_seen"]
    return {
        "segments_per_s": middle([line["segments_per_s"] for line in lines]),
        "data_share": middle([line["data_share"] for line in lines]),
        "teachers_share": middle([line.get("teachers_share", 0.0) for line in lines]),
        "clock_segments_per_s": round(seen / (lines[-1]["time_s"] - lines[0]["time_s"]), 1),
    }


def table(result: Result) -> str:
    """For README.md."""
    return markdown(
        [
            "device",
            "recipe",
            "--compile",
            "segments/s in a step",
            "by the clock",
            "data, log-mel and augmentation",
        ],
        [
            [
                row["device"],
                row.get("recipe", "byola-2022"),
                "yes" if row["compiled"] else "no",
                span(row["segments_per_s"], 0),
                f"{row['clock_segments_per_s']:.0f}",
                f"**{row['data_share']['median']:.0%}** of the step",
            ]
            for row in result["rows"]
        ],
    )


if __name__ == "__main__":
    main()
