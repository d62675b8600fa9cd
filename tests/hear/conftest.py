"""Real sounds in pieces, a server, and folders of toys, for the adapters of the field's benchmarks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from service.http.app import create_app
from service.settings import Settings
from service.sound.audio import decode
from tests.hear.local_tasks import Clip
from tests.service.conftest import write_toy, write_toy_projection
from tests.service.servers import in_thread, url_of
from tests.service.text_towers import write_text_toy

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
RATE = 16_000
PIECES = 5  # of each sound, of a second or what there is
SOUNDS = (
    "birds_30s_16k_mono.opus",
    "rain_44k1_mono.mp3",
    "speech_16k_mono.flac",
    "violin_44k1_mono_pcm16.wav",
)

sys.path.insert(0, str(ROOT / "clients" / "python"))  # viola_client is no package of this environment


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Clip]]:
    """Pieces of real sounds, at two rates, labelled by the sound that they are of, for training and for the
    test: no classifier that hears anything confuses them."""
    folder = tmp_path_factory.mktemp("pieces")
    clips: dict[str, list[Clip]] = {"train": [], "valid": [], "test": []}
    splits = ["train", "train", "train", "valid", "test"]
    for place, name in enumerate(SOUNDS):
        rate = RATE if place % 2 else 22_050
        samples = decode((FIXTURES / name).read_bytes(), sample_rate=rate).samples
        size = min(rate, len(samples) // PIECES)
        for i, split in enumerate(splits):
            path = folder / f"{place}_{i}.wav"
            soundfile.write(path, samples[i * size : (i + 1) * size], rate)
            clips[split].append(Clip(path, name, split))
    return clips


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: `toy`, `centred`, which has a projection, and `words`, which has a text tower."""
    folder = tmp_path_factory.mktemp("toys")
    write_toy(folder / "toy")
    write_toy_projection(write_toy(folder / "centred", name="centred"))
    write_text_toy(folder / "words", name="words")
    return folder


@pytest.fixture(scope="session")
def server(toys: Path) -> Iterator[str]:
    """The address of one that serves them, in float32."""
    settings = Settings(models_dir=toys, model="toy", precision="float32", device="cpu")
    with in_thread(create_app(settings)) as running:
        yield url_of(running)


@pytest.fixture(scope="session")
def noises() -> list[np.ndarray]:
    """Sounds of several lengths, some of many windows, louder than full scale."""
    generator = np.random.default_rng(0)
    lengths = (16_000, 700, 16_000, 200_000, 48_000)
    return [generator.standard_normal(length).astype(np.float32) for length in lengths]
