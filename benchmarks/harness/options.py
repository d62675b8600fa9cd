"""The options that several commands have, each written once: a parser in, the option added.

parser = command("load", __doc__)
options.model(parser)
options.bursts(parser, rounds=5)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.servers import ROOT


def command(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m benchmarks.NAME`, without options yet."""
    return argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)


def model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "byola", help="a model folder")


def result(parser: argparse.ArgumentParser, name: str) -> None:
    """--result: under which name the result is kept, so that one of another model does not replace it."""
    parser.add_argument("--result", default=name, metavar="NAME", help=f"results/NAME.json (default: {name})")


def bursts(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """--rounds, and the --seconds of each burst in them."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each burst")


def counts(parser: argparse.ArgumentParser, option: str, default: Sequence[int]) -> None:
    """Whole numbers with commas between, as `--clients 1,8,32`: a list."""
    parser.add_argument(option, type=whole_numbers, default=[*default])


def whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
