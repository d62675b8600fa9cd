"""What the shipped models say of sounds that they were not trained on can be believed: the heads `audioset`.

Sounds that people know without looking at a label: those of the folder of real audio, which is no part of the
repository and is looked for in `shared/data` beside the checkout, and some that are made here. Each is
classified as `/classify` does, and says what is among its first three tags.
"""

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from service.bulk.offline import classify_files
from service.inference.heads import Tag
from service.inference.model import Model
from service.sound.audio import decode

FIXTURES = Path("tests/fixtures")
DATA = Path(__file__).parents[2] / "shared" / "data"
HEAD = "audioset"
FIRST = 3
MOST = 0.6  # of the sounds of a kind: a cry may be all sobs, a bird sit in a street
HEARD_FROM = 0.3  # a score below it says nothing
RATE_HZ = 16_000

BIRD = {"Bird", "Bird vocalization, bird call, bird song", "Chirp, tweet"}
CRY = {"Baby cry, infant cry", "Crying, sobbing"}
RAIN = {"Rain", "Raindrop", "Rain on surface"}


@pytest.fixture(scope="module", params=["byola", "viola-small"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model.load(Path("models") / request.param, device="cpu")


@pytest.fixture(scope="module")
def data() -> Path:
    if not (DATA / "manifest.csv").is_file():
        pytest.skip("the folder of real audio is not at hand")
    return DATA


@cache
def unheard(data: Path) -> dict[tuple[str, str], tuple[Path, ...]]:
    """(dataset, label) → clips that no shipped weights were trained on: held out, or not redistributable."""
    found: dict[tuple[str, str], list[Path]] = {}
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["pretrain"] == "no" or row["redistributable"] == "no":
                found.setdefault((row["dataset"], row["label"]), []).append(data / row["path"])
    return {kind: tuple(dict.fromkeys(paths)) for kind, paths in found.items()}


def tags_of(model: Model, paths: Sequence[Path], *, top_k: int = FIRST) -> list[list[Tag]]:
    """The first tags of each sound."""
    results = classify_files(model, paths, head=HEAD, top_k=top_k, threshold=0.0)
    tags = [result.tags for result in results]
    assert None not in tags
    return [list(each.best) for each in tags if each]


def share_that_says(names: set[str], tags: list[list[Tag]]) -> float:
    return sum(any(tag.label in names for tag in of_one) for of_one in tags) / len(tags)


def written(folder: Path, samples: NDArray[np.floating]) -> Path:
    path = folder / "made.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    return path


def test_recorded_speech_says_speech(model: Model) -> None:
    [tags] = tags_of(model, [FIXTURES / "speech_16k_mono.flac"])
    assert tags[0].label == "Speech"
    assert tags[0].score >= HEARD_FROM


@pytest.mark.parametrize(
    ("dataset", "label", "names"),
    [
        ("esc50", "crying_baby", CRY),
        ("esc50", "chirping_birds", BIRD),
        ("esc50", "rain", RAIN),
        ("music", "music", {"Music"}),
        ("music", "band", {"Music"}),
        ("esc50", "dog", {"Dog", "Bark"}),
    ],
)
def test_a_sound_says_what_it_is(dataset: str, label: str, names: set[str], model: Model, data: Path) -> None:
    paths = unheard(data)[dataset, label]
    assert len(paths) >= 4
    tags = tags_of(model, paths)
    assert share_that_says(names, tags) >= MOST, [of_one[0] for of_one in tags]


def test_single_spoken_words_say_speech(model: Model, data: Path) -> None:
    """Of a second each, by speakers and in a language that training has not heard these of."""
    words = [paths[0] for (dataset, _), paths in sorted(unheard(data).items()) if dataset == "asc"][:20]
    tags = tags_of(model, words)
    assert share_that_says({"Speech"}, tags) >= MOST, [of_one[0] for of_one in tags]


def test_digital_silence_says_silence_or_nothing(model: Model, tmp_path: Path) -> None:
    [tags] = tags_of(model, [written(tmp_path, np.zeros(3 * RATE_HZ))])
    assert tags[0].label == "Silence" or tags[0].score < HEARD_FROM, tags


@pytest.mark.parametrize("hertz", [220, 440, 1000, 3000])
def test_a_sine_tone_says_nothing_alive(hertz: int, model: Model, tmp_path: Path) -> None:
    labels = model.heads[HEAD].labels
    alive = set(labels[: labels.index("Music")])  # AudioSet's order: people, then animals, then music
    assert {"Speech", "Bird", "Cricket", "Cattle, bovinae"} <= alive
    tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(3 * RATE_HZ) / RATE_HZ)
    [tags] = tags_of(model, [written(tmp_path, tone)])
    assert not [tag for tag in tags if tag.label in alive and tag.score >= HEARD_FROM], tags


def test_a_song_followed_by_birds_says_music_and_bird(model: Model, data: Path, tmp_path: Path) -> None:
    """40 seconds of ragtime, 40 of birds: neither is lost in the mean of both."""
    music = unheard(data)["music", "music"][-4:]
    birds = unheard(data)["esc50", "chirping_birds"]
    clips = [decode(path, sample_rate=RATE_HZ).samples for path in (*music, *birds)]
    [tags] = tags_of(model, [written(tmp_path, np.concatenate(clips))], top_k=10)
    heard = {tag.label for tag in tags if tag.score >= HEARD_FROM}
    assert "Music" in heard, tags
    assert heard & BIRD, tags
