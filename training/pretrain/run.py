"""A run: all that changes from step to step. A plan in, a folder out from which it goes on or is exported.

    runs/<run>/recipe.toml     the recipe as used
               data.json       what it was trained on, and the files that could not be read
               checkpoint.pt   replaced every few minutes

It goes on with its own recipe and on the same clips alone: anything else is refused.
"""

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import encoders
from encoders import Encoder
from encoders.commit import commit_of

from . import checkpoint
from .augmentations import MixupMemory
from .byol import BYOL
from .checkpoint import CheckpointError
from .clips import Clips, write_whole
from .cola import COLA
from .dropout import quicken_dropout
from .logmel import LogMel
from .plan import Plan, Statistics, crops, measure_statistics
from .recipe import Recipe, RecipeError, as_tables, as_toml, method_of
from .run_log import say
from .warm_start import start_from

Method = BYOL | COLA

COLLAPSED = 0.01  # embedding_std below which all clips have practically one embedding
CROPS_TO_UNFOLD = 512  # from which a folded batch normalisation's statistics are taken
COLLAPSED_LOGS = 5  # so many log lines in a row end the run

WHAT_TO_TRY = (
    "Start a new run with a lower optimisation.learning_rate, or continue with --resume --precision float32."
)


class TrainingError(RuntimeError):
    """Training cannot go on: the sentence says why, and what to try."""


@dataclass(frozen=True)
class Options:
    """What may differ between a run and its continuation. Another precision (like another number of
    processes) changes the result, so the checkpoint names it and a difference is said; the rest does not."""

    out: Path
    resume: bool = False
    precision: str = "auto"  # auto, bfloat16 or float32
    compiled: bool = False  # torch.compile: a slow start; see benchmarks/README.md
    log_every: int = 10  # steps
    checkpoint_every_s: float = 300.0
    stop_after_steps: int | None = None  # for a run in parts
    init: Path | None = None  # a run or a model whose weights a new run begins with


@dataclass
class Run:
    """Random states need no place in it: every draw is seeded by the recipe's seed and the step."""

    model: Method
    average: nn.Module
    optimiser: torch.optim.Optimizer
    memory: MixupMemory
    statistics: Statistics
    step: int = 0
    segments_seen: int = 0
    collapsed_logs: int = 0  # log lines in a row


def start_run(plan: Plan, logmel: LogMel, options: Options) -> Run:
    """A new run, or the continuation of the one in the folder."""
    run = new_run(plan.recipe, plan.world.device)
    if options.resume:
        restore(run, checkpoint.load(options.out), plan, options)
    else:
        started_from = begin(run, plan, logmel, options.init)
        if plan.world.is_first:
            describe(plan, options.out, started_from)
    return run


def begin(run: Run, plan: Plan, logmel: LogMel, init: Path | None) -> str | None:
    """Random weights and the dataset's statistics, or those of `init`, whose description is returned."""
    if init is None:
        run.statistics = measure_statistics(plan, logmel)
        return None
    x = crops(plan, logmel, CROPS_TO_UNFOLD)
    run.statistics, description = start_from(init, run.model, plan.recipe, x)
    run.average.load_state_dict(run.model.online.encoder.state_dict())
    if plan.world.is_first:
        say(f"The weights to begin with are those of {description}.")
    return description


def new_run(recipe: Recipe, device: torch.device) -> Run:
    """Before its first step, its statistics not yet measured; raises RecipeError."""
    torch.manual_seed(recipe.optimisation.seed)
    try:
        encoder = encoders.build(recipe.encoder.name, n_mels=recipe.encoder.n_mels, d=recipe.encoder.d)
    except ValueError as error:
        raise RecipeError(f"[encoder] {error}") from error
    quicken_dropout(encoder)
    model = method(recipe, encoder).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Run(
        model=model,
        average=copy.deepcopy(model.online.encoder).requires_grad_(False),
        optimiser=torch.optim.Adam(
            [weights for weights in model.parameters() if weights.requires_grad],
            lr=recipe.optimisation.learning_rate,
            fused=True,
        ),
        memory=MixupMemory(recipe.augmentation.mixup_memory),
        statistics=Statistics(mean=math.nan, std=math.nan),
    )


def method(recipe: Recipe, encoder: Encoder) -> Method:
    """The method that the recipe has a section of, around the encoder."""
    if recipe.cola:
        return COLA(encoder, recipe.cola.projection_size)
    assert recipe.byol
    byol = recipe.byol
    return BYOL(encoder, byol.hidden_size, byol.projection_size, byol.target_decay)


