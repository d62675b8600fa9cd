"""The guides' programs, taken out of their pages and run against a live server."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from benchmarks.harness.servers import running, viola
from encoders.frontend import BYOLA
from service.bulk.offline import audio_files
from service.inference.card import load_card
from service.sound.audio import decode
from tests.model_export.sources.test_published_byola import published_state
from tests.published_files import efficientat_shapes, tensors
from tests.training.conftest import TINY
from training.logmel import LogMel
from training.pretrain.recipe import as_toml, load_recipe

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
FIXTURES = ROOT / "tests" / "fixtures"
DOG = FIXTURES / "dog_bark_44k1_mono.ogg"
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with running(viola(ROOT / "models" / "byola", "auto")) as server:
        url = f"http://127.0.0.1:{server.port}"
        yield os.environ | {"VIOLA_URL": url, "PYTHONPATH": str(ROOT / "clients" / "python")}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with every program of every guide."""
    for guide in GUIDES.glob("*.md"):
        for name, text in BLOCK.findall(guide.read_text(encoding="utf-8")):
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_uploads_are_tagged(programs: Path, environment: dict[str, str]) -> None:
    ask = f"""
import app, json
from fastapi.testclient import TestClient
with TestClient(app.app) as client:
    good = client.post("/uploads", files={{"file": ("dog.ogg", open({str(DOG)!r}, "rb"))}})
    bad = client.post("/uploads", files={{"file": ("a.txt", b"no sound")}})
    print(json.dumps([good.json(), bad.status_code, bad.json()]))
"""
    out = run([sys.executable, "-W", "ignore", "-c", ask], programs, environment)
    assert '"dog":' in out
    assert "422" in out


