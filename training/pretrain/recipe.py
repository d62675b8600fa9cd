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

from encoders.frontend import EFFICIENTAT, MSM_MAE, Frontend, frontend_of

RECIPES = Path(__file__).parents[1] / "recipes"


class RecipeError(ValueError):
    """The recipe does not fit: the sentence names the key and what would be right."""


@dataclass(frozen=True)
class BYOLARecipe:
    name: str
    n_mels: int
    d: int

    @property
    def frontend(self) -> Frontend:
        return frontend_of(self.n_mels)


@dataclass(frozen=True)
class EfficientATRecipe:
    name: str
    width: float

    @property
    def frontend(self) -> Frontend:
        return EFFICIENTAT


@dataclass(frozen=True)
class TransformerRecipe:
    """Of an msm-mae."""

    name: str
    unit_frames: int
    width: int
    depth: int
    heads: int

    @property
    def frontend(self) -> Frontend:
        return MSM_MAE


EncoderRecipe = BYOLARecipe | EfficientATRecipe | TransformerRecipe


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
class MsmMaeRecipe:
    mask_ratio: float
    targets: str
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


@dataclass(frozen=True)
class WaveformRecipe:
    """What teachers and student hear instead of the crop itself; a share is a chance, per crop."""

    synthetic_share: float
    mix_share: float
    mix_snr_db: tuple[float, float]
    filter_share: float
    reverb_share: float
    reverb_rt60_s: tuple[float, float]
    gain_db: tuple[float, float]
    long_share: float
    long_s: tuple[float, float]
    long_mixtures: int


@dataclass(frozen=True)
class DistilRecipe:
    embedding_weight: float
    tag_weight: float
    logit_weight: float
    keep_weight: float
    byol_weight: float
    statistics_crops: int
    different_batches: int
    standardise: str = "start"
    map_weight: float = 0.0


