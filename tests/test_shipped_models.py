"""The models as they are shipped, `byola` and `viola-small`: promises on real sound, heads, size and card."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference.model import Model
from service.inference.registry import Registry
from service.inference.selftest import complaint
from service.inference.windows import embed
from service.settings import Settings
from service.sound.audio import decode

FIXTURES = Path("tests/fixtures")
CLIPS = sorted(
    path for path in FIXTURES.iterdir() if path.suffix in {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"}
)
FOLDERS = {name: Path("models") / name for name in ("byola", "viola-small")}
# Of both, the floor of the mean of the six tasks, and of esc50's accuracy.
FLOORS = {"byola": (0.91, 0.80), "viola-small": (0.885, 0.78)}
SIZES = {"byola": 40e6, "viola-small": 6e6}  # bytes of the folder, at most
TOLERANCE = 1e-5  # of the largest number of the vector: what docs/how_it_works.md promises


@pytest.fixture(scope="module", params=["byola float32", "byola int8", "viola-small float32"])
def model(request: pytest.FixtureRequest) -> Model:
    name, precision = request.param.split()
    return Model.load(FOLDERS[name], device="cpu", precision=precision)


@pytest.fixture(scope="module")
def byola() -> Model:
    return Model.load(FOLDERS["byola"], device="cpu", precision="float32")


@pytest.fixture(scope="module")
def small() -> Model:
    return Model.load(FOLDERS["viola-small"], device="cpu", precision="float32")


@pytest.fixture(params=["byola", "viola-small"])
def float_model(request: pytest.FixtureRequest) -> Model:
    model: Model = request.getfixturevalue(request.param.removeprefix("viola-"))
    return model


def samples(model: Model, path: Path) -> NDArray[np.float32]:
    return decode(path, sample_rate=model.card.sample_rate).samples


def vector(model: Model, clip: NDArray[np.float32]) -> NDArray[np.float32]:
    return embed(model.run, model.card, [model.logmel(clip)]).vector


def furthest(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_an_embedding_never_depends_on_its_batch(model):
    logmels = [model.logmel(samples(model, path)) for path in CLIPS if "30s" not in path.name]
    logmels += [logmel[:, :90] for logmel in logmels if logmel.shape[1] > 90]  # many of one length
    together = model.run(logmels)  # 10 ms to 5 s
    for logmel, in_batch in zip(logmels, together, strict=True):
        (alone,) = model.run([logmel])
        assert in_batch.count == alone.count
        assert furthest(in_batch.max, alone.max) <= TOLERANCE
        assert furthest(in_batch.sum, alone.sum) <= TOLERANCE


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_length_is_no_limit_for_byola(precision):
    """A minute and a half in windows of ten seconds, against the same in one pass."""
    model = Model.load(FOLDERS["byola"], device="cpu", precision=precision)
    paths = [FIXTURES / "birds_30s_16k_mono.opus", *CLIPS]
    logmel = model.logmel(np.concatenate([samples(model, path) for path in paths]))
    assert logmel.shape[1] > 5 * model.card.windows.frames
    in_windows = embed(model.run, model.card, [logmel], frames=True)
    (whole,) = model.run([logmel], frames=True)
    assert in_windows.frames is not None
    assert whole.frames is not None
    assert in_windows.frames.shape == whole.frames.shape
    assert furthest(in_windows.frames, whole.frames) <= 1e-4
    assert furthest(in_windows.vector, whole.sum / whole.count + whole.max) <= 1e-4


def test_viola_small_hears_each_window_by_itself(small):
    """Speech in the first 10.24 s changes nothing of the birds in the next."""
    birds = small.logmel(samples(small, FIXTURES / "birds_30s_16k_mono.opus"))
    speech = small.logmel(samples(small, FIXTURES / "speech_16k_mono.flac"))
    length = small.card.windows.frames
    window = np.tile(speech, 8)[:, :length]
    in_both = embed(small.run, small.card, [np.hstack([window, birds[:, :length]])], frames=True)
    alone = embed(small.run, small.card, [birds[:, :length]], frames=True)
    assert in_both.frames is not None
    assert alone.frames is not None
    assert furthest(in_both.frames[len(alone.frames) :], alone.frames) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "times_s", "count"), [("byola", (0.015, 0.055, 0.095), 25), ("small", (0.0, 0.16, 0.32), 7)]
)
def test_frames_are_where_the_card_says(name, times_s, count, request):
    model = request.getfixturevalue(name)
    one_second = samples(model, FIXTURES / "keyword_yes_16k_mono_pcm16.wav")
    found = embed(model.run, model.card, [model.logmel(one_second)], frames=True)
    assert found.times_s is not None
    assert found.times_s[:3] == pytest.approx(times_s)
    assert len(found.times_s) == count


def test_it_passes_the_self_test_of_its_card(model):
    assert model.card.self_test is not None
    assert model.precision in model.card.self_test.expected
    assert model.probe() is None


def test_the_self_test_notices_two_hundredths_of_the_norm(model):
    assert model.card.self_test is not None
    expected = model.card.self_test.expected[model.precision]
    found = model.probe_vector()
    assert complaint(found, expected) is None
    noise = np.random.default_rng(0).standard_normal(len(found)).astype(np.float32)
    moved = found + 0.02 * np.linalg.norm(found) * noise / np.linalg.norm(noise)
    assert "of its norm" in str(complaint(moved, expected))


def test_int8_points_where_float32_points(byola):
    int8 = Model.load(FOLDERS["byola"], device="cpu", precision="int8")
    for path in CLIPS:
        a, b = vector(int8, samples(int8, path)), vector(byola, samples(byola, path))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.998, path.name


def test_the_same_sound_at_another_rate_is_nearer_than_another_sound(float_model):
    """Physical sense: resampling a clip to 44.1 kHz and back moves it less than any other clip lies away."""
    import soxr

    clips = {path.name: samples(float_model, path) for path in CLIPS if "silence" not in path.name}
    vectors = {name: vector(float_model, clip) for name, clip in clips.items()}
    centred = {name: v - np.mean(list(vectors.values()), axis=0) for name, v in vectors.items()}
    speech, rate = clips["speech_16k_mono.flac"], float_model.card.sample_rate
    again = vector(float_model, soxr.resample(soxr.resample(speech, rate, 44_100), 44_100, rate))
    again = again - np.mean(list(vectors.values()), axis=0)
    distance = {name: float(np.linalg.norm(v - again)) for name, v in centred.items()}
    assert min(distance, key=distance.__getitem__) == "speech_16k_mono.flac"


def test_the_heads_know_what_they_were_taught(float_model):
    """A test of the wiring, not of quality: some of these clips are among the heads' training data."""
    assert list(float_model.heads) == ["audioset", "esc50", "esc10", "digits", "instruments"]

    def best(head: str, name: str) -> str:
        found = float_model.heads[head]
        scores = found.score(vector(float_model, samples(float_model, FIXTURES / name))[None])[0]
        return found.labels[scores.argmax()]

    assert best("digits", "digit7_8k_mono_pcm16.wav") == "7"
    assert best("esc10", "rain_44k1_mono.mp3") == "rain"
    assert best("esc50", "birds_30s_16k_mono.opus") == "chirping_birds"
    assert best("audioset", "speech_16k_mono.flac") == "Speech"


