"""`python -m training pretrain | fit-head | evaluate | probe-layers`: see each one's --help."""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch

from encoders.frontend import frontend_of
from service.errors import ModelFolderError
from service.model import Model, load_card, write_card

from . import embeddings, evaluate, fit_head, probe_layers
from .allocator import keep_freed_memory
from .arguments import device, positive_float, positive_int, seconds, seeds
from .checkpoint import FILE_NAME as CHECKPOINT
from .checkpoint import CheckpointError
from .clips import Clips, DataError, find_audio, load_clips
from .distributed import World, join_world, leave_world, wait_for_first
from .labelled import LabelledTask, read_tasks
from .linear import LEARNING_RATE, MULTICLASS, Embeddings
from .pictures import draw_confusion, draw_layers, draw_tsne, picture_file
from .pretrain import pretrain
from .recipe import Recipe, RecipeError, load_recipe
from .run import Options, TrainingError

DEFAULT_RECIPE = "byola-2022"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_pretrain(commands)
    add_fit_head(commands)
    add_evaluate(commands)
    add_probe_layers(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (RecipeError, DataError, CheckpointError, TrainingError, ModelFolderError, OSError) as error:
        report(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        report(arguments.interrupted)
        return 130
    return 0


def add_pretrain(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("pretrain", help="train an encoder on sounds without labels (BYOL-A, COLA)")
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder of sounds, or a CSV with file_name or path"
    )
    add_where(parser)
    parser.add_argument(
        "--recipe",
        help="a name in training/recipes/ or a TOML file (default: byola-2022; with --resume the run's own)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe"
    )
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--init",
        type=Path,
        metavar="RUN|MODEL",
        help="begin with the weights of a run's or a model's folder: to go on with other sounds, or longer",
    )
    parser.add_argument(
        "--cache", type=Path, help="where decoded samples are kept (default: cache/ beside the run)"
    )
    parser.add_argument("--device", type=device, default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--precision", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: measure first, on a CPU it was slower"
    )
    parser.add_argument("--log-every", type=positive_int, default=10, metavar="STEPS")
    parser.add_argument("--checkpoint-every", type=seconds, default=300.0, metavar="SECONDS")
    parser.add_argument(
        "--stop-after", type=positive_int, metavar="STEPS", help="end early; continue with --resume"
    )
    parser.set_defaults(
        run=run_pretrain,
        interrupted="Interrupted: the last checkpoint, if any, is kept; continue with --resume.",
    )


def run_pretrain(arguments: argparse.Namespace) -> None:
    world = join_world(arguments.device)
    keep_freed_memory()
    try:
        out: Path = arguments.out
        recipe = recipe_of_run(arguments)
        paths = find_audio(arguments.data, where_of(arguments))
        rate = frontend_of(recipe.encoder.n_mels).sample_rate
        cache = arguments.cache or out.parent / "cache"
        if not world.is_first:  # the first decodes, the others find what it decoded
            wait_for_first(world)
        clips = load_clips(paths, sample_rate=rate, cache=cache)
        if world.is_first:
            wait_for_first(world)
            report_clips(clips, len(paths), world)
        options = Options(
            out=out,
            resume=arguments.resume,
            precision=arguments.precision,
            compiled=arguments.compile,
            log_every=arguments.log_every,
            checkpoint_every_s=arguments.checkpoint_every,
            stop_after_steps=arguments.stop_after,
            init=arguments.init,
        )
        pretrain(clips, recipe, options, world)
    finally:
        leave_world(world)


def report_clips(clips: Clips, files: int, world: World) -> None:
    if clips.unreadable:
        report(f"{len(clips.unreadable)} of {files} files cannot be read and are skipped:")
    for item in clips.unreadable[:20]:
        report(f"  {item.path}: {item.reason}")
    report(f"{len(clips)} clips, {clips.hours:.2f} hours, on {world.device} ({world.size} processes)")


def recipe_of_run(arguments: argparse.Namespace) -> Recipe:
    """The recipe asked for; a continued run's own unless another is named, which will then be refused."""
    out: Path = arguments.out
    has_checkpoint = (out / CHECKPOINT).is_file()
    if has_checkpoint and not arguments.resume:
        raise CheckpointError(
            f"{out} holds a run already: continue it with --resume, or choose another --out."
        )
    if arguments.resume and not has_checkpoint:
        raise CheckpointError(f"{out} holds no {CHECKPOINT} to continue from: start without --resume.")
    if arguments.resume and arguments.init:
        raise CheckpointError("--resume goes on with the run's own weights: leave out --init.")
    default = str(out / "recipe.toml") if arguments.resume else DEFAULT_RECIPE
    return load_recipe(arguments.recipe or default, arguments.set)


def add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only these rows of the CSV; repeatable",
    )


