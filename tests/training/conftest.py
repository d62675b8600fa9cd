"""A tiny recipe, real sounds in many formats, and one thread: these networks are too small for two."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from training.clips import Clips, find_audio, load_clips
from training.pretrain.distributed import World
from training.pretrain.loop import pretrain
from training.pretrain.recipe import Recipe, load_recipe
from training.pretrain.run import Options

from ..service.conftest import write_toy

REPOSITORY = Path(__file__).parents[2]

# 16 mel bands: 256 features of the convolutions, 64 of the MLP. The 23 clips make 6 steps of 3 an epoch.
TINY = (
    "encoder.n_mels=16",
    "encoder.d=320",
    "byol.hidden_size=32",
    "byol.projection_size=8",
    "augmentation.mixup_memory=16",
    "optimisation.batch_size=4",
    "optimisation.epochs=2",
)

# The same encoder, taught: 23 clips make 6 steps of 3 an epoch, every third with crops of two seconds or so.
TINY_DISTIL = (
    "encoder.n_mels=16",
    "encoder.d=320",
    "data.draws_power=0",
    "waveform.synthetic_share=0.2",
    "waveform.long_share=0.3",
    "waveform.long_s=[1.9, 2.1]",
    "distil.keep_weight=0",
    "distil.statistics_crops=23",
    "optimisation.batch_size=4",
    "optimisation.epochs=2",
    "optimisation.warmup_steps=2",
)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Real sounds in all formats; invalid/ holds broken files."""
    return REPOSITORY / "tests" / "fixtures"


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory, fixtures_dir: Path) -> Path:
    """A folder of the readable fixtures alone."""
    folder = tmp_path_factory.mktemp("sounds")
    for path in fixtures_dir.iterdir():
        if path.is_file() and path.suffix not in (".md", ".csv"):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests keep decoded samples, so that the fixtures are decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def clips(sounds: Path, cache: Path) -> Clips:
    return load_clips(find_audio(sounds), sample_rate=16_000, cache=cache)


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Overrides that make the recipe byola-2022 run in seconds."""
    return TINY


@pytest.fixture(scope="session")
def recipe(tiny: tuple[str, ...]) -> Recipe:
    return load_recipe("byola-2022", list(tiny))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, clips: Clips, recipe: Recipe) -> Path:
    """A run of the whole recipe in one go, which others are compared with."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    options = Options(out, precision="float32", log_every=1, checkpoint_every_s=1e9)
    pretrain(clips, recipe, options, World(rank=0, size=1, device=torch.device("cpu")))
    return out


@pytest.fixture(scope="session")
def tiny_distil() -> tuple[str, ...]:
    """Overrides that make the recipe distil run in seconds, from random weights."""
    return TINY_DISTIL


@pytest.fixture(scope="session")
def make_teacher() -> Callable[..., Path]:
    """make_teacher(folder, **changes to the card) writes a toy model folder, 16 numbers with the heads `pets`
    (one label) and `moods` (several), and returns it."""
    return write_toy


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher at the clips' rate, read only."""
    return write_toy(tmp_path_factory.mktemp("teachers") / "toy")


Command = Callable[..., list[str]]


@pytest.fixture
def command(sounds: Path, cache: Path) -> Command:
    """command(out, *more) is the command line that pre-trains the tiny recipe into `out`."""

    def build(out: Path, *more: str, overrides: tuple[str, ...] = TINY) -> list[str]:
        line = ["-m", "training", "pretrain", "--data", str(sounds), "--cache", str(cache), "--out", str(out)]
        line += ["--device", "cpu", "--precision", "float32", "--log-every", "1"]
        for override in overrides:
            line += ["--set", override]
        return [sys.executable, *line, *more]

    return build


@pytest.fixture
def distil_command(sounds: Path, cache: Path, teacher_folder: Path) -> Command:
    """distil_command(out, *more) is the command line that teaches the tiny recipe into `out`."""

    def build(out: Path, *more: str) -> list[str]:
        line = ["-m", "training", "distil", "--teacher", str(teacher_folder), "--data", str(sounds)]
        line += ["--cache", str(cache), "--out", str(out), "--log-every", "1"]
        line += ["--device", "cpu", "--precision", "float32"]
        for override in TINY_DISTIL:
            line += ["--set", override]
        return [sys.executable, *line, *more]

    return build


@pytest.fixture
def environment() -> dict[str, str]:
    """For subprocesses: one thread, so that sums are added in one order."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[[list[str]], "subprocess.CompletedProcess[str]"]:
    """Run a command line in the repository, with its output as text."""

    def execute(line: list[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return execute
