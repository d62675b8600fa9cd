"""`python -m model_export export | import | self-test | push | pull`: see each one's --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_export.clips import FIXTURES, read_clips
from model_export.errors import ExportError
from model_export.export import VERIFIED_CLIPS, About, add_self_test, export
from model_export.graphs.torch_export import Traced
from model_export.graphs.writer import writer_of
from model_export.sources.audioset_head import NUMBERS, labels_of, names_of_table, numbered_labels
from model_export.sources.own import OwnEncoder, load_own
from model_export.sources.published import IMPORTABLE, TERMS, load_import
from model_export.sources.trained import Trained, fused
from model_export.sources.training_run import load_run, restrictions, taught_by
from model_export.transfer import pull, push
from service.errors import ModelFolderError
from service.inference.card import Card

OWN = "onnx"
HF = "hf"
INTERRUPTED = "Interrupted: nothing was written."
INTENDED_USE = "Embeddings of any sound, for search, clustering and linear classifiers."
LIMITATIONS = "Hears mono up to {:.0f} kHz. Was not made to identify persons or to transcribe speech."


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model_export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_export(commands)
    add_import(commands)
    add_self_test_command(commands)
    add_push(commands)
    add_pull(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ExportError, ModelFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. Nothing was written.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(getattr(arguments, "interrupted", INTERRUPTED), file=sys.stderr)
        return 130
    return 0


def add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("export", help="a run of `python -m training` as a model folder")
    parser.add_argument("--run", type=Path, required=True, dest="run_folder", help="the run's folder")
    parser.add_argument(
        "--weights",
        choices=["average", "last"],
        help="the moving average of the weights or the last ones (default: the average where one is kept)",
    )
    parser.add_argument("--training-data", default="", help="a sentence on the data for the card")
    add_common(parser, licence="not stated")
    parser.set_defaults(run=run_export)


def add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("import", help="published weights that you have as a model folder")
    parser.add_argument(
        "--encoder",
        choices=[*IMPORTABLE, OWN, HF],
        required=True,
        help=f"whose weights they are; {OWN}: any network's graph, {HF}: a checkpoint of transformers, "
        "docs/bring_your_own.md",
    )
    parser.add_argument("--graph", type=Path, help=f"the .onnx file, with --encoder {OWN}")
    parser.add_argument("--describe", type=Path, metavar="TOML", help="what it takes and gives, likewise")
    parser.add_argument(
        "--weights",
        type=Path,
        help=f"the .pth or .safetensors file (logmel-stats needs none); with --encoder {HF} a folder, or "
        "OWNER/NAME[@REVISION] at the hub",
    )
    parser.add_argument(
        "--mean", type=float, help="of the log-mels of the data it will hear (BYOL-A and MSM-MAE)"
    )
    parser.add_argument("--std", type=float, help="of the same, over all elements")
    parser.add_argument(
        "--head",
        action="store_true",
        help="add the published 527 classes as a head (plain cnn14, ast and efficientat), or the labels of a "
        f"checkpoint ({HF})",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="their names: AudioSet's class_labels_indices.csv, or a name a line (default: a config.json "
        "beside the weights, else numbers)",
    )
    add_common(parser, licence=None)
    parser.set_defaults(run=run_import)


def add_self_test_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "self-test", help="add the self-test to the card of a model folder, or renew it"
    )
    parser.add_argument("--model", type=Path, required=True, help="the model folder, models/NAME")
    parser.set_defaults(run=run_self_test)


def add_push(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("push", help="a model folder to the Hugging Face hub or to any URL")
    parser.add_argument("--model", type=Path, required=True, help="the model folder, models/NAME")
    parser.add_argument(
        "--to", required=True, metavar="URL", help="hf://OWNER/NAME[@BRANCH], s3://BUCKET/NAME, file:///..."
    )
    parser.add_argument(
        "--private", action="store_true", help="a repository that is made is for its owners alone"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the model folder that is there (a push to the hub is a commit, and needs none)",
    )
    parser.set_defaults(
        run=run_push, interrupted="Interrupted: push again, for the folder may not be whole there."
    )


def add_pull(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("pull", help="a model folder from the Hugging Face hub or from any URL")
    parser.add_argument(
        "--from",
        dest="url",
        required=True,
        metavar="URL",
        help="hf://OWNER/NAME[@REVISION], s3://BUCKET/NAME, file:///...",
    )
    parser.add_argument("--out", type=Path, required=True, help="the model folder, models/NAME")
    parser.add_argument("--force", action="store_true", help="replace the folder in --out, heads included")
    parser.set_defaults(run=run_pull)


def add_common(parser: argparse.ArgumentParser, *, licence: str | None) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the model folder, models/NAME")
    parser.add_argument(
        "--fuse",
        type=layers,
        default=(),
        metavar="N,N",
        help="layers of the encoder side by side, by the numbers in docs/encoders.md: 10,15",
    )
    parser.add_argument("--force", action="store_true", help="replace the folder in --out, heads included")
    parser.add_argument("--int8", action="store_true", help="add the 8-bit graph for CPUs")
    parser.add_argument("--float16", action="store_true", help="add the 16-bit graph for GPUs")
    parser.add_argument(
        "--batching",
        choices=("padded", "equal"),
        help="batches of clips of any length, as a GPU likes them, or of one length: without masks a small "
        "network is twice as fast on a CPU (default: equal for efficientat, else padded)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR|CSV",
        help="real clips like those to be served: int8 is calibrated and everything is verified with them "
        "(default: verify with tests/fixtures)",
    )
    parser.add_argument("--name", help="in the card (default: that of the folder)")
    parser.add_argument("--version", default="1.0.0", help="in the card")
    parser.add_argument("--description", help="in the card, one sentence")
    parser.add_argument(
        "--licence",
        default=licence,
        help=f"in the card, SPDX (default: {licence or 'that of the published weights'})",
    )
    parser.add_argument("--intended-use", default=INTENDED_USE, help="in the card")
    parser.add_argument("--limitations", help="in the card")


def run_export(arguments: argparse.Namespace) -> None:
    trained = load_run(arguments.run_folder, weights=arguments.weights)
    if arguments.training_data:
        trained.training["data"] = arguments.training_data
    trained = fused(trained, arguments.fuse)
    description = f"{called(trained)}, trained by viola"
    if names := taught_by(trained.training):
        trained.training["taught_by"] = names
        description += f", taught by {names}"
    said = arguments.limitations or limitations_of(trained)
    arguments.limitations = " ".join([said, *restrictions(trained.training)])
    write(trained, arguments, description=description)


def run_import(arguments: argparse.Namespace) -> None:
    if arguments.encoder == OWN:
        run_import_own(arguments)
        return
    if arguments.encoder == HF:
        run_import_hf(arguments)
        return
    if arguments.graph or arguments.describe:
        raise ExportError(f"--graph and --describe are of --encoder {OWN}.")
    terms = TERMS[arguments.encoder]
    print(terms.notice, end="\n\n")
    trained = load_import(
        arguments.encoder, arguments.weights, mean=arguments.mean, std=arguments.std, fuse=arguments.fuse
    )
    arguments.licence = arguments.licence or terms.licence
    with_weights = f" with the weights {terms.name}" if arguments.weights else ""
    description = f"{called(trained)}{with_weights}"
    write(trained, arguments, description=description, labels=labels_for_head(trained, arguments))


def run_import_own(arguments: argparse.Namespace) -> None:
    if arguments.graph is None or arguments.describe is None:
        raise ExportError(f"--encoder {OWN} needs --graph FILE.onnx and --describe FILE.toml.")
    given = {"weights": "--weights", "mean": "--mean", "std": "--std", "head": "--head", "fuse": "--fuse"}
    if others := [flag for name, flag in given.items() if getattr(arguments, name)]:
        raise ExportError(f"{', '.join(others)}: with --encoder {OWN} the description tells that.")
    trained, said = load_own(arguments.graph, arguments.describe, labels=arguments.labels)
    assert isinstance(trained.encoder, OwnEncoder)
    arguments.licence = arguments.licence or said.licence
    if arguments.intended_use == INTENDED_USE and said.intended_use:
        arguments.intended_use = said.intended_use
    sentences = [arguments.limitations or said.limitations or limitations_of(trained)]
    if trained.encoder.batching == "alone":
        sentences.append(f"Runs one clip at a time: {trained.encoder.why_alone}.")
        print(sentences[-1])
    arguments.limitations = " ".join(sentences)
    description = said.description or f"{arguments.graph.name}, brought along"
    write(trained, arguments, description=description, labels=trained.labels)


def run_import_hf(arguments: argparse.Namespace) -> None:
    given = {"graph": "--graph", "describe": "--describe", "mean": "--mean", "std": "--std"}
    if others := [flag for name, flag in given.items() if getattr(arguments, name)]:
        raise ExportError(f"{', '.join(others)}: with --encoder {HF} the checkpoint tells that.")
    if arguments.weights is None:
        raise ExportError(f"--encoder {HF} needs --weights: a folder, or OWNER/NAME[@REVISION] at the hub.")
    if arguments.labels and not arguments.head:
        raise ExportError("--labels names the classes of a head: add --head.")
    try:
        from model_export.sources.hf.load import load_hf  # transformers takes seconds to load
    except ImportError as error:
        raise ExportError(f"--encoder {HF} needs transformers: pip install '.[{HF}]'") from error

    names = names_of_table(arguments.labels) if arguments.labels else None
    trained, checkpoint = load_hf(
        str(arguments.weights), fuse=arguments.fuse, with_head=arguments.head, labels=names
    )
    arguments.licence = arguments.licence or checkpoint.licence()
    if arguments.licence is None:
        raise ExportError(
            f"--licence is needed: {checkpoint.name} does not say under which terms its weights are, with a "
            "`license` in its README.md."
        )
    description = f"{called(trained)} with the weights {checkpoint.name}"
    write(trained, arguments, description=description, labels=trained.labels)


def labels_for_head(trained: Trained, arguments: argparse.Namespace) -> Sequence[str] | None:
    """The names of the head's classes; None where no head is asked for."""
    if not arguments.head:
        if arguments.labels:
            raise ExportError("--labels names the classes of a head: add --head.")
        return None
    if trained.tags is None:
        raise ExportError(
            f"--head: {called(trained)} has no published tags; plain cnn14, ast and efficientat have: the "
            "published head reads the plain embedding, not fused layers."
        )
    labels = labels_of(arguments.labels, arguments.weights)
    if labels is None:
        print(NUMBERS, end="\n\n")
    return labels or numbered_labels()


