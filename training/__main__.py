"""`python -m training pretrain | distil | fit-head | fit-projection | background | evaluate | probe-layers |
few-shot | retrieval | agreement`: see the --help of each."""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.errors import ModelFolderError
from service.inference.card import ProjectionFacts, load_card, write_card
from service.inference.model import Model
from service.inference.threads import usable_cores
from service.process.allocator import keep_freed_memory
from training.arguments import counts, device, positive_float, positive_floats, positive_int, seconds, seeds
from training.clips import Clips, DataError, find_audio, load_clips, rows_of_csv
from training.corpora.known import corpus
from training.pretrain.checkpoint import FILE_NAME as CHECKPOINT
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.distributed import World, join_world, leave_world, wait_for_first
from training.pretrain.interruption import Interrupted
from training.pretrain.loop import pretrain
from training.pretrain.recipe import Recipe, RecipeError, load_recipe
from training.pretrain.run import Options, TrainingError
from training.pretrain.teachers import Teacher, TeacherError, load_teachers, restriction_of
from training.probe import (
    agreement,
    background,
    embeddings,
    evaluate,
    few_shot,
    fit_head,
    projection,
    retrieval,
    taught_head,
)
from training.probe import layers as probe_layers
from training.probe.labelled import LabelledTask, read_tasks, sounds_by_name, splits_of
from training.probe.linear import LEARNING_RATE, MULTICLASS, Embeddings
from training.probe.pictures import draw_confusion, draw_layers, draw_tsne, picture_file
from training.probe.watch import watch_of

