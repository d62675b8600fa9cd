"""A run of `python -m training pretrain` or `distil` in, its encoder out.

runs/<run>/checkpoint.pt    recipe, weights (the last ones and their moving average), statistics
           data.json        what it was trained on, and who taught it
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from model_export.errors import ExportError
from model_export.sources.trained import Trained, build_encoder, checked_statistics, load_file

PREFIX = "online.encoder."  # of the encoder that is trained, in the state of the whole BYOL model

Choice = Literal["average", "last"]


def load_run(run: Path, *, weights: Choice | None = None) -> Trained:
    """The encoder of the run's last checkpoint.

    `weights`: the moving average or the last ones; by default the average where the recipe keeps one.
    Raises ExportError.
    """
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise ExportError(f"{path} does not exist: {run} is not the folder of a pre-training run.")
    state = load_file(path)
    try:
        recipe: dict[str, dict[str, Any]] = state["recipe"]
        chosen = weights or ("average" if recipe["optimisation"]["average_decay"] > 0 else "last")
        parameters = {key: value for key, value in recipe["encoder"].items() if key != "name"}
        name = str(recipe["encoder"]["name"])
        tensors = state["average"] if chosen == "average" else _online_encoder(state["model"])
        mean, std = float(state["statistics"]["mean"]), float(state["statistics"]["std"])
        progress = {"step": int(state["step"]), "segments_seen": int(state["segments_seen"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is no checkpoint of this version: {error} is missing.") from error
    checked_statistics(mean, std, path)
    encoder = build_encoder(name, parameters, tensors, path)
    training = {**_data_of(run), **progress, "weights": chosen, "recipe": recipe}
    return Trained(name, {**parameters}, encoder, mean, std, json.loads(json.dumps(training)))


def taught_by(training: Mapping[str, JsonValue]) -> str:
    """The teachers of a distilled run, with their licences: mn04 1.0.0 (MIT). Empty without any."""
    return ", ".join(f"{each['name']} {each['version']} ({each['licence']})" for each in _teachers(training))


def restrictions(training: Mapping[str, JsonValue]) -> list[str]:
    """What the licences of the teachers forbid, a sentence each."""
    return [str(each["restriction"]) for each in _teachers(training) if "restriction" in each]


def _teachers(training: Mapping[str, JsonValue]) -> list[dict[str, Any]]:
    found = training.get("teachers")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _online_encoder(model: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(PREFIX): value for key, value in model.items() if key.startswith(PREFIX)}


def _data_of(run: Path) -> dict[str, Any]:
    """data.json, without the paths of the machine that it was trained on."""
    path = run / "data.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}.") from error
    return data | {"unreadable": len(data.get("unreadable", []))}
