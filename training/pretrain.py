"""BYOL-A pre-training: clips and a recipe in, a run folder with checkpoints and logs out.

    runs/<run>/recipe.toml       the recipe as used
               data.json         what it was trained on, and the files that could not be read
               log.jsonl         one line per logged step
               tensorboard/      the same as curves
               checkpoint.pt     replaced every few minutes

Every draw of step n is seeded by (seed, n): a run that was interrupted goes on to the same result.
"""

import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import encoders
from encoders.frontend import BYOLA, Frontend

from . import checkpoint
from .augmentations import EPS, MixupMemory, View, post_normalise, view_of
from .byol import BYOL
from .clips import (
    AUGMENTATION,
    SEGMENTS,
    STATISTICS,
    Clips,
    DataError,
    draw_segments,
    epoch_order,
    write_whole,
)
from .distributed import World, gather, wrap
from .logmel import LogMel
from .recipe import DataRecipe, Recipe, RecipeError, as_tables, as_toml

COLLAPSED = 0.01  # embedding_std below which all clips have practically one embedding
COLLAPSED_LOGS = 5  # so many log lines in a row end the run


class TrainingError(RuntimeError):
    """Training cannot go on: the sentence says why, and what to try."""


@dataclass(frozen=True)
class Statistics:
    """Mean and (population) std of the log-mels of a dataset, over all elements."""

    mean: float
    std: float


@dataclass(frozen=True)
class Options:
    """What may differ between a run and its continuation without changing the result."""

    out: Path
    resume: bool = False
    precision: str = "auto"  # auto, bfloat16 or float32
    compiled: bool = False  # torch.compile: a fifth faster on a CPU, half a minute to start
    log_every: int = 10  # steps
    checkpoint_every_s: float = 300.0
    stop_after_steps: int | None = None  # for a run in parts


@dataclass
class Run:
    """Everything that changes from step to step."""

    model: BYOL
    average: nn.Module
    optimiser: torch.optim.Optimizer
    memory: MixupMemory
    statistics: Statistics
    step: int = 0
    segments_seen: int = 0
    collapsed_logs: int = field(default=0, compare=False)


def pretrain(clips: Clips, recipe: Recipe, options: Options, world: World) -> None:
    """Train until the recipe's last epoch; raises TrainingError, DataError or CheckpointError."""
    frontend = frontend_of(recipe)
    plan = plan_of(clips, recipe, frontend, world)
    logmel = LogMel(frontend).to(world.device)
    run = start_run(clips, recipe, logmel, plan, options, world)
    if options.compiled:
        run.model.online.compile()
        run.model.target.compile()
    trained = wrap(run.model, world)
    memory_view = view_of(
        run.memory, **{k: v for k, v in asdict(recipe.augmentation).items() if k != "mixup_memory"}
    )
    autocast = autocast_of(options.precision, world)
    last_step = min(plan.steps, run.step + (options.stop_after_steps or plan.steps))

    with RunLog(options, world, run.step) as log:
        progress = tqdm(total=plan.steps, initial=run.step, unit="step", disable=not world.is_first)
        saved_at = time.monotonic()
        for order, waveforms in plan.batches(clips, run.step, last_step):
            is_logged = run.step % options.log_every == 0 or run.step + 1 == last_step
            clock = Clock(world.device, active=is_logged)
            generator = seeded(recipe.optimisation.seed, run.step, world)
            x = normalised(logmel, waveforms.to(world.device), run.statistics)
            views, monitor = two_views(x, memory_view, generator)
            run.memory.push(gather(x[0], world))
            clock.lap("data")

            set_learning_rate(run.optimiser, recipe, run.step, plan.steps)
            with autocast:
                step = trained(views[0], views[1])
            run.optimiser.zero_grad(set_to_none=True)
            step.loss.backward()
            run.model.update_target(recipe.byol.target_decay)
            run.optimiser.step()
            update_average(run, recipe.optimisation.average_decay)
            run.step += 1
            run.segments_seen += len(order) * world.size
            clock.lap("network")

            progress.update()
            if is_logged:
                line = log_line(run, step.loss, step.embedding, monitor, plan, clock, len(order) * world.size)
                progress.set_postfix_str(f"loss {line['loss']:.3f}, {line['segments_per_s']:.0f} segments/s")
                check(run, line)
                log.write(line)
            if time.monotonic() - saved_at > options.checkpoint_every_s and run.step < last_step:
                save(run, recipe, options, world, final=False)
                saved_at = time.monotonic()
        progress.close()
        save(run, recipe, options, world, final=True)


