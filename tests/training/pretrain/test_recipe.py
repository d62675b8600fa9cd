"""The shipped recipes hold the papers' numbers, and a mistake in a recipe is named."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from training.pretrain.recipe import (
    RECIPES,
    SECTIONS,
    RecipeError,
    as_tables,
    as_toml,
    load_recipe,
    recipe_of,
)

# What both papers share; arXiv 2103.06695, section V-A, and arXiv 2204.07402, section IV-A.
SHARED = {
    "data": {"segment_s": 0.95, "draws_power": 0.0, "view_distance_s": 0.0, "statistics_crops": 10_000},
    "augmentation": {
        "mixup_memory": 2048,
        "crop_freq_scale": (0.6, 1.5),
        "crop_time_scale": (0.6, 1.5),
        "virtual_time_scale": 1.5,
    },
    "byol": {"hidden_size": 4096, "projection_size": 256, "target_decay": 0.99},
    "optimisation": {
        "epochs": 100.0,
        "batch_size": 256,
        "schedule": "constant",
        "warmup_steps": 0,
        "average_decay": 0.0,
        "weight_decay": 0.0,
        "seed": 42,
    },
}


def published(own: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {
        section: SHARED.get(section, {}) | own[section] for section in ("encoder", "data", "augmentation")
    } | {
        "byol": SHARED["byol"],
        "optimisation": SHARED["optimisation"] | own["optimisation"],
    }


def test_the_recipe_of_2020_is_the_published_one() -> None:
    assert as_tables(load_recipe("byola-2020")) == published(
        {
            "encoder": {"name": "byola-2020", "n_mels": 64, "d": 2048},
            "data": {"short_clips": "zeros-both"},
            "augmentation": {"mixup_alpha": 0.4, "fader_gain": 0.0},
            "optimisation": {"learning_rate": 3e-4},
        }
    )


def test_the_recipe_of_2022_is_the_published_one() -> None:
    assert as_tables(load_recipe("byola-2022")) == published(
        {
            "encoder": {"name": "byola-2022", "n_mels": 64, "d": 3072},
            "data": {"short_clips": "zeros-end"},
            "augmentation": {"mixup_alpha": 0.2, "fader_gain": 1.0},
            "optimisation": {"learning_rate": 1e-4},
        }
    )


def test_a_recipe_cannot_be_changed_once_it_is_read() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe("byola-2022").optimisation.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_survives_toml(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe_of(tomllib.loads(as_toml(recipe))) == recipe


def test_an_override_reads_numbers_pairs_and_words() -> None:
    recipe = load_recipe(
        "byola-2022",
        [
            "optimisation.learning_rate=3e-4",
            "optimisation.epochs = 3",
            "augmentation.crop_time_scale=[0.8, 1.2]",
            "optimisation.schedule=cosine",
            'data.short_clips="zeros-both"',
        ],
    )
    assert recipe.optimisation.learning_rate == 3e-4
    assert recipe.optimisation.epochs == 3.0
    assert isinstance(recipe.optimisation.epochs, float)
    assert recipe.augmentation.crop_time_scale == (0.8, 1.2)
    assert recipe.optimisation.schedule == "cosine"
    assert recipe.data.short_clips == "zeros-both"


def test_a_recipe_is_read_from_a_file_too(tmp_path: Path) -> None:
    recipe = load_recipe("byola-2020", ["optimisation.seed=7"])
    (tmp_path / "mine.toml").write_text(as_toml(recipe))
    assert load_recipe(str(tmp_path / "mine.toml")) == recipe


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimisation.lr=1", "'optimisation.lr'.*learning_rate"),
        ("optimizer.learning_rate=1", "'optimizer'.*optimisation"),
        ("optimisation.epochs=many", "optimisation.epochs must be of type float, not 'many'"),
        ("optimisation.batch_size=1.5", "optimisation.batch_size must be of type int"),
        ("optimisation.batch_size=true", "optimisation.batch_size must be of type int"),
        ("optimisation.batch_size=0", "optimisation.batch_size must be more than 0"),
        ("optimisation.learning_rate=-1", "optimisation.learning_rate must be more than 0"),
        ("optimisation.learning_rate=nan", "optimisation.learning_rate must be more than 0"),
        ("optimisation.schedule=linear", "optimisation.schedule must be one of constant, cosine"),
        ("data.short_clips=repeat", "data.short_clips must be one of zeros-end, zeros-both"),
        ("augmentation.mixup_memory=0", "augmentation.mixup_memory must be more than 0"),
        ("augmentation.mixup_alpha=1.5", "augmentation.mixup_alpha must be 0 or more and at most 1"),
        ("byol.target_decay=1.01", "byol.target_decay must be 0 or more and at most 1"),
        ("augmentation.crop_freq_scale=0.6", "augmentation.crop_freq_scale must be a pair"),
        ("augmentation.crop_freq_scale=[1.5, 0.6]", "augmentation.crop_freq_scale must be the smaller"),
        ("epochs=3", "'epochs=3' is no override"),
        ("optimisation.epochs", "is no override"),
    ],
)
def test_a_mistake_is_named(override: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe("byola-2022", [override])


def test_missing_keys_are_named() -> None:
    tables = as_tables(load_recipe("byola-2022"))
    tables["byol"] = {}
    with pytest.raises(RecipeError, match=r"lacks byol\.hidden_size, byol\.projection_size"):
        recipe_of(tables)
    tables = as_tables(load_recipe("byola-2022"))
    del tables["optimisation"]["seed"]
    with pytest.raises(RecipeError, match=r"lacks optimisation\.seed"):
        recipe_of(tables)


def test_a_recipe_has_one_method() -> None:
    tables = as_tables(load_recipe("byola-2022"))
    assert load_recipe("byola-2022").cola is None
    with pytest.raises(
        RecipeError, match=r"one method, \[byol\], \[cola\], \[msm_mae\] or \[distil\].*: it has 2 of them"
    ):
        recipe_of({**tables, "cola": {"projection_size": 512}})
    del tables["byol"]
    with pytest.raises(RecipeError, match="it has 0 of them"):
        recipe_of(tables)
    with pytest.raises(RecipeError, match="it has 2 of them"):
        load_recipe("cola", ["byol.target_decay=0.5"])


def test_cola_for_hours_of_sound_differs_from_byol_in_the_method_alone() -> None:
    cola, byol = (as_tables(load_recipe(name)) for name in ("cola-small", "byola-2022-small"))
    assert cola.pop("cola") == {"projection_size": 512}
    del byol["byol"]
    assert cola == byol


def test_an_unknown_recipe_is_refused_with_the_known_names() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'byola'.*byola-2020, byola-2022"):
        load_recipe("byola")


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[encoder\n")
    with pytest.raises(RecipeError, match=r"broken\.toml is not valid TOML"):
        load_recipe(str(tmp_path / "broken.toml"))
    (tmp_path / "flat.toml").write_text("encoder = 3\n")
    with pytest.raises(RecipeError, match="encoder must be a section"):
        load_recipe(str(tmp_path / "flat.toml"))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_hyper_parameter_is_explained_in_the_shipped_recipes(path: Path) -> None:
    explained = {line.split("=")[0].strip() for line in path.read_text().splitlines() if "#" in line}
    for section in as_tables(load_recipe(path.stem)).keys() - {"encoder"}:
        unexplained = {field.name for field in dataclasses.fields(SECTIONS[section])} - explained
        assert unexplained <= {"epochs", "learning_rate", "projection_size", "seed"}


def test_distillation_may_have_byol_beside_it_and_then_needs_a_weight_for_it() -> None:
    tables = as_tables(load_recipe("distil"))
    assert load_recipe("distil").augmentation is None
    byola = as_tables(load_recipe("byola-2022"))
    both = {**tables, "byol": byola["byol"], "augmentation": byola["augmentation"]}
    with pytest.raises(RecipeError, match=r"distil\.byol_weight above 0 needs the sections"):
        recipe_of(both)
    both["distil"] = {**both["distil"], "byol_weight": 0.5}
    recipe = recipe_of(both)
    assert recipe.byol
    assert recipe.distil
    assert recipe_of(tomllib.loads(as_toml(recipe))) == recipe
    with pytest.raises(RecipeError, match="it has 2 of them"):
        recipe_of({**tables, "cola": {"projection_size": 512}})


def test_a_section_that_the_method_has_no_use_for_is_named() -> None:
    tables = as_tables(load_recipe("byola-2022"))
    waveform = as_tables(load_recipe("distil"))["waveform"]
    with pytest.raises(RecipeError, match=r"\[waveform\] has no use beside the method \[byol\]"):
        recipe_of({**tables, "waveform": waveform})
