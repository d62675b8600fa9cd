"""Pre-training, the loop: clips and a recipe in, a run folder with checkpoints and logs out.

    clips ─► plan: batches ─► log-mel ─► (views) ─► method: loss ─► run: one step on ─► run_log, checkpoint
             └─► lessons: augmented, teachers' answers ──┘

Every draw of step n is seeded by (seed, n): a run that was interrupted goes on to the same result.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from encoders import Student
from training.clips import AUGMENTATION, Clips
from training.logmel import LogMel
from training.pretrain.augmentations import View, post_normalise, view_of
from training.pretrain.distributed import World, gather, wrap
from training.pretrain.interruption import Interrupted, until_interrupted
from training.pretrain.lessons import Lessons
from training.pretrain.method import Step
from training.pretrain.recipe import Recipe
from training.pretrain.run import Options, Run, check, save, start_run
from training.pretrain.run_log import Clock, RunLog, embedding_std, say
from training.pretrain.sampler import Batch, Plan, Statistics, plan_of
from training.pretrain.teachers import Teacher

Watch = Callable[
    [Student, float, float], dict[str, float]
]  # encoder, mean and std of its log-mels -> figures

ANSWERS = "answers"  # of teachers, in the run's folder


def pretrain(
    clips: Clips,
    recipe: Recipe,
    options: Options,
    world: World,
    teachers: Sequence[Teacher] = (),
    watch: Watch | None = None,
) -> None:
    """Train until the recipe's last epoch. teachers: of a recipe with [distil], which alone has some; watch:
    what tells now and then how good the encoder is.

    Raises TrainingError, CheckpointError, DataError or RecipeError; after SIGINT or SIGTERM, once the step
    in progress is saved, Interrupted.
    """
    plan = plan_of(clips, recipe, world)
    precision, reason = precision_of(options.precision, world.device)
    options = replace(options, precision=precision)
    if world.is_first:
        say(f"The networks compute in {precision}: {reason}.")
        warn_of_few_steps(plan)
    logmel = LogMel(recipe.encoder.frontend).to(world.device)
    usual_frames = logmel.frames(plan.segment)
    lessons = lessons_of(plan, teachers, options.out) if recipe.distil else None
    run = start_run(plan, logmel, options, lessons)
    if options.compiled:
        for network in run.model.children():
            network.compile()
    trained = wrap(run.model, world)
    view = view_of(run.memory, recipe.augmentation) if recipe.augmentation else None
    autocast = autocast_of(precision, world.device)
    last_step = min(plan.steps, run.step + (options.stop_after_steps or plan.steps))

    with RunLog(options.out, run.step, active=world.is_first) as log, until_interrupted() as asked:
        progress = tqdm(total=plan.steps, initial=run.step, unit="step", disable=not world.is_first)
        saved_at = time.monotonic()
        batches = plan.batches(run.step, last_step, lessons.prepare if lessons else None)
        for _ in range(run.step, last_step):
            is_last = run.step + 1 == last_step
            is_watched = watch is not None and is_due(run.step, options.probe_every, is_last=is_last)
            is_logged = run.step % options.log_every == 0 or is_last or is_watched
            clock = Clock(world.device, active=is_logged)
            batch = next(batches)
            clock.lap("wait")

            generator = seeded(recipe.optimisation.seed, run.step, world)
            x = normalised(logmel, batch.waveforms.to(world.device), run.statistics)
            shown: list[Tensor | list[Tensor]] = []
            if lessons:
                shown += [x[0], [answer.to(world.device) for answer in batch.answers]]
            if recipe.msm_mae:
                shown.append(x[0])
            monitor: dict[str, Tensor] = {}
            if view:
                x = x[..., :usual_frames]  # of a long crop its beginning: past sounds have one length
                views, monitor = two_views(x, view, generator)
                run.memory.push(gather(x[0], world))
                shown += views.unbind()
            clock.lap("data")

            set_learning_rate(run.optimiser, recipe, run.step, plan.steps)
            with autocast:
                step = trained(*shown)
            run.optimiser.zero_grad(set_to_none=True)
            step.loss.backward()
            run.model.before_step()
            run.optimiser.step()
            update_average(run, recipe.optimisation.average_decay)
            segments = plan.segments_in(run.step)
            run.step += 1
            run.segments_seen += segments
            clock.lap("network")

            progress.update()
            if is_logged:
                speed = clock.speed(segments, teachers_share_of_wait(batch))
                line = log_line(run, plan, step, monitor, speed)
                if watch and is_watched and world.is_first:
                    line |= watched(watch, run, autocast, averaged=recipe.optimisation.average_decay > 0)
                progress.set_postfix_str(f"loss {line['loss']:.3f}, {line['segments_per_s']:.0f} segments/s")
                check(run, line)
                log.write(line)
            is_late = time.monotonic() - saved_at > options.checkpoint_every_s
            if is_late and not is_last and not run.collapsed_logs:  # the last good checkpoint stays
                save(run, plan, options, final=False)
                saved_at = time.monotonic()
            if asked.signal and not is_last:
                progress.close()
                if run.collapsed_logs:
                    raise Interrupted(asked.signal, "its last checkpoint from before the collapse is kept")
                save(run, plan, options, final=True)
                raise Interrupted(asked.signal, f"step {run.step} of {plan.steps} is saved")
        progress.close()
        save(run, plan, options, final=True)


def is_due(step: int, every: int, *, is_last: bool) -> bool:
    """Whether to look after this step (counted from 0): the first, every so many, and the last."""
    return step == 0 or (step + 1) % every == 0 or is_last


def watched(watch: Watch, run: Run, autocast: torch.autocast, *, averaged: bool) -> dict[str, float]:
    """The figures of the encoder that would be exported, and how long they took."""
    began = time.perf_counter()
    encoder = run.average if averaged else run.model.online.encoder
    with autocast:
        figures = watch(encoder, run.statistics.mean, run.statistics.std)
    return {**figures, "probe_s": round(time.perf_counter() - began, 2)}


def lessons_of(plan: Plan, teachers: Sequence[Teacher], out: Path) -> Lessons:
    """Raises RecipeError where a teacher needs longer crops."""
    assert plan.recipe.distil
    for teacher in teachers:
        teacher.refuse_short(plan.segment)
        if plan.recipe.distil.map_weight and teacher.blocks:
            teacher.refuse_long(plan.longest)
    return Lessons(teachers, plan.recipe, plan.clips.sample_rate, answers=out / ANSWERS)


def teachers_share_of_wait(batch: Batch) -> float:
    """Of the time for which a step waited for its batch: the networks of the teachers, the rest is data."""
    return batch.teachers_s / batch.prepared_s if batch.prepared_s else 0.0


def seeded(seed: int, step: int, world: World) -> Generator:
    """The generator of a step's augmentations; dropout draws from torch's own, seeded alike."""
    number = int(
        np.random.SeedSequence((seed, AUGMENTATION, step, world.rank)).generate_state(1, np.uint64)[0] >> 1
    )
    torch.manual_seed(number)
    return Generator(device=world.device).manual_seed(number)


def normalised(logmel: LogMel, waveforms: Tensor, statistics: Statistics) -> Tensor:
    """(V, B, samples) -> (V, B, 1, F, T) with the dataset's mean 0 and std 1."""
    x = logmel(waveforms.flatten(0, 1))
    return ((x - statistics.mean) / statistics.std).unflatten(0, waveforms.shape[:2])