def frontend_of(recipe: Recipe) -> Frontend:
    return Frontend(n_mels=recipe.encoder.n_mels) if recipe.encoder.n_mels != BYOLA.n_mels else BYOLA


@dataclass(frozen=True)
class Plan:
    """How the clips are dealt out: the same for every process, and for a run and its continuation."""

    recipe: Recipe
    world: World
    segment: int  # samples
    distance: int  # samples
    steps_per_epoch: int
    steps: int

    def batches(self, clips: Clips, first: int, last: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """(clip indices (B,), waveforms (1 or 2, B, samples)) of the steps first .. last - 1, read ahead."""
        order_of = lru_cache(maxsize=1)(partial(self.order, clips))  # an epoch's order is drawn once
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.batch, clips, order_of, first) if first < last else None
            for step in range(first, last):
                assert ahead is not None
                batch = ahead.result()
                ahead = reader.submit(self.batch, clips, order_of, step + 1) if step + 1 < last else None
                yield batch

    def batch(
        self, clips: Clips, order_of: Callable[[int], NDArray[np.int64]], step: int
    ) -> tuple[NDArray[np.int64], Tensor]:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = order_of(epoch)
        size = len(order) // self.steps_per_epoch  # what is left over has its turn in another epoch
        mine = order[position * size : (position + 1) * size][self.world.rank :: self.world.size]
        waveforms = draw_segments(
            clips,
            mine,
            segment=self.segment,
            distance=self.distance,
            short_clips=self.recipe.data.short_clips,
            seed=(self.recipe.optimisation.seed, SEGMENTS, step, self.world.rank),
        )
        return mine, torch.from_numpy(waveforms)

    def order(self, clips: Clips, epoch: int) -> NDArray[np.int64]:
        recipe = self.recipe
        return epoch_order(
            clips,
            segment=self.segment,
            draws_power=recipe.data.draws_power,
            seed=recipe.optimisation.seed,
            epoch=epoch,
        )