DEFAULT_RECIPE, DISTIL_RECIPE = "byola-2022", "distil"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_pretrain(commands)
    add_distil(commands)
    add_fit_head(commands)
    add_fit_projection(commands)
    add_background(commands)
    add_evaluate(commands)
    add_probe_layers(commands)
    add_few_shot(commands)
    add_retrieval(commands)
    add_agreement(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (
        RecipeError,
        DataError,
        CheckpointError,
        TrainingError,
        TeacherError,
        ModelFolderError,
        OSError,
    ) as error:
        report(f"error: {error}")
        return 1
    except Interrupted as interruption:
        report(f"Interrupted: {interruption}; the same command with --resume goes on from there.")
        return 128 + interruption.signal
    except KeyboardInterrupt:
        report(arguments.interrupted)
        return 130
    return 0


def add_pretrain(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("pretrain", help="train an encoder on sounds without labels (BYOL-A, COLA)")
    add_run(parser, DEFAULT_RECIPE)
    parser.set_defaults(run=run_pretrain)


def add_distil(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "distil", help="train an encoder on what teachers say of sounds without labels"
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        action="append",
        required=True,
        metavar="MODEL",
        help="a model folder, whatever its encoder and rate; repeatable",
    )
    parser.add_argument(
        "--teacher-head",
        action="append",
        metavar="HEAD",
        help="a head whose tags are taught; repeatable (default: the teachers' heads of several labels)",
    )
    add_run(parser, DISTIL_RECIPE)
    parser.set_defaults(run=run_distil)


def add_run(parser: argparse.ArgumentParser, default_recipe: str) -> None:
    """What every run has, whatever its method."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a folder of sounds, a CSV with file_name or path, or a corpus: docs/training.md",
    )
    add_where(parser)
    parser.add_argument(
        "--recipe",
        help="a name in training/recipes/ or a TOML file "
        f"(default: {default_recipe}; with --resume the run's own)",
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
    parser.add_argument(
        "--probe",
        type=Path,
        metavar="CSV",
        help="labelled sounds, as for evaluate, that show in the log how good the encoder is by now",
    )
    parser.add_argument("--probe-task", action="append", default=[], help="only these tasks; repeatable")
    parser.add_argument("--probe-every", type=positive_int, default=200, metavar="STEPS")
    parser.add_argument("--checkpoint-every", type=seconds, default=300.0, metavar="SECONDS")
    parser.add_argument(
        "--stop-after", type=positive_int, metavar="STEPS", help="end early; continue with --resume"
    )
    parser.set_defaults(
        default_recipe=default_recipe,
        interrupted="Interrupted: with --resume a run goes on from its last checkpoint, if it has one.",
    )


def run_pretrain(arguments: argparse.Namespace) -> None:
    recipe = recipe_of_run(arguments)
    if recipe.distil:
        raise RecipeError("The recipe's method is [distil]: run it with `distil --teacher …`.")
    run_method(arguments, recipe)


def run_distil(arguments: argparse.Namespace) -> None:
    recipe = recipe_of_run(arguments)
    if not recipe.distil:
        raise RecipeError("The recipe has no [distil]: run it with `pretrain`, or take the recipe distil.")
    if recipe.distil.keep_weight and not (arguments.init or arguments.resume):
        raise RecipeError(
            f"distil.keep_weight = {recipe.distil.keep_weight:g} keeps what the start knew: say with --init "
            "what to start from, or set it to 0."
        )

    def teachers(rate: int, world: World) -> list[Teacher]:
        assert recipe.distil
        cores, _ = usable_cores()
        return load_teachers(
            arguments.teacher,
            sample_rate=rate,
            heads=arguments.teacher_head,
            needs_tags=recipe.distil.tag_weight > 0,
            needs_maps=recipe.distil.map_weight > 0,
            threads=max(1, cores // (2 * world.size)),
            device=world.device.type,
        )

    run_method(arguments, recipe, teachers)


def run_method(
    arguments: argparse.Namespace,
    recipe: Recipe,
    teachers_for: Callable[[int, World], list[Teacher]] = lambda rate, world: [],
) -> None:
    """teachers_for: the rate of the clips and the world -> those who teach."""
    world = join_world(arguments.device)
    keep_freed_memory()
    try:
        out: Path = arguments.out
        paths = find_audio(arguments.data, where_of(arguments))
        rate = recipe.encoder.frontend.sample_rate
        teachers = teachers_for(rate, world)
        if world.is_first:
            report_teachers(teachers)
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
            probe_every=arguments.probe_every,
            checkpoint_every_s=arguments.checkpoint_every,
            stop_after_steps=arguments.stop_after,
            init=arguments.init,
        )
        watch = None
        if arguments.probe and world.is_first:
            tasks = chosen_tasks(arguments.probe, {}, arguments.probe_task)
            watch = watch_of(tasks, frontend=recipe.encoder.frontend, cache=cache, device=world.device)
        pretrain(clips, recipe, options, world, teachers, watch)
    finally:
        leave_world(world)


def report_teachers(teachers: list[Teacher]) -> None:
    for teacher in teachers:
        heads = ", ".join(head.name for head in teacher.heads)
        report(
            f"{teacher.card.name} {teacher.card.version} teaches its {teacher.card.embedding_size} numbers"
            + (f" and the tags of {heads}." if heads else ".")
        )
        if restriction := teacher.described().get("restriction"):
            report(str(restriction))


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
    default = str(out / "recipe.toml") if arguments.resume else arguments.default_recipe
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
    return pairs_of(arguments.where)


def pairs_of(conditions: list[str]) -> dict[str, str]:
    pairs = [condition.partition("=") for condition in conditions]
    for column, equals, _ in pairs:
        if not (column and equals):
            raise DataError(f"--where takes COLUMN=VALUE, not '{column}'.")
    return {column: value for column, _, value in pairs}


def add_model_and_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a folder per class, a CSV with file_name and label, or a corpus: docs/training.md",
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
    parser = commands.add_parser(
        "fit-head", help="train a linear head for a model, on labelled sounds or on what a teacher says"
    )
    add_model_and_labels(parser)
    parser.add_argument("--head", required=True, help="its name in the model folder and in /classify")
    parser.add_argument("--test-fold", help="the fold that is not trained on")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="MODEL",
        help="a model folder whose tags the head learns: the sounds then need no labels",
    )
    parser.add_argument(
        "--teacher-head", metavar="HEAD", help="which of its heads (default: the one of several labels)"
    )
    parser.add_argument(
        "--augmented",
        type=positive_int,
        default=0,
        metavar="N",
        help="with --teacher: hear N crops of each clip too, mixed, filtered, in rooms, at other levels",
    )
    parser.add_argument(
        "--hidden",
        type=positive_int,
        default=0,
        metavar="N",
        help="with --teacher: a layer of N numbers between embedding and tags (default: none)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/cache"),
        help="where decoded clips are kept for --augmented (default: %(default)s)",
    )
    parser.add_argument(
        "--none-of-these",
        type=Path,
        metavar="FOLDER|CSV",
        help="sounds that are none of the labels: how well the head tells them, and from where on it does",
    )
    parser.add_argument("--training-data", default="", help="a sentence on the data for the head's metadata")
    parser.set_defaults(run=run_fit_head, interrupted="Interrupted: no head was written.")


def run_fit_head(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    fit_head.head_file(arguments.model, arguments.head)  # a name that does not fit is said before the work
    if arguments.teacher:
        fit_taught_head(arguments)
    elif arguments.teacher_head or arguments.augmented or arguments.hidden:
        given = [o for o in ("teacher_head", "augmented", "hidden") if getattr(arguments, o)]
        raise TeacherError(
            f"--{given[0].replace('_', '-')} is for a head that is taught: name --teacher too."
        )
    else:
        fit_labelled_head(arguments)


def fit_taught_head(arguments: argparse.Namespace) -> None:
    if arguments.test_fold:
        raise DataError("--test-fold is for labelled sounds: a tenth of the clips tests a taught head.")
    if arguments.none_of_these:
        raise DataError("--none-of-these is for labelled sounds: a taught head gives each tag its own score.")
    paths = find_audio(arguments.data, where_of(arguments))
    model = Model.load(arguments.model, precision=arguments.precision)
    teacher = Model.load(arguments.teacher, precision="float32")
    head = taught_head.teacher_head(teacher, arguments.teacher_head)
    heard = taught_head.hear(model, teacher, head, paths, workers=arguments.workers)
    for item in heard.unreadable[:20]:
        report(f"skipped: {item.path}: {item.reason}")
    if sentence := restriction_of(teacher.card):
        report(sentence)

    def augmented(learnt: NDArray[np.bool_]) -> tuple[Embeddings, Embeddings]:
        rate = max(model.card.sample_rate, teacher.card.sample_rate)
        kept = [path for path, used in zip(heard.paths, learnt, strict=True) if used]
        clips = load_clips(kept, sample_rate=rate, cache=arguments.cache)
        both = [
            Teacher(folder, sample_rate=rate, heads=[head.name], threads=arguments.workers, device="cpu")
            for folder in (arguments.model, arguments.teacher)
        ]
        return taught_head.hear_augmented(both[0], both[1], head, clips, arguments.augmented)

    fitted = taught_head.fit_taught_head(
        heard, head.labels, hidden=arguments.hidden, more_of=augmented if arguments.augmented else None
    )
    by = f"{teacher.card.name} {teacher.card.version} ({teacher.card.licence}), head {head.name}"
    said = arguments.training_data or f"{len(heard.scores)} clips without labels"
    write_and_report(arguments, fitted, f"{said}; taught by {by}")


def fit_labelled_head(arguments: argparse.Namespace) -> None:
    tasks = read_tasks(arguments.data, where_of(arguments))
    if len(tasks) > 1:
        names = ", ".join(task.name for task in tasks)
        raise DataError(f"The data hold several tasks ({names}): choose one with --where task=NAME.")
    fit_head.split_of(tasks[0], arguments.test_fold)  # as are data that cannot be split
    others = sounds_by_name(arguments.none_of_these) if arguments.none_of_these else {}
    model = Model.load(arguments.model, precision=arguments.precision)
    paths = [clip.path for clip in tasks[0].clips] + [path for of_name in others.values() for path in of_name]
    vectors = embeddings.embed_once(embeddings.served(model, workers=arguments.workers), paths)
    fitted = fit_head.fit_head(
        tasks[0],
        vectors_of(tasks[0], vectors),
        test_fold=arguments.test_fold,
        learning_rate=arguments.learning_rate,
        none_of_these={name: np.stack([vectors[path] for path in of]) for name, of in others.items()},
    )
    write_and_report(arguments, fitted, arguments.training_data)


def write_and_report(arguments: argparse.Namespace, fitted: fit_head.FittedHead, training_data: str) -> None:
    path = fit_head.write_head(arguments.model, arguments.head, fitted, training_data)
    results = fitted.results
    print(
        f"{path}: {len(fitted.labels)} labels, "
        f"{results['metric']} {results['value']:.3f} on {results['test']}"
    )
    if isinstance(apart := results.get("none_of_these"), dict):
        for name, auroc in apart["auroc"].items():
            print(f"told from {name}: AUROC {auroc:.3f}")
        print(
            f"none of these below known {apart['min_known']:.4f}, right for {apart['balanced_accuracy']:.3f}"
        )


def add_fit_projection(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "fit-projection",
        help="measure the centre and the axes of a model's embeddings, for cosines that mean something",
    )
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument(
        "--data", type=Path, required=True, help="real sounds of all kinds: a folder, or a CSV with file_name"
    )
    add_where(parser)
    parser.add_argument(
        "--balance",
        metavar="COLUMN",
        help="of the CSV: each of its values counts the same, however many sounds it has",
    )
    parser.add_argument(
        "--components",
        type=positive_int,
        default=projection.COMPONENTS,
        help="rotated numbers to keep: `dimensions` may be up to so many (default: %(default)s)",
    )
    parser.add_argument(
        "--shrinkage",
        type=positive_float,
        help="whiten, with so many mean variances added to each (default: do not whiten)",
    )
    parser.add_argument("--about", default="", help="a sentence on the sounds for the card")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument("--workers", type=positive_int, default=1, help="threads that decode ahead")
    parser.set_defaults(run=run_fit_projection, interrupted="Interrupted: no projection was written.")


def run_fit_projection(arguments: argparse.Namespace) -> None:
    model = Model.load(arguments.model, precision=arguments.precision)
    background = background_of(arguments.data, where_of(arguments), arguments.balance)
    results = embeddings.served_results(model, list(background), workers=arguments.workers)
    vectors = np.stack([result.embedding for result in results if result.embedding is not None])
    weights = projection.balanced([*background.values()]) if arguments.balance else None
    axes = projection.axes_of(vectors, weights, components=arguments.components)
    made = axes.projection(arguments.shrinkage)
    facts = ProjectionFacts(
        components=made.most,
        shrinkage=arguments.shrinkage,
        data=arguments.about or arguments.data.name,
        clips=len(vectors),
        hours=round(sum(result.duration_s or 0.0 for result in results) / 3600, 3),
        precision=model.precision,
        median_cosine={
            "before": round(projection.median_cosine(vectors, weights), 4),
            "after": round(projection.median_cosine(made.whole(vectors), weights), 4),
        },
    )
    path = projection.write_projection(arguments.model, made, facts)
    print(
        f"{path}: {facts.components} of {vectors.shape[1]} numbers, measured on {facts.clips} clips; the "
        f"median cosine of two of them was {facts.median_cosine['before']:.3f}, and is "
        f"{facts.median_cosine['after']:.3f}"
    )


def background_of(data: Path, where: dict[str, str], balance: str | None) -> dict[Path, str]:
    """Each sound once, with its value of the column `balance`; empty without one."""
    if balance is None:
        return dict.fromkeys(find_audio(data, where), "")
    if (sounds := corpus(data, where)) is not None:
        values = {sound.path: sound.row.get(balance) for sound in sounds}
        if not any(values.values()):
            raise DataError(f"{data} has no column '{balance}'.")
        return {path: value or "" for path, value in values.items()}
    if data.is_dir():
        raise DataError("--balance names a column: it takes a CSV.")
    return {path: row[balance] for path, row in rows_of_csv(data, where, needs=(balance,))}


def add_background(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "background", help="embed sounds of all kinds, from which heads that are taught to a server are told"
    )
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder, or a CSV with file_name and perhaps label"
    )
    add_where(parser)
    parser.add_argument(
        "--clips", type=positive_int, default=background.CLIPS, help="at most so many (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the draw (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=1, help="threads that decode ahead")
    parser.add_argument("--training-data", default="", help="a sentence on the sounds, for the file")
    parser.set_defaults(run=run_background, interrupted="Interrupted: no background was written.")


def run_background(arguments: argparse.Namespace) -> None:
    sounds = sounds_by_name(arguments.data, where_of(arguments))
    model = Model.load(arguments.model)
    paths = background.draw(sounds, arguments.clips, arguments.seed)
    vectors, unreadable = background.embedded(model, paths, workers=arguments.workers)
    for sentence in unreadable[:20]:
        report(f"skipped: {sentence}")
    source = arguments.training_data or f"{len(vectors)} clips of {len(sounds)} kinds"
    path = background.write_background(arguments.model, vectors, source)
    report(f"{path}: {len(vectors)} clips of {len(sounds)} kinds, {path.stat().st_size} bytes")


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
    tasks = chosen_tasks(arguments.data, where_of(arguments), arguments.task)
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
    tasks = chosen_tasks(arguments.data, where_of(arguments), arguments.task)
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


def add_few_shot(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("few-shot", help="how much a model's embeddings tell from a few examples")
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--data", type=Path, required=True, help="labelled sounds, as for evaluate")
    add_where(parser)
    parser.add_argument("--task", action="append", default=[], help="only these tasks of the CSV; repeatable")
    parser.add_argument("--test-folds", default="", metavar="5[,...]", help="draw from these folds alone")
    parser.add_argument(
        "--background",
        type=Path,
        help="sounds to standardise by (default: those of --data in none of the tasks)",
    )
    parser.add_argument("--ways", type=positive_int, default=5, help="classes in an episode")
    parser.add_argument(
        "--shots", type=counts, default=(1, 3, 5), metavar="1[,...]", help="examples per class"
    )
    parser.add_argument("--episodes", type=positive_int, default=60)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument("--workers", type=positive_int, default=1, help="threads that decode ahead")
    parser.set_defaults(run=run_few_shot, interrupted="Interrupted.")


def run_few_shot(arguments: argparse.Namespace) -> None:
    tasks = chosen_tasks(arguments.data, where_of(arguments), arguments.task)
    torch.set_num_threads(1)
    model = Model.load(arguments.model, precision=arguments.precision)
    asked = {clip.path for task in tasks for clip in task.clips}
    background = few_shot.background_of(find_audio(arguments.background or arguments.data), asked)
    vectors = embeddings.embed_once(
        embeddings.served(model, workers=arguments.workers), [*asked, *background]
    )
    folds = tuple(filter(None, arguments.test_folds.split(",")))
    for task in tasks:
        if task.kind != MULTICLASS:
            raise DataError(f"The task {task.name} has several labels per clip: episodes need one.")
        drawn = np.isin(task.parts, folds) if folds else np.ones(len(task.clips), dtype=bool)
        results = few_shot.few_shot(
            vectors_of(task, vectors)[drawn],
            task.targets[drawn].astype(np.int64),
            np.stack([vectors[path] for path in background]),
            ways=arguments.ways,
            shots=arguments.shots,
            episodes=arguments.episodes,
        )
        print(
            f"{model.card.name}, {task.name}, {arguments.ways} ways:\n{few_shot.table(results)}", flush=True
        )


def add_retrieval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "retrieval", help="how well the nearest embeddings are of the same label, and what a cosine means"
    )
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--data", type=Path, required=True, help="labelled sounds, as for evaluate")
    add_where(parser)
    parser.add_argument("--task", action="append", default=[], help="only these tasks of the CSV; repeatable")
    parser.add_argument(
        "--sizes", type=counts, default=(512, 256, 128), metavar="512[,...]", help="numbers of a vector"
    )
    parser.add_argument(
        "--background",
        type=Path,
        metavar="DIR|CSV",
        help="sounds to measure projections on, of each shrinkage (default: the one in the model's folder)",
    )
    parser.add_argument(
        "--background-where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="of its rows; repeatable",
    )
    parser.add_argument("--balance", metavar="COLUMN", help="of the background, as for fit-projection")
    parser.add_argument("--shrinkage", type=positive_floats, default=(0.1, 1.0, 10.0), metavar="0.1[,...]")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument("--workers", type=positive_int, default=1, help="threads that decode ahead")
    parser.set_defaults(run=run_retrieval, interrupted="Interrupted.")


def run_retrieval(arguments: argparse.Namespace) -> None:
    tasks = [
        task for task in read_tasks(arguments.data, where_of(arguments)) if asked_for(task, arguments.task)
    ]
    if not tasks or any(task.kind != MULTICLASS for task in tasks):
        raise DataError(f"{arguments.data} has no task of that name with one label per clip.")
    model = Model.load(arguments.model, precision=arguments.precision)
    embed = embeddings.served(model, workers=arguments.workers)
    vectors = embeddings.embed_once(embed, [clip.path for task in tasks for clip in task.clips])
    if arguments.background:
        where = pairs_of(arguments.background_where)
        background = background_of(arguments.background, where, arguments.balance)
        weights = projection.balanced([*background.values()]) if arguments.balance else None
        heard = embeddings.embed_once(embed, [*background])
        axes = projection.axes_of(
            np.stack([heard[path] for path in background]), weights, components=max(arguments.sizes)
        )
        projections = retrieval.projections_of(axes, arguments.shrinkage)
    else:
        own = model.projection
        if own is None:
            raise DataError(f"{arguments.model} has no projection: measure one with fit-projection.")
        projections = {"as served": own}
    results: dict[tuple[str, int], dict[str, retrieval.Retrieval]] = {}
    for task in tasks:
        of_task = retrieval.forms(vectors_of(task, vectors), projections, arguments.sizes)
        for form, rows in of_task.items():
            found = retrieval.retrieval(rows, task.targets.astype(np.int64))
            results.setdefault(form, {})[task.name] = found
    print(retrieval.table(results), flush=True)


def asked_for(task: LabelledTask, names: list[str]) -> bool:
    return not names or task.name in names


def add_agreement(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("agreement", help="how well a head says what a teacher's head says")
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--head", help="of the model (default: its first)")
    parser.add_argument("--teacher", type=Path, required=True, help="a model folder with a head")
    parser.add_argument("--teacher-head", help="of the teacher (default: its first)")
    parser.add_argument("--data", type=Path, required=True, help="sounds; labels are not looked at")
    add_where(parser)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "float16", "int8"])
    parser.add_argument("--workers", type=positive_int, default=1, help="threads that decode ahead")
    parser.set_defaults(run=run_agreement, interrupted="Interrupted.")


def run_agreement(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    paths = find_audio(arguments.data, where_of(arguments))
    own = scores_of(arguments.model, arguments.head, paths, arguments)
    teacher = scores_of(arguments.teacher, arguments.teacher_head, paths, arguments)
    mine, theirs = agreement.shared_labels(own[0], teacher[0])
    found = agreement.agreement(own[1][:, mine], teacher[1][:, theirs])
    print(
        f"{found.clips} clips: the first tag is among the teacher's first {agreement.FIRST} for "
        f"{found.first:.3f}; mAP against the teacher {found.map:.3f} over {found.labels} labels"
    )


def scores_of(
    folder: Path, head: str | None, paths: list[Path], arguments: argparse.Namespace
) -> tuple[tuple[str, ...], agreement.Scores]:
    """The labels of a head, and its scores (n, C) of whole clips."""
    model = Model.load(folder, precision=arguments.precision)
    if not model.heads or (head and head not in model.heads):
        raise DataError(f"{folder} has no head {head or ''}; it has {', '.join(model.heads) or 'none'}.")
    chosen = model.heads[head or next(iter(model.heads))]
    vectors = embeddings.served(model, workers=arguments.workers)(paths)
    return chosen.labels, np.asarray(chosen.score(vectors), dtype=np.float32)


def chosen_tasks(data: Path, where: dict[str, str], names: list[str]) -> list[LabelledTask]:
    """Those of the data that are named, or all."""
    tasks = read_tasks(data, where)
    if names:
        tasks = [task for task in tasks if task.name in names]
        if len(tasks) < len(names):
            raise DataError(f"{data} lacks some of the tasks {', '.join(names)}.")
    for task in tasks:
        splits_of(task)  # data that cannot be split are said before the work
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
