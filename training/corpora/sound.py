"""A sound of a corpus, with what the corpus says of it, whatever form that has."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.bulk.offline import audio_files_below

TRAIN, VALID, TEST = "train", "valid", "test"
# As a corpus calls a part -> as a split is called here.
PARTS = {
    **dict.fromkeys(("train", "training", "dev", "balanced_train", "unbalanced_train"), TRAIN),
    **dict.fromkeys(("valid", "val", "validation"), VALID),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}


@dataclass(frozen=True)
class Sound:
    """path: of a file, or through an archive; part: train, valid, test, a fold, or empty; columns: what else
    the corpus says, by name."""

    path: Path
    task: str
    labels: tuple[str, ...] = ()
    part: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, str]:
        """As a CSV of one's own would have it, for --where."""
        return {**self.columns, "task": self.task, "label": ",".join(self.labels), "split": self.part}


def part_in(name: str) -> str:
    """The part that the name of a file or folder begins with (train-00000-of-00004); empty where none."""
    words = re.match(r"[a-z_]+", name.lower())
    return PARTS.get(words[0].strip("_"), "") if words else ""


def sounds_by_stem(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name without its suffix, path) of the audio files below a folder."""
    for path in audio_files_below(folder):
        yield path.stem, path
