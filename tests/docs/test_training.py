"""docs/training.md against the shipped model: its card holds the recipe that trained it."""

import json
import re
from pathlib import Path
from typing import Any

from training.pretrain.recipe import as_tables, load_recipe, recipe_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """`{"data": {"segment_s": 1}}` → `{"data.segment_s": 1}`."""
    return {f"{table}.{key}": value for table, values in recipe.items() for key, value in values.items()}


def test_the_shipped_models_recipe_is_the_one_that_is_told_but_for_what_is_told() -> None:
    row = r"`([\w-]+)` \|[^|\n]*`models/byola` was trained with it, but for ([^|\n]*) \|"
    ((name, told_differ),) = re.findall(row, PAGE)
    card = json.loads((ROOT / "models" / "byola" / "card.json").read_text())
    # Keys that are newer than the card have the values that a run from before goes on with.
    told, used = (
        flat(as_tables(each)) for each in (load_recipe(name), recipe_of(card["training"]["recipe"]))
    )
    differ = {key: used.get(key) for key in told | used if told.get(key) != used.get(key)}
    assert differ == {key: float(value) for key, value in re.findall(r"`([\w.]+)` = ([\d.]+)", told_differ)}