def two_views(x: Tensor, view: View, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """(1 or 2, B, 1, F, T) -> two views (2, B, 1, F, T) after post-normalisation, and its drift monitor."""
    before = torch.stack([view(x[0], generator), view(x[-1], generator)])
    after = post_normalise(before)
    return after, {"view_mean": before.mean(), "view_std": before.std()}


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then constant or half a cosine down to 0 at the last step."""
    optimisation = recipe.optimisation
    rate = optimisation.learning_rate
    if step < optimisation.warmup_steps:
        return rate * (step + 1) / optimisation.warmup_steps
    if optimisation.schedule == "cosine":
        done = (step - optimisation.warmup_steps) / max(steps - optimisation.warmup_steps, 1)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    return rate


def set_learning_rate(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(recipe, step, steps)


def precision_of(asked: str, device: torch.device) -> tuple[str, str]:
    """bfloat16 or float32, and the reason."""
    if asked != "auto":
        return asked, "--precision asks for it"
    if device.type == "cuda":
        return "bfloat16", "it trains on a GPU"
    if torch.cpu._is_avx512_bf16_supported():
        return "bfloat16", "this CPU has instructions for it"
    return "float32", "this CPU has no instructions for bfloat16"


def autocast_of(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def warn_of_few_steps(plan: Plan) -> None:
    warmup_steps = plan.recipe.optimisation.warmup_steps
    if warmup_steps > plan.steps / 10:
        say(
            f"The warm-up of {warmup_steps} steps takes more than a tenth of the run's {plan.steps}: these "
            "are few sounds for this recipe. Raise optimisation.epochs, or lower batch_size or warmup_steps."
        )


@torch.no_grad()
def update_average(run: Run, decay: float) -> None:
    """The moving average of the encoder's state that is exported; a young one forgets faster."""
    decay = min(decay, (1 + run.step) / (10 + run.step))
    mine, theirs = run.average.state_dict(), run.model.online.encoder.state_dict()
    for name, value in mine.items():
        if value.is_floating_point():
            value.lerp_(theirs[name], 1 - decay)
        else:
            value.copy_(theirs[name])


def log_line(
    run: Run, plan: Plan, step: Step, monitor: dict[str, Tensor], speed: dict[str, float]
) -> dict[str, float]:
    """Waits for the device: for logged steps alone."""
    return {
        "step": run.step,
        "epoch": run.step / plan.steps_per_epoch,
        "segments_seen": run.segments_seen,
        "loss": step.loss.item(),
        **{f"loss/{name}": part.item() for name, part in step.parts.items()},
        "embedding_std": embedding_std(step.embedding),
        "learning_rate": run.optimiser.param_groups[0]["lr"],
        **{name: value.item() for name, value in monitor.items()},
        **speed,
        "time_s": round(time.time(), 1),
    }