def called(trained: Trained) -> str:
    """The encoder's name and the layers that are fused: cnn14, cnn14 #3 #6."""
    fuse = trained.parameters.get("fuse")
    return trained.name + "".join(f" #{number}" for number in (fuse if isinstance(fuse, list) else []))


def limitations_of(trained: Trained) -> str:
    return LIMITATIONS.format(trained.encoder.frontend.f_max_hz / 1000)


def run_self_test(arguments: argparse.Namespace) -> None:
    card = add_self_test(arguments.model)
    assert card.self_test is not None
    print(f"{arguments.model}: the self-test of {', '.join(card.self_test.expected)} is in the card")


def run_push(arguments: argparse.Namespace) -> None:
    where = push(arguments.model, arguments.to, force=arguments.force, private=arguments.private)
    print(f"{arguments.model} is at {where}")


def run_pull(arguments: argparse.Namespace) -> None:
    card = pull(arguments.url, arguments.out, force=arguments.force)
    print(summary(card, arguments.out))


def write(
    trained: Trained,
    arguments: argparse.Namespace,
    *,
    description: str,
    labels: Sequence[str] | None = None,
) -> None:
    if arguments.int8 and not arguments.calibration:
        raise ExportError(
            "--int8 needs --calibration: a folder or a CSV of real clips like those to be served, by which "
            "the ranges of the integers are set and their distance is measured."
        )
    if arguments.batching:
        if not isinstance(writer_of(trained), Traced):
            raise ExportError(f"--batching: that of {called(trained)} is given: leave it out.")
        trained.encoder.batching = arguments.batching  # type: ignore[attr-defined]
    about = About(
        name=arguments.name or arguments.out.resolve().name,
        version=arguments.version,
        description=arguments.description or description,
        licence=arguments.licence,
        intended_use=arguments.intended_use,
        limitations=arguments.limitations or limitations_of(trained),
    )
    clips = read_clips(
        arguments.calibration or FIXTURES,
        sample_rate=trained.encoder.frontend.sample_rate,
        at_most=writer_of(trained).calibration_clips if arguments.int8 else VERIFIED_CLIPS,
    )
    card = export(
        trained,
        arguments.out,
        about=about,
        clips=clips,
        int8=arguments.int8,
        float16=arguments.float16,
        labels=labels,
        force=arguments.force,
        report=print,
    )
    print(summary(card, arguments.out))


def layers(text: str) -> tuple[int, ...]:
    """`10,15` -> (10, 15)."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers like 10,15") from error


def summary(card: Card, out: Path) -> str:
    lines = [f"{out}: {card.encoder.name}, {card.embedding_size} numbers every {card.frame_period_ms:g} ms"]
    lines += [f"  {(out / name).stat().st_size / 1e6:6.1f} MB  {name}" for name in card.files]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