@dataclass(frozen=True)
class OptimisationRecipe:
    epochs: float
    batch_size: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    average_decay: float
    seed: int
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The method is the one of `byol`, `cola`, `msm_mae` and `distil` that there is; `distil` may have `byol`
    beside it.

    augmentation: of byol's and cola's views; waveform: of what is taught. Each is there where it is used.
    """

    encoder: EncoderRecipe
    data: DataRecipe
    waveform: WaveformRecipe | None = None
    augmentation: AugmentationRecipe | None = None
    byol: ByolRecipe | None = None
    cola: ColaRecipe | None = None
    msm_mae: MsmMaeRecipe | None = None
    distil: DistilRecipe | None = None
    optimisation: OptimisationRecipe


SECTIONS: dict[str, type] = {
    "encoder": BYOLARecipe,
    "data": DataRecipe,
    "waveform": WaveformRecipe,
    "augmentation": AugmentationRecipe,
    "byol": ByolRecipe,
    "cola": ColaRecipe,
    "msm_mae": MsmMaeRecipe,
    "distil": DistilRecipe,
    "optimisation": OptimisationRecipe,
}
METHODS = ("byol", "cola", "msm_mae", "distil")
SECTIONS_OF = {  # of a method, beside encoder, data and optimisation
    ("byol",): {"augmentation", "byol"},
    ("cola",): {"augmentation", "cola"},
    ("msm_mae",): {"msm_mae"},
    ("distil",): {"waveform", "distil"},
    ("byol", "distil"): {"waveform", "distil", "augmentation", "byol"},
}
OF_EVERY_METHOD = {"encoder", "data", "optimisation"}


CHOICES = {
    "data.short_clips": ("zeros-end", "zeros-both"),
    "optimisation.schedule": ("constant", "cosine"),
    "distil.standardise": ("start", "batch"),
    "msm_mae.targets": ("normalised", "plain"),
}


SMALLEST, LARGEST = sys.float_info.min, sys.float_info.max
MAY_BE_ZERO = frozenset(
    {"data.draws_power", "data.view_distance_s", "augmentation.mixup_alpha", "augmentation.fader_gain"}
    | {"waveform.synthetic_share", "waveform.mix_share", "waveform.filter_share", "waveform.reverb_share"}
    | {"waveform.long_share", "waveform.long_mixtures", "distil.embedding_weight", "distil.tag_weight"}
    | {"distil.logit_weight", "distil.keep_weight", "distil.byol_weight", "distil.different_batches"}
    | {"distil.map_weight", "optimisation.weight_decay"}
    | {"byol.target_decay", "optimisation.warmup_steps", "optimisation.average_decay", "optimisation.seed"}
)
AT_MOST_ONE = frozenset(
    {"augmentation.mixup_alpha", "byol.target_decay", "optimisation.average_decay", "waveform.long_share"}
    | {"msm_mae.mask_ratio"}
    | {"waveform.synthetic_share", "waveform.mix_share", "waveform.filter_share", "waveform.reverb_share"}
)
ANY_SIGN = frozenset({"waveform.mix_snr_db", "waveform.gain_db"})  # decibels


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
    needed = OF_EVERY_METHOD | SECTIONS_OF[methods_in(tables)]
    for name in tables:
        if name not in needed:
            raise RecipeError(f"[{name}] has no use beside the method [{method}]: leave it out.")
    recipe = Recipe(
        **{
            name: section_of(name, kind_of(name, kind, tables), tables.get(name, {}))
            for name, kind in SECTIONS.items()
            if name in needed
        }
    )
    is_efficientat = isinstance(recipe.encoder, EfficientATRecipe)
    if is_efficientat and (recipe.distil is None or recipe.byol):
        raise RecipeError(
            "An efficientat learns from teachers alone, not by [byol] or [cola]: take the recipe "
            "distil-efficientat, or an encoder of BYOL-A."
        )
    if recipe.distil and recipe.distil.map_weight and not is_efficientat:
        raise RecipeError(
            "distil.map_weight teaches the blocks of an efficientat one by one: set it to 0 for "
            f"{recipe.encoder.name}."
        )
    refuse_another_encoder(recipe)
    if recipe.distil and (recipe.distil.byol_weight > 0) != (recipe.byol is not None):
        raise RecipeError(
            "distil.byol_weight above 0 needs the sections [augmentation] and [byol], and these need it."
        )
    return recipe


def refuse_another_encoder(recipe: Recipe) -> None:
    """An msm-mae learns by its own method, in segments of its unit, and by that method nothing else does."""
    encoder, data = recipe.encoder, recipe.data
    if isinstance(encoder, TransformerRecipe) != (recipe.msm_mae is not None):
        raise RecipeError(
            f"[msm_mae] trains an msm-mae, which learns by no other method: it does not fit a {encoder.name}."
            if recipe.msm_mae
            else "An msm-mae learns by the method [msm_mae] alone: take the recipe msm-mae or msm-mae-small."
        )
    if isinstance(encoder, TransformerRecipe):
        frontend, unit = encoder.frontend, encoder.unit_frames
        frames = 1 + int(data.segment_s * frontend.sample_rate) // frontend.hop_length
        if not unit <= frames <= unit + 1:
            raise RecipeError(
                f"data.segment_s = {data.segment_s:g} gives {frames} log-mel frames, and encoder.unit_frames "
                f"asks for {unit}: {unit * frontend.hop_length / frontend.sample_rate:g} s would be right."
            )


def method_of(tables: dict[str, dict[str, Any]]) -> str:
    """byol, cola, msm_mae or distil: the one that the tables have a section of."""
    found = methods_in(tables)
    if found not in SECTIONS_OF:
        sections = "[byol], [cola], [msm_mae] or [distil] (with or without [byol])"
        raise RecipeError(f"The recipe must have one method, {sections}: it has {len(found)} of them.")
    return found[-1]


def methods_in(tables: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    return tuple(name for name in METHODS if name in tables)


def kind_of(name: str, kind: type, tables: dict[str, dict[str, Any]]) -> type:
    """The section's kind; that of the encoder by its name."""
    if name == "encoder" and tables.get(name, {}).get("name") == "efficientat":
        return EfficientATRecipe
    if name == "encoder" and tables.get(name, {}).get("name") == "msm-mae":
        return TransformerRecipe
    return kind


def section_of(name: str, kind: type, table: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    refuse_unknown(table, hints, "key", f"{name}.")
    defaults = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    missing = [key for key in hints if key not in table and key not in defaults]
    if missing:
        raise RecipeError(f"The recipe lacks {', '.join(f'{name}.{key}' for key in missing)}.")
    given = {key: hint for key, hint in hints.items() if key in table}
    return kind(**{key: checked(f"{name}.{key}", hint, table[key]) for key, hint in given.items()})


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
    if name in ANY_SIGN and not abs(value) <= LARGEST:  # NaN neither
        raise RecipeError(f"{name} must be a finite number of decibels, not {value!r}.")
    if isinstance(value, int | float) and name not in ANY_SIGN:
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