def where_of(arguments: argparse.Namespace) -> dict[str, str]:
    pairs = [condition.partition("=") for condition in arguments.where]
    for column, equals, _ in pairs:
        if not (column and equals):
            raise DataError(f"--where takes COLUMN=VALUE, not '{column}'.")
    return {column: value for column, _, value in pairs}


def add_model_and_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder per class, or a CSV with file_name and label"
    )
    add_where(parser)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument(
        "--learning-rate",
        type=positive_float,
        default=LEARNING_RATE,
        help="of the head (default: %(default)s)",
    )
    parser.add_argument("--workers", type=positive_int, default=1, help="threads that decode ahead")


def add_fit_head(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("fit-head", help="train a linear head for a model on labelled sounds")
    add_model_and_labels(parser)
    parser.add_argument("--head", required=True, help="its name in the model folder and in /classify")
    parser.add_argument("--test-fold", help="the fold that is not trained on")
    parser.add_argument("--training-data", default="", help="a sentence on the data for the head's metadata")
    parser.set_defaults(run=run_fit_head, interrupted="Interrupted: no head was written.")


def run_fit_head(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    fit_head.head_file(arguments.model, arguments.head)  # a name that does not fit is said before the work
    tasks = read_tasks(arguments.data, where_of(arguments))
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks)
        raise DataError(f"The data hold several tasks ({names}): choose one with --where task=NAME.")
    model = Model.load(arguments.model, precision=arguments.precision)
    vectors = embeddings.embed_once(
        embeddings.served(model, workers=arguments.workers), [clip.path for clip in tasks[0].clips]
    )
    fitted = fit_head.fit_head(
        tasks[0],
        vectors_of(tasks[0], vectors),
        test_fold=arguments.test_fold,
        learning_rate=arguments.learning_rate,
    )
    path = fit_head.write_head(arguments.model, arguments.head, fitted, arguments.training_data)
    results = fitted.results
    print(
        f"{path}: {len(fitted.labels)} labels, "
        f"{results['metric']} {results['value']:.3f} on {results['test']}"
    )


def add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("evaluate", help="linear evaluation of a model on labelled sounds")
    add_model_and_labels(parser)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; the pictures lie beside it")
    parser.add_argument("--task", action="append", default=[], help="only these tasks of the CSV; repeatable")
    parser.add_argument(
        "--test-folds", default="", metavar="5[,...]", help="of cross-validation: test on these alone"
    )
    parser.add_argument("--seeds", type=seeds, default=evaluate.SEEDS, metavar="42[,...]")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="evaluate the untrained encoder and log-mel statistics as well",
    )
    parser.add_argument("--no-pictures", action="store_true", help="no confusion matrix and t-SNE")
    parser.add_argument("--write-card", action="store_true", help="keep the results in the model's card")
    parser.set_defaults(run=run_evaluate, interrupted="Interrupted.")


def run_evaluate(arguments: argparse.Namespace) -> None:
    tasks = chosen_tasks(arguments)
    torch.set_num_threads(1)  # its matrices are small: a second thread made it several times slower
    model = Model.load(arguments.model, precision=arguments.precision)
    embeds = {model.card.name: embeddings.served(model, workers=arguments.workers)}
    if arguments.baselines:
        embeds["untrained"] = embeddings.untrained(model)
        embeds["log-mel statistics"] = embeddings.described(
            model, embeddings.logmel_statistics, name="statistics", workers=arguments.workers
        )
    results: dict[str, list[evaluate.Result]] = {}
    pictures: list[Callable[[], None]] = []
    for name, embed in embeds.items():
        vectors = embeddings.embed_once(embed, [clip.path for task in tasks for clip in task.clips])
        results[name] = []
        for task in tasks:
            own = vectors_of(task, vectors)
            result, predictions = evaluate.evaluate_task(
                task,
                own,
                seeds=arguments.seeds,
                test_folds=tuple(filter(None, arguments.test_folds.split(","))),
                learning_rate=arguments.learning_rate,
            )
            report(f"{name}, {task.name}: {task.metric} {result.value:.4f}")
            results[name].append(result)
            if name == model.card.name and not arguments.no_pictures and task.kind == MULTICLASS:
                pictures.append(partial(draw, arguments.out, task, own, predictions, result))
    about = {
        "model": model.card.name,
        "version": model.card.version,
        "precision": model.precision,
        "date": datetime.now(UTC).date().isoformat(),
    }
    evaluate.write_results(arguments.out, results, about)
    if arguments.write_card:
        card = load_card(arguments.model)
        rows = evaluate.merged_rows(card.evaluation, evaluate.card_rows(results, about))
        write_card(arguments.model, card.model_copy(update={"evaluation": rows}))
    print(evaluate.table(results), flush=True)
    for picture in pictures:
        picture()


