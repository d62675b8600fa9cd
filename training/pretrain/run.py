"""A run: all that changes from step to step. A plan in, a folder out from which it goes on or is exported.

    runs/<run>/recipe.toml     the recipe as used
               data.json       what it was trained on, who taught it, and the files that could not be read
               checkpoint.pt   replaced every few minutes

It goes on with its own recipe and on the same clips alone: anything else is refused.
"""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import encoders
from encoders import Encoder, Student
from encoders.commit import commit_of
from encoders.efficientat import EfficientAT
from encoders.msm_mae import MSMMAE
from service.process.files import write_whole
from training.clips import Clips
from training.logmel import LogMel
from training.pretrain import checkpoint
from training.pretrain.augmentations import MixupMemory
from training.pretrain.byol import BYOL
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.cola import COLA
from training.pretrain.distil import Distil
from training.pretrain.dropout import quicken_dropout
from training.pretrain.lessons import Lessons, first_lessons
from training.pretrain.msm_mae import MaskedAutoencoder
from training.pretrain.recipe import (
    ByolRecipe,
    OptimisationRecipe,
    Recipe,
    RecipeError,
    as_tables,
    as_toml,
    method_of,
    recipe_of,
)
from training.pretrain.run_log import say
from training.pretrain.sampler import Plan, Statistics, crops, measure_statistics
from training.pretrain.teachers import Subject
from training.pretrain.warm_start import start_from

Method = BYOL | COLA | MaskedAutoencoder | Distil

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
    probe_every: int = 200  # steps, where there is something to probe with
    checkpoint_every_s: float = 300.0
    stop_after_steps: int | None = None  # for a run in parts
    init: Path | None = None  # a run or a model whose weights a new run begins with


@dataclass
class Run:
    """Random states need no place in it: every draw is seeded by the recipe's seed and the step."""

    model: Method
    average: Student  # the moving average of its weights
    optimiser: torch.optim.Optimizer
    memory: MixupMemory
    statistics: Statistics
    step: int = 0
    segments_seen: int = 0
    collapsed_logs: int = 0  # log lines in a row
    teachers: tuple[dict[str, Any], ...] = ()  # who they are, as in data.json


def start_run(plan: Plan, logmel: LogMel, options: Options, lessons: Lessons | None = None) -> Run:
    """A new run, or the continuation of the one in the folder. lessons: of a run that has teachers."""
    run = new_run(plan.recipe, plan.world.device, lessons)
    if options.resume:
        restore(run, checkpoint.load(options.out), plan, options)
    else:
        started_from = begin(run, plan, logmel, options.init)
        if lessons:
            meet_teachers(run, plan, logmel, lessons)
        if plan.world.is_first:
            describe(plan, options.out, started_from, run.teachers)
    return run


def meet_teachers(run: Run, plan: Plan, logmel: LogMel, lessons: Lessons) -> None:
    """Measure on augmented crops what the teachers, and the encoder as it is now, say in the mean."""
    assert isinstance(run.model, Distil)
    run.model.keep_start()
    heard, answers = [], []
    for waveforms, said in first_lessons(plan, lessons):
        x = logmel(waveforms.to(plan.world.device))
        heard.append((x - run.statistics.mean) / run.statistics.std)
        answers.append(said)
    run.model.measure(heard, [torch.cat(said).to(plan.world.device) for said in zip(*answers, strict=True)])


def begin(run: Run, plan: Plan, logmel: LogMel, init: Path | None) -> str | None:
    """Random weights and the dataset's statistics, or those of `init`, whose description is returned. An
    encoder that knows one normalisation only has that."""
    if init is None:
        encoder = run.model.online.encoder
        if isinstance(encoder, EfficientAT):
            run.statistics = Statistics(encoder.mean, encoder.std)
        else:
            run.statistics = measure_statistics(plan, logmel)
        return None
    x = crops(plan, logmel, CROPS_TO_UNFOLD)
    run.statistics, description = start_from(init, run.model, plan.recipe, x)
    run.average.load_state_dict(run.model.online.encoder.state_dict())
    if plan.world.is_first:
        say(f"The weights to begin with are those of {description}.")
    return description


