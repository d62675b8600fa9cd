"""The whole chain on a few clips, in about two minutes: train a tiny run, export it, serve it, embed a sound.

Each step is the command that a user would type, printed before it runs. Everything lands in runs/demo.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.clients import HOST
from benchmarks.harness.results import say
from benchmarks.harness.servers import ROOT, running, viola
from benchmarks.harness.uploads import answer_to, multipart

FOLDER = Path("runs/demo")
RUN, MODEL = FOLDER / "run", FOLDER / "models" / "demo"
CLIPS = Path("tests/fixtures")
SOUND = CLIPS / "speech_16k_mono.flac"


def main() -> None:
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    step("Train for half a minute, on a folder of sounds (a few of them are broken on purpose)")
    run("training", "pretrain", "--data", str(CLIPS), "--recipe", "demo", "--out", str(RUN))
    step("Export: the run becomes a model folder")
    run("model_export", "export", "--run", str(RUN), "--out", str(MODEL))
    step("Serve it")
    say(f"$ VIOLA_MODELS_DIR={MODEL.parent} VIOLA_MODEL={MODEL.name} python -m service")
    with running(viola(MODEL, "float32")) as server:
        say(f"$ curl -F file=@{SOUND} http://{HOST}:{server.port}/embed")
        answer = json.loads(answer_to(server.port, multipart("/embed", (ROOT / SOUND).read_bytes())))
    first = ", ".join(f"{number:.4f}" for number in answer["embedding"][:4])
    say(
        f'{{"model": "{answer["model"]}", "duration_s": {answer["duration_s"]}, '
        f'"embedding_size": {answer["embedding_size"]}, "embedding": [{first}, …]}}'
    )
    assert len(answer["embedding"]) == answer["embedding_size"]
    step(f"Done: the run is in {RUN}, the model in {MODEL}")


def step(sentence: str) -> None:
    say(f"\n== {sentence}")


def run(*command: str) -> None:
    """`python -m …` in the repository's root; a failure ends the demo."""
    say(f"$ python -m {shlex.join(command)}")
    ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False)
    if ended.returncode:
        sys.exit(f"the demo ends here: python -m {command[0]} ended with code {ended.returncode}")


if __name__ == "__main__":
    main()