def describe(plan: Plan, folder: Path, started_from: str | None) -> None:
    """The recipe as used and what it is trained on, beside the checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "recipe.toml", as_toml(plan.recipe).encode())
    summary: dict[str, Any] = {
        "clips": len(plan.clips),
        "hours": round(plan.clips.hours, 3),
        "commit": commit_of(Path(__file__).parent),
        "unreadable": [asdict(item) for item in plan.clips.unreadable],
    }
    if started_from:
        summary["started_from"] = started_from
    write_whole(folder / "data.json", json.dumps(summary, indent=2).encode())


def check(run: Run, line: dict[str, float]) -> None:
    """A loss or an embedding from which training does not recover ends the run; the checkpoint stays.

    Looking at logged steps is enough: a loss that is no number stays so, and a collapse counts if it lasts.
    """
    if not math.isfinite(line["loss"]):
        raise TrainingError(
            f"The loss is {line['loss']} at step {run.step}: training stops, the last checkpoint is kept. "
            f"{WHAT_TO_TRY}"
        )
    run.collapsed_logs = run.collapsed_logs + 1 if line["embedding_std"] < COLLAPSED else 0
    if run.collapsed_logs >= COLLAPSED_LOGS:
        raise TrainingError(
            f"The embeddings have collapsed at step {run.step}: their spread is {line['embedding_std']:.4f} "
            f"(under {COLLAPSED} for {COLLAPSED_LOGS} log lines), all clips look the same to the encoder. "
            f"Start a new run with a lower optimisation.learning_rate, {run.model.against_collapse}."
        )


def save(run: Run, plan: Plan, options: Options, *, final: bool) -> None:
    """Write the checkpoint; a full disk in the middle of a run is said and tried again later."""
    state = state_of(run, plan, options)
    if not is_finite(state):
        raise TrainingError(
            f"The weights are no longer finite at step {run.step}: training stops, the last checkpoint is "
            f"kept. {WHAT_TO_TRY}"
        )
    if not plan.world.is_first:
        return
    try:
        checkpoint.save(options.out, state)
    except OSError as error:
        sentence = (
            f"The checkpoint of step {run.step} could not be written ({error}); the one before is kept."
        )
        if final:
            raise TrainingError(f"{sentence} Make room and continue with --resume.") from error
        say(f"{sentence} Training goes on; make room on the disk.")


def is_finite(value: object) -> bool:
    """No tensor in nested dicts holds NaN or infinity."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


def state_of(run: Run, plan: Plan, options: Options) -> dict[str, Any]:
    return {
        "format": 1,
        "recipe": as_tables(plan.recipe),
        "corpus": corpus_of(plan.clips),
        "computed_with": computed_with(plan, options),
        "step": run.step,
        "segments_seen": run.segments_seen,
        "collapsed_logs": run.collapsed_logs,
        "statistics": asdict(run.statistics),
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "memory": run.memory.sounds,
    }


def restore(run: Run, state: dict[str, Any], plan: Plan, options: Options) -> None:
    """Raises CheckpointError when recipe or clips are not those that the run was started with."""
    refuse_another_recipe(state["recipe"], plan.recipe)
    refuse_other_clips(state["corpus"], corpus_of(plan.clips))
    if plan.world.is_first:
        tell_differences(state["computed_with"], computed_with(plan, options))
    run.model.load_state_dict(state["model"])
    run.average.load_state_dict(state["average"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.memory.sounds = state["memory"].to(plan.world.device)
    run.statistics = Statistics(**state["statistics"])
    run.step, run.segments_seen = state["step"], state["segments_seen"]
    run.collapsed_logs = state["collapsed_logs"]


def refuse_another_recipe(tables: dict[str, dict[str, Any]], recipe: Recipe) -> None:
    started, given = json.loads(json.dumps(tables)), json.loads(json.dumps(as_tables(recipe)))
    if method_of(started) != method_of(given):
        raise CheckpointError(
            f"The run was started with the method [{method_of(started)}], not [{method_of(given)}]: resume "
            "with the recipe in its folder, or start a new run."
        )
    for section, table in given.items():
        for key, value in table.items():
            if started[section][key] != value:
                raise CheckpointError(
                    f"The run was started with {section}.{key} = {started[section][key]!r}, not {value!r}: "
                    "resume with the recipe in its folder, or start a new run."
                )


def corpus_of(clips: Clips) -> dict[str, int]:
    """What tells one dataset from another, at the encoder's rate."""
    return {"clips": len(clips), "samples": int(clips.starts[-1])}


def refuse_other_clips(started: dict[str, int], given: dict[str, int]) -> None:
    if started != given:
        raise CheckpointError(
            f"The run was started on {started['clips']} clips of {started['samples']} samples in all, not on "
            f"{given['clips']} clips of {given['samples']}: resume with the same --data and --where, or "
            "start a new run."
        )


def computed_with(plan: Plan, options: Options) -> dict[str, str | int]:
    return {"precision": options.precision, "processes": plan.world.size}


def tell_differences(before: dict[str, str | int], now: dict[str, str | int]) -> None:
    for name, value in now.items():
        if before[name] != value:
            say(
                f"The run was trained with {name} = {before[name]} and goes on with {value}: its result will "
                "not be that of a run in one go."
            )