def add_probe_layers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "probe-layers", help="linear evaluation of every layer of an encoder, and of the best pairs"
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="RUN|MODEL|CHECKPOINT",
        help="a run's folder, a model's (BYOL-A), or a published checkpoint with --encoder",
    )
    parser.add_argument("--encoder", help="of a published checkpoint: vggish, cnn14, ast …")
    parser.add_argument("--mean", type=float, help="of its log-mels, where the checkpoint does not know")
    parser.add_argument("--std", type=positive_float)
    parser.add_argument("--data", type=Path, required=True, help="labelled sounds, as for evaluate")
    add_where(parser)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; the heat map lies beside it")
    parser.add_argument("--task", action="append", default=[], help="only these tasks of the CSV; repeatable")
    parser.add_argument("--test-folds", default="", metavar="5[,...]", help="of cross-validation")
    parser.add_argument("--seeds", type=seeds, default=evaluate.SEEDS, metavar="42[,...]")
    parser.add_argument("--learning-rate", type=positive_float, default=LEARNING_RATE)
    parser.add_argument("--pairs", type=positive_int, default=3, help="how many to fuse (default: 3)")
    parser.add_argument(
        "--sound-events",
        default="esc50,esc10,us8k,fsd50k",
        metavar="TASK[,...]",
        help="the tasks of the left panel; the others are speech and music (default: %(default)s)",
    )
    parser.add_argument("--workers", type=positive_int, default=2, help="threads that embed")
    parser.set_defaults(run=run_probe_layers, interrupted="Interrupted: nothing was written.")


def run_probe_layers(arguments: argparse.Namespace) -> None:
    tasks = chosen_tasks(arguments)
    torch.set_num_threads(1)
    probed = probe_layers.load_probed(
        arguments.model, encoder=arguments.encoder, mean=arguments.mean, std=arguments.std
    )
    paths = [clip.path for task in tasks for clip in task.clips]
    vectors = probe_layers.embed_layers(probed, paths, workers=arguments.workers)

    def evaluated(layers: tuple[str, ...]) -> list[evaluate.Result]:
        return [
            evaluate.evaluate_task(
                task,
                np.stack(
                    [np.concatenate([vectors[clip.path][one] for one in layers]) for clip in task.clips]
                ),
                seeds=arguments.seeds,
                test_folds=tuple(filter(None, arguments.test_folds.split(","))),
                learning_rate=arguments.learning_rate,
            )[0]
            for task in tasks
        ]

    results = probe_layers.probe(probed, evaluated, pairs=arguments.pairs, report=report)
    about = {
        "probed": str(arguments.model),
        "encoder": probed.name,
        "date": datetime.now(UTC).date().isoformat(),
    }
    evaluate.write_results(arguments.out, results, about)
    print(probe_layers.layer_table(results), flush=True)
    left = arguments.sound_events.split(",")
    names = [task.name for task in tasks]
    panels = {
        "sound events": [name for name in names if name in left],
        "speech and music": [name for name in names if name not in left],
    }
    order = [names.index(name) for of_panel in panels.values() for name in of_panel]
    values = np.array([[row[i].value for i in order] for row in results.values()])
    title = f"{probed.name}: linear evaluation of each layer, %"
    draw_layers(arguments.out.with_suffix(".png"), values, list(results), panels, title)


def chosen_tasks(arguments: argparse.Namespace) -> list[LabelledTask]:
    """Those of the data that --task names, or all."""
    tasks = read_tasks(arguments.data, where_of(arguments))
    if arguments.task:
        tasks = [task for task in tasks if task.name in arguments.task]
        if len(tasks) < len(arguments.task):
            raise DataError(f"{arguments.data} lacks some of the tasks {', '.join(arguments.task)}.")
    return tasks


def vectors_of(task: LabelledTask, vectors: dict[Path, Embeddings]) -> Embeddings:
    return np.stack([vectors[clip.path] for clip in task.clips])


def draw(
    out: Path,
    task: LabelledTask,
    vectors: Embeddings,
    predictions: evaluate.Predictions,
    result: evaluate.Result,
) -> None:
    """A picture that cannot be drawn is said: the results are kept already."""
    title = f"{task.name}: accuracy {result.value:.3f} on {result.test_clips} clips"
    matrix = evaluate.confusion(predictions, len(task.labels))
    classes = task.targets.astype(np.int64)
    try:
        draw_confusion(picture_file(out, task.name, "confusion"), matrix, task.labels, title)
        draw_tsne(picture_file(out, task.name, "tsne"), vectors, classes, task.labels, f"{task.name}: t-SNE")
    except Exception as error:  # matplotlib and scikit-learn name no class for what can be wrong
        report(f"The pictures of {task.name} could not be drawn: {error}")


def report(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