def test_scores_of_a_head_add_up_to_one(float_model):
    for head in float_model.heads.values():
        if head.task == "multilabel":
            continue
        scores = head.score(vector(float_model, samples(float_model, CLIPS[0]))[None])[0]
        assert scores.sum() == pytest.approx(1, abs=1e-5)
        assert len(scores) == len(head.labels)


def median_cosine(rows: NDArray[np.float32]) -> float:
    """Of all pairs of different rows."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(np.median((unit @ unit.T)[np.triu_indices(len(rows), k=1)]))


def test_unrelated_sounds_have_a_cosine_near_0_once_they_are_normalised(model):
    rows = np.stack([vector(model, samples(model, path)) for path in CLIPS])
    assert median_cosine(rows) > 0.5, "what it is good for"
    for dimensions in (None, 256, 128):
        project = model.project_of(normalize=True, dimensions=dimensions)
        assert abs(median_cosine(project(rows))) < 0.15, dimensions


def test_the_card_tells_what_the_projection_was_measured_on(model):
    facts = model.card.projection
    assert facts.components == min(512, model.card.embedding_size)
    assert facts.clips > 1000
    assert facts.data
    assert abs(facts.median_cosine["after"]) < 0.05
    assert model.precision in model.card.self_test.projected


def test_at_the_start_the_default_model_alone_is_loaded():
    """The other one costs memory when it is first asked for, and no start."""
    default = Settings.model_fields["model"].default
    models = Registry(Path("models"), default=default, load=lambda folder: Model.load(folder, device="cpu"))
    asyncio.run(models.preload(()))
    assert list(models.loaded) == ["byola"]
    assert models.cards.keys() >= FOLDERS.keys()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_folder_stays_small(name):
    assert sum(path.stat().st_size for path in FOLDERS[name].rglob("*") if path.is_file()) < SIZES[name]


def test_the_card_tells_data_recipe_licence_and_results(float_model):
    card = float_model.card
    assert card.licence == "CC-BY-SA-4.0"
    assert card.training["segments_seen"] > 100_000  # type: ignore[operator]
    assert card.intended_use
    assert card.limitations
    tasks = {str(row["task"]): row for row in card.evaluation}
    assert {"esc50", "esc10", "asc_keyword", "asc_speaker", "fsdd_digit", "instrument"} <= set(tasks)
    mean, of_esc50 = FLOORS[card.name]
    assert tasks["esc50"]["value"] >= of_esc50  # type: ignore[operator]
    assert np.mean([row["value"] for row in tasks.values()]) >= mean  # type: ignore[misc]
    for row in tasks.values():
        assert {"value", "ci95", "seeds", "test_clips"} <= set(row)


def test_the_card_tells_how_far_int8_is(byola):
    assert byola.card.variants["int8"]["cosine_mean"] > 0.999  # type: ignore[operator]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_page_on_encoders_shows_the_results_of_the_card(name):
    """Its table of several models and the cards are one measurement; tests/docs holds the README to it."""
    card = json.loads((FOLDERS[name] / "card.json").read_text())
    rows = card["evaluation"]
    shown = [f"{row['value']:.3f} ({row['ci95'][0]:.3f}-{row['ci95'][1]:.3f})" for row in rows]
    shown += [f"{np.mean([row['value'] for row in rows]):.3f}"]
    line = " | ".join([f"| models/{name}", str(card["embedding_size"]), *shown])
    assert f"{line} |\n" in Path("docs/encoders.md").read_text()


def test_the_page_on_encoders_shows_byola_beside_the_baselines_of_its_card():
    card = json.loads((FOLDERS["byola"] / "card.json").read_text())
    page = Path("docs/encoders.md").read_text()
    for row in card["evaluation"]:
        low, high = row["ci95"]
        cells = f"| {row['task']} | {row['metric']} | {row['value']:.3f} ({low:.3f}-{high:.3f}) |"
        (line,) = (line for line in page.splitlines() if line.startswith(cells))
        baselines = [float(cell.split()[0]) for cell in line.removeprefix(cells).strip(" |").split("|")]
        assert baselines == pytest.approx([row["untrained"], row["log-mel statistics"]], abs=6e-4)


def test_the_heads_are_tested_on_sound_that_nobody_trained_on(float_model):
    tests = {name: head.results["test"] for name, head in float_model.heads.items()}  # type: ignore[index, call-overload]
    assert tests.pop("audioset") == "880 clips held out"  # of the head; the encoder has heard them
    assert tests == {"esc50": "fold 5", "esc10": "fold 5", "digits": "test", "instruments": "fold 5"}