def plan_of(clips: Clips, recipe: Recipe, frontend: Frontend, world: World) -> Plan:
    """Batches of one size near the recipe's: no remainder of one segment meets the batch normalisation."""
    segment = int(recipe.data.segment_s * frontend.sample_rate)
    distance = int(recipe.data.view_distance_s * frontend.sample_rate)
    if segment < frontend.min_samples:
        raise RecipeError(
            f"data.segment_s = {recipe.data.segment_s:g} is too short: the log-mel needs "
            f"{frontend.min_samples / frontend.sample_rate:g} s."
        )
    draft = Plan(recipe, world, segment, distance, steps_per_epoch=1, steps=1)
    draws = len(draft.order(clips, epoch=0))
    if draws < 2 * world.size:
        raise DataError(
            f"{draws} segments an epoch are too few for {world.size} processes: two for each are needed."
        )
    steps_per_epoch = max(1, round(draws / recipe.optimisation.batch_size))
    steps_per_epoch = min(steps_per_epoch, draws // (2 * world.size))
    steps = max(1, round(recipe.optimisation.epochs * steps_per_epoch))
    return Plan(recipe, world, segment, distance, steps_per_epoch, steps)


def start_run(
    clips: Clips, recipe: Recipe, logmel: LogMel, plan: Plan, options: Options, world: World
) -> Run:
    """A new run, or the continuation of the one in the folder."""
    torch.manual_seed(recipe.optimisation.seed)
    try:
        encoder = encoders.build(recipe.encoder.name, n_mels=recipe.encoder.n_mels, d=recipe.encoder.d)
    except ValueError as error:
        raise RecipeError(f"[encoder] {error}") from error
    model = BYOL(encoder, recipe.byol.hidden_size, recipe.byol.projection_size)
    model = model.to(world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(
        model=model,
        average=copy.deepcopy(model.online.encoder).requires_grad_(False),
        optimiser=torch.optim.Adam(
            [*model.online.parameters(), *model.predictor.parameters()], lr=recipe.optimisation.learning_rate
        ),
        memory=MixupMemory(recipe.augmentation.mixup_memory),
        statistics=Statistics(mean=math.nan, std=math.nan),
    )
    if options.resume:
        restore(run, checkpoint.load(options.out, world.device), recipe, world)
    else:
        run.statistics = measure_statistics(clips, logmel, recipe.data, plan, world)
        if world.is_first:
            describe(clips, recipe, options)
    return run


def measure_statistics(
    clips: Clips, logmel: LogMel, recipe: DataRecipe, plan: Plan, world: World
) -> Statistics:
    """From `statistics_crops` random segments (each clip at most once), over all elements in float64."""
    seed = plan.recipe.optimisation.seed
    random = np.random.default_rng((seed, STATISTICS, 0))
    chosen = random.permutation(len(clips))[: recipe.statistics_crops]
    total, squares, count = 0.0, 0.0, 0
    for number, part in enumerate(np.array_split(chosen, math.ceil(len(chosen) / 256))):
        waveforms = draw_segments(
            clips,
            part,
            segment=plan.segment,
            distance=0,
            short_clips=recipe.short_clips,
            seed=(seed, STATISTICS, 1 + number),
        )
        x = logmel(torch.from_numpy(waveforms[0]).to(world.device)).double()
        total, squares, count = total + x.sum().item(), squares + (x * x).sum().item(), count + x.numel()
    mean = total / count
    return Statistics(mean=mean, std=math.sqrt(max(squares / count - mean * mean, EPS**2)))


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


def autocast_of(precision: str, world: World) -> AbstractContextManager[Any]:
    """bfloat16 on a GPU, and on a CPU that has instructions for it."""
    fast = world.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    if precision == "bfloat16" or (precision == "auto" and fast):
        return torch.autocast(world.device.type, dtype=torch.bfloat16)
    return nullcontext()


class Clock:
    """Seconds of a step's parts; waits for the device only where it is active."""

    def __init__(self, device: torch.device, *, active: bool) -> None:
        self.device, self.active = device, active
        self.laps: dict[str, float] = {}
        self.began = self.now() if active else 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def lap(self, name: str) -> None:
        if self.active:
            self.laps[name] = self.now() - self.began - sum(self.laps.values())


def embedding_std(embedding: Tensor) -> float:
    """How far apart the embeddings (B, D) of a batch are, in [0, 1]: 0 when all point the same way.

    The std over the batch of the L2-normalised embeddings, times sqrt(D).
    """
    unit = nn.functional.normalize(embedding.float(), dim=-1)
    return float(unit.var(dim=0, correction=0).sum().sqrt())


def log_line(
    run: Run,
    loss: Tensor,
    embedding: Tensor,
    monitor: dict[str, Tensor],
    plan: Plan,
    clock: Clock,
    batch: int,
) -> dict[str, float]:
    seconds = sum(clock.laps.values())
    return {
        "step": run.step,
        "epoch": run.step / plan.steps_per_epoch,
        "segments_seen": run.segments_seen,
        "loss": loss.item(),
        "embedding_std": embedding_std(embedding),
        "learning_rate": run.optimiser.param_groups[0]["lr"],
        **{name: value.item() for name, value in monitor.items()},
        "segments_per_s": batch / seconds if seconds else 0.0,
        "data_share": clock.laps.get("data", 0.0) / seconds if seconds else 0.0,
        "time_s": round(time.time(), 1),
    }


def check(run: Run, line: dict[str, float]) -> None:
    """A loss or an embedding from which training does not recover ends the run; the checkpoint stays."""
    if not math.isfinite(line["loss"]):
        raise TrainingError(
            f"The loss is {line['loss']} at step {run.step}: training stops, the last checkpoint is kept. "
            "Try a lower optimisation.learning_rate or --precision float32, and continue with --resume."
        )
    run.collapsed_logs = run.collapsed_logs + 1 if line["embedding_std"] < COLLAPSED else 0
    if run.collapsed_logs >= COLLAPSED_LOGS:
        raise TrainingError(
            f"The embeddings have collapsed at step {run.step}: their spread is {line['embedding_std']:.4f} "
            f"(under {COLLAPSED} for {COLLAPSED_LOGS} log lines), all clips look the same to the encoder. "
            "Try a lower optimisation.learning_rate, a byol.target_decay nearer to 1 or a larger batch_size."
        )


class RunLog:
    """`log.jsonl` and TensorBoard; a continued run drops the lines after its checkpoint and appends."""

    def __init__(self, options: Options, world: World, step: int) -> None:
        self.active = world.is_first
        self.path = options.out / "log.jsonl"
        self.curves: SummaryWriter | None = None
        if self.active:
            lines = self.path.read_text().splitlines() if options.resume and self.path.is_file() else []
            kept = [line for line in lines if step_of(line) <= step]
            write_whole(self.path, "".join(f"{line}\n" for line in kept).encode())
            self.curves = SummaryWriter(str(options.out / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self.curves:
            with suppress(OSError):  # a full disk at the very end: the checkpoint says so
                self.curves.close()

    def write(self, line: dict[str, float]) -> None:
        if not self.active:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            say(f"The log of step {line['step']} could not be written ({error}); training goes on.")
        self.draw(line)

    def draw(self, line: dict[str, float]) -> None:
        if self.curves is None:
            return
        try:
            for name, value in line.items():
                self.curves.add_scalar(name, value, int(line["step"]))
        except OSError as error:
            self.curves = None  # its writer does not recover
            say(f"TensorBoard's curves end at step {line['step']} ({error}); training goes on.")


def say(sentence: str) -> None:
    """Above the progress bar; where not even that can be written, training goes on."""
    with suppress(OSError):
        tqdm.write(sentence, file=sys.stderr)


def step_of(line: str) -> float:
    """The step of a line of log.jsonl; infinite for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def save(run: Run, recipe: Recipe, options: Options, world: World, *, final: bool) -> None:
    """Write the checkpoint; a full disk in the middle of a run is said and tried again later."""
    if not all(bool(torch.isfinite(value).all()) for value in run.model.online.parameters()):
        raise TrainingError(
            f"The weights are no longer finite at step {run.step}: training stops, the last checkpoint is "
            "kept. Try a lower optimisation.learning_rate and continue with --resume."
        )
    if not world.is_first:
        return
    try:
        checkpoint.save(options.out, state_of(run, recipe))
    except OSError as error:
        sentence = (
            f"The checkpoint of step {run.step} could not be written ({error}); the one before is kept."
        )
        if final:
            raise TrainingError(f"{sentence} Make room and continue with --resume.") from error
        say(f"{sentence} Training goes on; make room on the disk.")


def state_of(run: Run, recipe: Recipe) -> dict[str, Any]:
    return {
        "format": 1,
        "recipe": as_tables(recipe),
        "step": run.step,
        "segments_seen": run.segments_seen,
        "statistics": asdict(run.statistics),
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "memory": run.memory.sounds,
    }


def restore(run: Run, state: dict[str, Any], recipe: Recipe, world: World) -> None:
    """Raises CheckpointError when the recipe is not the one that the run was started with."""
    mine, theirs = json.loads(json.dumps(as_tables(recipe))), json.loads(json.dumps(state["recipe"]))
    for section, table in mine.items():
        for key, value in table.items():
            if theirs[section][key] != value:
                raise checkpoint.CheckpointError(
                    f"The run was started with {section}.{key} = {theirs[section][key]!r}, not {value!r}: "
                    "resume with the recipe in its folder, or start a new run."
                )
    run.model.load_state_dict(state["model"])
    run.average.load_state_dict(state["average"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.memory.sounds = state["memory"].to(world.device)
    run.statistics = Statistics(**state["statistics"])
    run.step, run.segments_seen = state["step"], state["segments_seen"]


def describe(clips: Clips, recipe: Recipe, options: Options) -> None:
    """The recipe as used and what it is trained on, beside the checkpoints."""
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "recipe.toml", as_toml(recipe).encode())
    summary = {
        "clips": len(clips),
        "hours": round(clips.hours, 3),
        "commit": commit(),
        "unreadable": [asdict(item) for item in clips.unreadable],
    }
    write_whole(options.out / "data.json", json.dumps(summary, indent=2).encode())


def commit() -> str:
    """The commit that the code was run from, empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()