def new_run(recipe: Recipe, device: torch.device, lessons: Lessons | None = None) -> Run:
    """Before its first step, its statistics not yet measured; raises RecipeError."""
    torch.manual_seed(recipe.optimisation.seed)
    try:
        encoder = encoders.build_student(**asdict(recipe.encoder))
    except ValueError as error:
        raise RecipeError(f"[encoder] {error}") from error
    quicken_dropout(encoder)
    model = method(recipe, encoder, lessons.subjects if lessons else []).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Run(
        model=model,
        average=copy.deepcopy(model.online.encoder).requires_grad_(False),
        optimiser=optimiser_of(model, recipe.optimisation),
        memory=MixupMemory(recipe.augmentation.mixup_memory if recipe.augmentation else 1),
        statistics=Statistics(mean=math.nan, std=math.nan),
        teachers=tuple(teacher.described() for teacher in lessons.teachers) if lessons else (),
    )


def optimiser_of(model: Method, recipe: OptimisationRecipe) -> torch.optim.Optimizer:
    """AdamW, without weight decay Adam itself; a masked autoencoder has its own betas, and spares biases."""
    weights = [weights for weights in model.parameters() if weights.requires_grad]
    if not isinstance(model, MaskedAutoencoder):
        return torch.optim.AdamW(
            weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
    vectors = [each for each in weights if each.dim() == 1]  # biases, and the gains of the normalisation
    groups = [
        {"params": [each for each in weights if each.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=model.betas, fused=True)


def method(recipe: Recipe, encoder: Student, subjects: Sequence[Subject]) -> Method:
    """The method that the recipe has a section of, around the encoder; subjects: what teachers teach."""
    if recipe.msm_mae:
        assert isinstance(encoder, MSMMAE)
        return MaskedAutoencoder(encoder, recipe.msm_mae)
    if recipe.distil and not recipe.byol:
        assert not isinstance(encoder, MSMMAE)  # such a recipe is refused
        return Distil(encoder, subjects, recipe.distil)
    assert not isinstance(encoder, EfficientAT | MSMMAE)  # and a recipe for one here as well
    if recipe.cola:
        return COLA(encoder, recipe.cola.projection_size)
    assert recipe.byol
    byol = byol_of(recipe.byol, encoder)
    return Distil(encoder, subjects, recipe.distil, byol) if recipe.distil else byol


def byol_of(recipe: ByolRecipe, encoder: Encoder) -> BYOL:
    return BYOL(encoder, recipe.hidden_size, recipe.projection_size, recipe.target_decay)


def describe(
    plan: Plan, folder: Path, started_from: str | None, teachers: Sequence[dict[str, Any]] = ()
) -> None:
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
    if teachers:
        summary["teachers"] = list(teachers)
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
        "teachers": list(run.teachers),
    }


def restore(run: Run, state: dict[str, Any], plan: Plan, options: Options) -> None:
    """Raises CheckpointError when recipe or clips are not those that the run was started with."""
    refuse_another_recipe(state["recipe"], plan.recipe)
    refuse_other_clips(state["corpus"], corpus_of(plan.clips))
    refuse_other_teachers(state.get("teachers", []), run.teachers)
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
    known = as_tables(recipe_of(tables))  # with the keys that have come since, as they were before
    started, given = json.loads(json.dumps(known)), json.loads(json.dumps(as_tables(recipe)))
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


def refuse_other_teachers(started: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]]) -> None:
    """The same folders, to the bit, in the same order; what their cards tell may have changed."""
    names, given_names = ([f"{each['name']} {each['version']}" for each in one] for one in (started, given))
    if names != given_names:
        raise CheckpointError(
            f"The run was started with the teachers {', '.join(names) or 'none'}, not with "
            f"{', '.join(given_names) or 'none'}: resume with the same, or start a new run."
        )
    for before, now in zip(started, given, strict=True):
        changed = sorted({**before["sha256"], **now["sha256"]})
        changed = [name for name in changed if before["sha256"].get(name) != now["sha256"].get(name)]
        if changed:
            raise CheckpointError(
                f"The teacher {now['name']} is no longer the one that the run was started with: "
                f"{', '.join(changed)} changed. Restore its folder, or start a new run."
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