def test_the_nearest_sound_is_the_sound_itself_and_what_is_unrelated_is_left_out(
    programs: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("qdrant_client")
    sounds = programs / "sounds"
    sounds.mkdir()
    for path in (DOG, FIXTURES / "rain_44k1_mono.mp3", FIXTURES / "invalid" / "text.wav"):
        shutil.copy(path, sounds)
    found = run([sys.executable, "search.py", str(sounds), str(DOG)], programs, environment)
    (hit,) = found.splitlines()
    assert hit.startswith("1.000")
    assert hit.endswith(DOG.name)


def test_a_sound_that_appears_gets_its_line(programs: Path, environment: dict[str, str]) -> None:
    incoming, table = programs / "incoming", programs / "tags.csv"
    incoming.mkdir()
    command = [sys.executable, "watch.py", str(incoming), str(table)]
    with subprocess.Popen(
        command, cwd=programs, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("watching")
            time.sleep(1)  # the watch itself begins a moment later
            os.mkfifo(incoming / "a_pipe.wav")  # nobody writes to it, and the watch goes on
            shutil.copy(DOG, programs / "whole.ogg")
            (programs / "whole.ogg").rename(incoming / "dog.ogg")
            deadline = time.monotonic() + 60
            while not (table.exists() and table.read_text()):
                assert time.monotonic() < deadline, "no line was written"
                time.sleep(0.2)
        finally:
            process.terminate()
    with table.open(newline="") as file:
        name, label, score = next(csv.reader(file))
    assert (name, label) == ("dog.ogg", "dog")
    assert 0.5 < float(score) <= 1


def ring(seed: int, seconds: float = 2.0) -> NDArray[np.float32]:
    """A doorbell: two bells a third apart, each with three partials that die away, in a little noise."""
    random = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    sound = random.normal(scale=0.003, size=len(t))
    for start_s, hz in ((0.1, 659.3), (0.7, 523.3)):
        since = np.maximum(0, t - start_s - random.uniform(0, 0.1))
        for partial, loud in ((1, 0.5), (2.76, 0.3), (5.4, 0.1)):
            sound += (
                (since > 0) * loud * np.exp(-3 * partial * since) * np.sin(2 * np.pi * hz * partial * since)
            )
    return (0.4 * random.uniform(0.5, 1) * sound).astype(np.float32)


@pytest.mark.timeout(600)
def test_a_doorbell_is_taught_and_rings_once(programs: Path) -> None:
    """Five rings and two sounds that are none; then half a minute of other sounds with one
    ring among them."""
    for folder in ("ring", "quiet"):
        (programs / folder).mkdir()
    for number in range(5):
        soundfile.write(programs / "ring" / f"{number}.wav", ring(number), 16_000)
    for name in ("rain_44k1_mono.mp3", "speech_16k_mono.flac"):
        shutil.copy(FIXTURES / name, programs / "quiet")
    names = ("birds_30s_16k_mono.opus", "dog_bark_44k1_mono.ogg", "fire_48k_mono.opus")
    others = [decode(FIXTURES / name, sample_rate=16_000).samples[: 10 * 16_000] for name in names]
    stream = np.concatenate([others[0], ring(99), *others[1:]])
    server = viola(ROOT / "models" / "byola", "auto")
    taught = {"VIOLA_DATA_DIR": str(programs / "taught")}
    with running(replace(server, environment=server.environment | taught)) as up:
        url = f"http://127.0.0.1:{up.port}"
        environment = os.environ | {"VIOLA_URL": url, "PYTHONPATH": str(ROOT / "clients" / "python")}
        out = run(["bash", "-euo", "pipefail", "teach_doorbell.sh"], programs, environment)
        assert '"none_of_these":{"sounds":' in out
        done = subprocess.run(
            [sys.executable, "doorbell.py"],
            cwd=programs,
            env=environment,
            input=(stream * 32767).astype("<i2").tobytes(),
            capture_output=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("the doorbell rings") == 1


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node")
def test_javascript_gets_tags_and_vectors(programs: Path, environment: dict[str, str]) -> None:
    assert run(["node", "tag.mjs", str(DOG)], programs, environment) == "dog 3072\n"


@pytest.fixture
def workshop(programs: Path) -> Path:
    """The programs' folder with labelled sounds, five of each label, and a copy of the default model."""
    sounds = {"dog": DOG.name, "rain": "rain_44k1_mono.mp3", "speech": "speech_16k_mono.flac"}
    for label, name in sounds.items():
        samples, rate = soundfile.read(FIXTURES / name)
        starts = [int((1.5 + number / 10) * rate) for number in range(5)]
        folder = programs / "my_sounds" / label
        folder.mkdir(parents=True)
        for number, start in enumerate(starts):
            soundfile.write(folder / f"{number}.wav", samples[start : start + rate], rate)
    shutil.copytree(programs / "my_sounds", programs / "labelled")
    barks, rate = soundfile.read(DOG)
    soundfile.write(programs / "dog.ogg", barks[int(1.55 * rate) : int(2.55 * rate)], rate)
    shutil.copytree(ROOT / "models" / "byola", programs / "models" / "byola")
    return programs


@contextmanager
def beside_a_server(workshop: Path, models: str) -> Iterator[Callable[..., str]]:
    """As `shell`; models: the folder of the workshop that is served."""
    with running(viola(workshop / models / "byola", "auto")) as server:

        def run_scripts(*scripts: str, **variables: str) -> str:
            environment = os.environ | {
                "VIOLA_URL": f"http://127.0.0.1:{server.port}",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",  # the networks are too small for more
            }
            command = ["bash", "-euo", "pipefail", "-c", "\n".join(f". ./{script}" for script in scripts)]
            return run(command, workshop, environment | variables)

        yield run_scripts


@pytest.fixture
def shell(workshop: Path) -> Iterator[Callable[..., str]]:
    """shell("a.sh", "b.sh", NAME=value): what they print, beside a server of the workshop's models."""
    with beside_a_server(workshop, "models") as run_scripts:
        yield run_scripts


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(900)
def test_a_head_of_ones_own_labels_is_fitted_and_served_and_the_shipped_model_stays(workshop: Path) -> None:
    before = content_of(workshop / "models")
    run(["bash", "copy_model.sh"], workshop, dict(os.environ))
    with beside_a_server(workshop, "my_models") as shell:
        out = shell("fit_head.sh", "serve_head.sh")
    assert "3 labels, accuracy" in out
    assert '"tags":[{"label":"dog"' in out
    assert content_of(workshop / "models") == before


@pytest.mark.timeout(900)
def test_an_encoder_of_ones_own_is_trained_and_served(workshop: Path, shell: Callable[..., str]) -> None:
    recipe = workshop / "tiny.toml"
    recipe.write_text(as_toml(load_recipe("byola-2022", list(TINY))))
    out = shell("train.sh", "serve_mine.sh", RECIPE=str(recipe))
    assert "untrained" in out
    assert "log-mel statistics" in out
    assert '"model":"mine","head":"mine"' in out
    assert '"embedding_size":320' in out
    assert json.loads((workshop / "runs" / "mine.json").read_text())


@pytest.mark.timeout(900)
def test_a_published_checkpoint_is_imported_and_served(workshop: Path, shell: Callable[..., str]) -> None:
    """Random weights in the published layout: the real file may be no test fixture, by its licence."""
    torch.save(published_state("byola-2022"), workshop / "published.pth")
    out = shell("import.sh", "serve_imported.sh", "import_baseline.sh", WEIGHTS="published.pth")
    assert load_card(workshop / "models" / "logmel-stats").embedding_size == 192
    assert '"model":"byola-ntt"' in out
    assert '"embedding_size":3072' in out
    card = json.loads((workshop / "models" / "byola-ntt" / "card.json").read_text())
    assert card["licence"] == "LicenseRef-NTT-evaluation"
    logmels = np.concatenate([logmel_in_torch(path) for path in audio_files([workshop / "my_sounds"])])
    assert card["normalization"]["mean"] == pytest.approx(logmels.mean(), abs=0.01)
    assert card["normalization"]["std"] == pytest.approx(logmels.std(), abs=0.01)


@pytest.mark.timeout(900)
def test_audiosets_tags_are_imported_and_served(workshop: Path, shell: Callable[..., str]) -> None:
    """Random weights in the published layout; test_efficientat.py of model_export has the real ones."""
    torch.save(tensors(efficientat_shapes()), workshop / "weights.pt")
    rows = [f'{i},/m/{i},"Sound, number {i}"' for i in range(527)]
    (workshop / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *rows]))
    out = shell("import_tagger.sh", "serve_tagger.sh", WEIGHTS="weights.pt")
    card = load_card(workshop / "models" / "mn04")
    assert (card.licence, card.embedding_size, card.sample_rate) == ("MIT", 192, 32_000)
    assert '"model":"mn04","head":"audioset"' in out
    assert out.count('"label":"Sound, number ') == 3


def logmel_in_torch(path: Path) -> NDArray[np.float32]:
    waveform = torch.from_numpy(decode(path, sample_rate=BYOLA.sample_rate).samples)
    return LogMel(BYOLA)(waveform[None]).numpy().ravel()


def embedding_here(programs: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment of the bulk guide's commands, and what they embed, in place."""
    for folder in ("my_sounds", "more_sounds"):
        (programs / folder).mkdir()
    shutil.copy(FIXTURES / "rain_44k1_mono.mp3", programs / "my_sounds")
    shutil.copy(DOG, programs / "more_sounds" / "dog.ogg")
    (programs / "more_sounds" / "notes.txt").write_text("no sound")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment | {"PATH": path, "PYTHONPATH": str(ROOT), "VIOLA_MODELS_DIR": str(ROOT / "models")}


@pytest.mark.parametrize("command", ["bulk.sh", "ray.sh"])
def test_folders_and_lists_become_parts(command: str, programs: Path, environment: dict[str, str]) -> None:
    if command == "ray.sh":
        pytest.importorskip("ray")
    here = embedding_here(programs, environment)
    run(["sh", command], programs, here)
    assert run([sys.executable, "read_parts.py", "embeddings/"], programs, here).splitlines() == [
        "part-00000.parquet (2, 3072) float32",
        "notes.txt: the file is not audio in a known format; send WAV, FLAC, Ogg Vorbis or Opus, MP3, AIFF, "
        "M4A, AAC, WebM, WMA or AMR",
    ]


def test_folders_and_lists_become_a_table_of_tags(programs: Path, environment: dict[str, str]) -> None:
    run(["sh", "classify.sh"], programs, embedding_here(programs, environment))
    found = run([sys.executable, "read_tags.py", "tags.csv"], programs, environment).splitlines()
    assert found[:-1] == ["rain_44k1_mono.mp3: rain", "dog.ogg: dog"]
    assert found[-1] == "[('rain', 1), ('dog', 1)]"
