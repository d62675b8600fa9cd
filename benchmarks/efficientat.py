"""What EfficientAT costs by width and with its blocks fused, beside the default network.

A part of the rows of benchmarks.encoders by themselves: the transformers take most of its time.

Out: results/efficientat.json, and a table in docs/encoders.md.
"""

from benchmarks import encoders
from benchmarks.harness.results import Result

NAMES = ("byola-2022", "efficientat")


def main() -> None:
    entries = [each for each in encoders.ENTRIES if each.name in NAMES]
    encoders.run("efficientat", entries, about=__doc__)


def table(result: Result) -> str:
    """For docs/encoders.md, which has one table of encoders."""
    return encoders.table(result, first="network")


if __name__ == "__main__":
    main()
