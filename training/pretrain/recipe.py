"""A recipe: every hyper-parameter of a pre-training run, from a TOML file in `training/recipes/`.

In: the name of a recipe or the path of a TOML file, and overrides such as `optimisation.learning_rate=3e-4`.
Out: a frozen Recipe. An unknown or missing key, or a value of another type, is a RecipeError that names it.
"""

import dataclasses
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """The recipe does not fit: the sentence names the key and what would be right."""


@dataclass(frozen=True)
class EncoderRecipe:
    name: str
    n_mels: int
    d: int


@dataclass(frozen=True)
class DataRecipe:
    segment_s: float
    short_clips: str
    draws_power: float
    view_distance_s: float
    statistics_crops: int


@dataclass(frozen=True)
class AugmentationRecipe:
    mixup_alpha: float
    mixup_memory: int
    crop_freq_scale: tuple[float, float]
    crop_time_scale: tuple[float, float]
    virtual_time_scale: float
    fader_gain: float


@dataclass(frozen=True)
class ByolRecipe:
    hidden_size: int
    projection_size: int
    target_decay: float


@dataclass(frozen=True)
class ColaRecipe:
    projection_size: int


@dataclass(frozen=True)
class OptimisationRecipe:
    epochs: float
    batch_size: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    average_decay: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The method is the one of `byol` and `cola` that there is."""

    encoder: EncoderRecipe
    data: DataRecipe
    augmentation: AugmentationRecipe
    byol: ByolRecipe | None = None
    cola: ColaRecipe | None = None
    optimisation: OptimisationRecipe


SECTIONS: dict[str, type] = {
    "encoder": EncoderRecipe,
    "data": DataRecipe,
    "augmentation": AugmentationRecipe,
    "byol": ByolRecipe,
    "cola": ColaRecipe,
    "optimisation": OptimisationRecipe,
}
METHODS = ("byol", "cola")


CHOICES = {
    "data.short_clips": ("zeros-end", "zeros-both"),
    "optimisation.schedule": ("constant", "cosine"),
}


SMALLEST, LARGEST = sys.float_info.min, sys.float_info.max
MAY_BE_ZERO = frozenset(
    {"data.draws_power", "data.view_distance_s", "augmentation.mixup_alpha", "augmentation.fader_gain"}
    | {"byol.target_decay", "optimisation.warmup_steps", "optimisation.average_decay", "optimisation.seed"}
)
AT_MOST_ONE = frozenset({"augmentation.mixup_alpha", "byol.target_decay", "optimisation.average_decay"})


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe called `name_or_path`, with overrides of the form `section.key=value`."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise RecipeError(f"There is no recipe '{name_or_path}': give a TOML file, or one of {known}.")
    try:
        tables = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.") from error
    for override in overrides or []:
        apply_override(tables, override)
    return recipe_of(tables)


def recipe_of(tables: dict[str, dict[str, Any]]) -> Recipe:
    """The Recipe of the tables of a TOML file (or of a checkpoint)."""
    refuse_unknown(tables, SECTIONS, "section")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise RecipeError(f"{name} must be a section of keys, not {table!r}.")
    method = method_of(tables)
    return Recipe(
        **{
            name: section_of(name, kind, tables.get(name, {}))
            for name, kind in SECTIONS.items()
            if name == method or name not in METHODS
        }
    )


def method_of(tables: dict[str, dict[str, Any]]) -> str:
    """byol or cola: the one that the tables have a section of."""
    found = [name for name in METHODS if name in tables]
    if len(found) != 1:
        sections = " or ".join(f"[{name}]" for name in METHODS)
        raise RecipeError(f"The recipe must have one method, {sections}: it has {len(found)} of them.")
    return found[0]


def section_of(name: str, kind: type, table: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    refuse_unknown(table, hints, "key", f"{name}.")
    missing = [key for key in hints if key not in table]
    if missing:
        raise RecipeError(f"The recipe lacks {', '.join(f'{name}.{key}' for key in missing)}.")
    return kind(**{key: checked(f"{name}.{key}", hint, table[key]) for key, hint in hints.items()})


def refuse_unknown(given: dict[str, Any], known: dict[str, Any], what: str, prefix: str = "") -> None:
    for key in given:
        if key not in known:
            raise RecipeError(f"There is no {what} '{prefix}{key}': the known ones are {', '.join(known)}.")


def checked(name: str, hint: Any, value: Any) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(hint)):
            raise RecipeError(f"{name} must be a pair of numbers, not {value!r}.")
        low, high = (checked(name, float, item) for item in value)
        if low > high:
            raise RecipeError(f"{name} must be the smaller number and then the larger, not {value!r}.")
        return low, high
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool):
        raise RecipeError(f"{name} must be of type {hint.__name__}, not {value!r}.")
    if name in CHOICES and value not in CHOICES[name]:
        raise RecipeError(f"{name} must be one of {', '.join(CHOICES[name])}, not {value!r}.")
    if isinstance(value, int | float):
        low, high = (0.0 if name in MAY_BE_ZERO else SMALLEST), (1.0 if name in AT_MOST_ONE else LARGEST)
        if not low <= value <= high:  # NaN neither
            at_most = " and at most 1" if name in AT_MOST_ONE else ""
            raise RecipeError(
                f"{name} must be {'0 or more' if low == 0 else 'more than 0'}{at_most}, not {value!r}."
            )
    return value


def apply_override(tables: dict[str, dict[str, Any]], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot):
        raise RecipeError(f"'{override}' is no override: write section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word needs no quotes on the command line
    tables.setdefault(section, {})[key] = value


def as_tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The recipe as plain tables, ready for JSON or TOML."""
    return {name: table for name, table in dataclasses.asdict(recipe).items() if table is not None}


def as_toml(recipe: Recipe) -> str:
    """The recipe as used, to keep beside its results."""
    lines = []
    for section, table in as_tables(recipe).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in table.items()]
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return repr(value)
