"""How much memory do the large networks need, to be imported and to be served? CNN14 and AST, random weights.

Each step is a process of its own, whose peak (ru_maxrss) is what counts:

    import    `python -m model_export import --head` of a file of the published layout, full size
    serve     the folder loaded as the server loads it, and one batch as large as the server's default

Out: results/memory_import.json.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import options
from benchmarks.harness.results import ROOT, say, write

LIMITS_GB = {"import": 3.0, "serve": 1.2}
ENCODERS = ("cnn14", "ast")
GB = 1e9

WEIGHTS = """
import sys, torch
from encoders import build_any
from encoders.published import _untrained_tags
name, path = sys.argv[1:]
torch.manual_seed(0)
state, tags = build_any(name).state_dict(), _untrained_tags(name).state_dict()
if name == "cnn14":
    state |= {f"fc_audioset.{key}": value for key, value in tags.items()}
else:
    parts = {"norm": "mlp_head.0", "linear": "mlp_head.1"}
    head = {f"{parts[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in tags.items()}
    state = {f"module.v.{key}": value for key, value in state.items()} | {
        f"module.{key}": value for key, value in head.items()
    }
torch.save({"model": state}, path)
"""

SERVE = """
import sys
from pathlib import Path
import numpy as np
from service.inference.model import Model
from service.settings import Settings
model = Model.load(Path(sys.argv[1]), device="cpu", precision="float32", threads=int(sys.argv[2]))
length = model.card.windows.frames
items = Settings().max_batch_frames // length
logmel = np.zeros((model.card.frontend.n_mels, length), dtype=np.float32)
for _ in range(2):
    model.run([logmel] * items)
"""


def main() -> None:
    parser = options.command("memory_import", __doc__)
    parser.add_argument("--encoder", choices=ENCODERS, action="append", help="default: both")
    parser.add_argument("--threads", type=int, default=1, help="of the served model")
    parser.add_argument("--out", type=Path, help="keep the folders there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        rows = [
            row
            for name in arguments.encoder or ENCODERS
            for row in measured(name, out, Path(temporary), arguments.threads)
        ]
    say(f"{write('memory_import', rows, threads=arguments.threads)} written")


def measured(name: str, out: Path, temporary: Path, threads: int) -> list[dict[str, object]]:
    """The peak of both steps, in bytes."""
    weights, folder = temporary / f"{name}.pth", out / name
    python = [sys.executable, "-c"]
    peak_of([*python, WEIGHTS, name, str(weights)])
    words = ["--encoder", name, "--weights", str(weights), "--out", str(folder), "--head", "--force"]
    peaks = {
        "import": peak_of([sys.executable, "-m", "model_export", "import", *words]),
        "serve": peak_of([*python, SERVE, str(folder), str(threads)]),
    }
    for step, peak in peaks.items():
        say(f"{name}, {step}: {peak / GB:.2f} GB at the peak, of {LIMITS_GB[step]} GB allowed")
    return [{"encoder": name, "step": step, "peak_bytes": peak} for step, peak in peaks.items()]


def peak_of(command: list[str]) -> int:
    """The largest resident memory that the command ever had. Raises CalledProcessError where it fails."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
