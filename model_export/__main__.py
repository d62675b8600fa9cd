"""`python -m model_export export | import | self-test`: see each one's --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import ModelFolderError
from service.model import Card

from .clips import FIXTURES, read_clips
from .errors import ExportError
from .export import VERIFIED_CLIPS, About, add_self_test, export
from .imports import IMPORTABLE, TERMS, load_import
from .run import load_run
from .tags import NUMBERS, labels_of, numbered_labels
from .weights import Trained, fused
from .writer import writer_of

INTENDED_USE = "Embeddings of any sound, for search, clustering and linear classifiers."
LIMITATIONS = "Hears mono up to 8 kHz. Was not made to identify persons or to transcribe speech."


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model_export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_export(commands)
    add_import(commands)
    add_self_test_command(commands)
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
        print("Interrupted: nothing was written.", file=sys.stderr)
        return 130
    return 0


def add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("export", help="a run of `python -m training pretrain` as a model folder")
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
    parser.add_argument("--encoder", choices=IMPORTABLE, required=True)
    parser.add_argument(
        "--weights", type=Path, help="the .pth or .safetensors file (logmel-stats needs none)"
    )
    parser.add_argument(
        "--mean", type=float, help="of the log-mels of the data it will hear (BYOL-A and MSM-MAE)"
    )
    parser.add_argument("--std", type=float, help="of the same, over all elements")
    parser.add_argument(
        "--head", action="store_true", help="add the published 527 classes as a head (plain cnn14 and ast)"
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
    parser.add_argument("--limitations", default=LIMITATIONS, help="in the card")


def run_export(arguments: argparse.Namespace) -> None:
    trained = load_run(arguments.run_folder, weights=arguments.weights)
    if arguments.training_data:
        trained.training["data"] = arguments.training_data
    trained = fused(trained, arguments.fuse)
    write(trained, arguments, description=f"{called(trained)}, trained by viola")


def run_import(arguments: argparse.Namespace) -> None:
    terms = TERMS[arguments.encoder]
    print(terms.notice, end="\n\n")
    trained = load_import(
        arguments.encoder, arguments.weights, mean=arguments.mean, std=arguments.std, fuse=arguments.fuse
    )
    arguments.licence = arguments.licence or terms.licence
    with_weights = f" with the weights {terms.name}" if arguments.weights else ""
    description = f"{called(trained)}{with_weights}"
    write(trained, arguments, description=description, labels=labels_for_head(trained, arguments))


def labels_for_head(trained: Trained, arguments: argparse.Namespace) -> Sequence[str] | None:
    """The names of the head's classes; None where no head is asked for."""
    if not arguments.head:
        if arguments.labels:
            raise ExportError("--labels names the classes of a head: add --head.")
        return None
    if trained.tags is None:
        raise ExportError(f"--head: {called(trained)} has no published tags; plain cnn14 and ast have.")
    labels = labels_of(arguments.labels, arguments.weights)
    if labels is None:
        print(NUMBERS, end="\n\n")
    return labels or numbered_labels()


def called(trained: Trained) -> str:
    """The encoder's name and the layers that are fused: cnn14, cnn14 #3 #6."""
    fuse = trained.parameters.get("fuse")
    return trained.name + "".join(f" #{number}" for number in (fuse if isinstance(fuse, list) else []))


def run_self_test(arguments: argparse.Namespace) -> None:
    card = add_self_test(arguments.model)
    assert card.self_test is not None
    print(f"{arguments.model}: the self-test of {', '.join(card.self_test.expected)} is in the card")


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
    about = About(
        name=arguments.name or arguments.out.resolve().name,
        version=arguments.version,
        description=arguments.description or description,
        licence=arguments.licence,
        intended_use=arguments.intended_use,
        limitations=arguments.limitations,
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
