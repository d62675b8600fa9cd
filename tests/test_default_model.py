"""The model in `models/byola` as it is shipped: the two promises on real sound, its heads, size and card."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.audio import decode
from service.model import Model
from service.selftest import complaint
from service.windows import embed

FOLDER = Path("models/byola")
FIXTURES = Path("tests/fixtures")
CLIPS = sorted(
    path for path in FIXTURES.iterdir() if path.suffix in {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"}
)
TOLERANCE = 1e-5  # of the largest number of the vector: what the README promises


@pytest.fixture(scope="module", params=["float32", "int8"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model.load(FOLDER, device="cpu", precision=request.param)


@pytest.fixture(scope="module")
def float_model() -> Model:
    return Model.load(FOLDER, device="cpu", precision="float32")


def samples(path: Path) -> NDArray[np.float32]:
    return decode(path, sample_rate=16_000).samples


def vector(model: Model, clip: NDArray[np.float32]) -> NDArray[np.float32]:
    return embed(model.run, model.card, [model.logmel(clip)]).vector


def furthest(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_an_embedding_never_depends_on_its_batch(model):
    logmels = [model.logmel(samples(path)) for path in CLIPS if "30s" not in path.name]
    together = model.run(logmels)  # 10 ms to 5 s, padded to the longest
    for logmel, in_batch in zip(logmels, together, strict=True):
        (alone,) = model.run([logmel])
        assert in_batch.count == alone.count
        assert furthest(in_batch.max, alone.max) <= TOLERANCE
        assert furthest(in_batch.sum, alone.sum) <= TOLERANCE


def test_length_is_no_limit(model):
    """A minute and a half in windows of ten seconds, against the same in one pass."""
    clip = np.concatenate([samples(FIXTURES / "birds_30s_16k_mono.opus"), *(samples(path) for path in CLIPS)])
    logmel = model.logmel(clip)
    assert logmel.shape[1] > 5 * model.card.windows.frames
    in_windows = embed(model.run, model.card, [logmel], frames=True)
    (whole,) = model.run([logmel], frames=True)
    assert in_windows.frames is not None
    assert whole.frames is not None
    assert in_windows.frames.shape == whole.frames.shape
    assert furthest(in_windows.frames, whole.frames) <= 1e-4
    assert furthest(in_windows.vector, whole.sum / whole.count + whole.max) <= 1e-4


def test_frames_are_forty_milliseconds_apart(float_model):
    one_second = samples(FIXTURES / "keyword_yes_16k_mono_pcm16.wav")
    found = embed(float_model.run, float_model.card, [float_model.logmel(one_second)], frames=True)
    assert found.times_s is not None
    assert found.times_s[:3] == pytest.approx([0.015, 0.055, 0.095])
    assert len(found.times_s) == 25


def test_it_passes_the_self_test_of_its_card(model):
    assert model.card.self_test is not None
    assert model.precision in model.card.self_test.expected
    assert model.probe() is None


def test_the_self_test_tells_the_two_graphs_apart(float_model):
    """So little does it take to be noticed: they lie 0.015 of the norm from each other."""
    assert float_model.card.self_test is not None
    expected = float_model.card.self_test.expected["int8"]
    assert "of its norm" in str(complaint(float_model.probe_vector(), expected))


def test_int8_points_where_float32_points(float_model):
    int8 = Model.load(FOLDER, device="cpu", precision="int8")
    for path in CLIPS:
        a, b = vector(int8, samples(path)), vector(float_model, samples(path))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.998, path.name


def test_the_same_sound_at_another_rate_is_nearer_than_another_sound(float_model):
    """Physical sense: resampling a clip to 44.1 kHz and back moves it less than any other clip lies away."""
    import soxr

    vectors = {path.name: vector(float_model, samples(path)) for path in CLIPS if "silence" not in path.name}
    centred = {name: v - np.mean(list(vectors.values()), axis=0) for name, v in vectors.items()}
    speech = samples(FIXTURES / "speech_16k_mono.flac")
    again = vector(float_model, soxr.resample(soxr.resample(speech, 16_000, 44_100), 44_100, 16_000))
    again = again - np.mean(list(vectors.values()), axis=0)
    distance = {name: float(np.linalg.norm(v - again)) for name, v in centred.items()}
    assert min(distance, key=distance.__getitem__) == "speech_16k_mono.flac"


def test_the_heads_know_what_they_were_taught(float_model):
    """A test of the wiring, not of quality: some of these clips are among the heads' training data."""
    assert set(float_model.heads) == {"esc50", "esc10", "digits", "instruments"}

    def best(head: str, name: str) -> str:
        found = float_model.heads[head]
        scores = found.score(vector(float_model, samples(FIXTURES / name))[None])[0]
        return found.labels[scores.argmax()]

    assert best("digits", "digit7_8k_mono_pcm16.wav") == "7"
    assert best("esc10", "rain_44k1_mono.mp3") == "rain"
    assert best("esc50", "robin_44k1_stereo.mp3") == "chirping_birds"


def test_scores_of_a_head_add_up_to_one(float_model):
    for head in float_model.heads.values():
        scores = head.score(vector(float_model, samples(CLIPS[0]))[None])[0]
        assert scores.sum() == pytest.approx(1, abs=1e-5)
        assert len(scores) == len(head.labels)


def test_the_folder_stays_small_enough_for_git():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 40e6


def test_the_card_tells_data_recipe_licence_and_results(float_model):
    card = float_model.card
    assert card.licence == "CC-BY-SA-4.0"
    assert card.training["segments_seen"] > 100_000  # type: ignore[operator]
    assert card.intended_use
    assert card.limitations
    assert card.variants["int8"]["cosine_mean"] > 0.999  # type: ignore[operator]
    tasks = {str(row["task"]): row for row in card.evaluation}
    assert {"esc50", "esc10", "asc_keyword", "asc_speaker", "fsdd_digit", "instrument"} <= set(tasks)
    assert tasks["esc50"]["value"] >= 0.74  # type: ignore[operator]
    assert np.mean([row["value"] for row in tasks.values()]) >= 0.875  # type: ignore[misc]
    for row in tasks.values():
        assert {"value", "ci95", "untrained", "log-mel statistics"} <= set(row)


def test_the_readme_shows_the_results_of_the_card():
    """The table in the README and the card are one measurement."""
    card = json.loads((FOLDER / "card.json").read_text())
    readme = Path("README.md").read_text()
    for row in card["evaluation"]:
        low, high = row["ci95"]
        cells = f"| {row['task']} | {row['metric']} | {row['value']:.3f} ({low:.3f}-{high:.3f}) |"
        assert cells in readme, row["task"]


def test_the_heads_are_tested_on_sound_that_nobody_trained_on(float_model):
    tests = {name: head.results["test"] for name, head in float_model.heads.items()}  # type: ignore[index, call-overload]
    assert tests == {"esc50": "fold 5", "esc10": "fold 5", "digits": "test", "instruments": "fold 5"}


def test_every_module_is_in_the_tree_of_the_readme():
    readme = Path("README.md").read_text()
    for folder in ("service", "encoders", "training", "model_export", "benchmarks"):
        for path in Path(folder).glob("*.py"):
            if not path.name.startswith("__"):
                assert f"{path.name} " in readme or f"{path.name}," in readme, path
