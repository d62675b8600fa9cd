"""Shards of a WebDataset in, their sounds with labels out.

    train-000.tar   0001.flac  0001.json  0002.wav  0002.cls  ...

What has one name up to its first dot is one sample. Its label is the text of its `.cls`, or `label`,
`labels`, `class`, `category` or `tags` of its `.json`, whose other values are columns. The split is in the
shard's name, or in that of its folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from service.bulk.archives import ArchiveError, Member, read_member, tar_members
from service.bulk.offline import is_audio_file
from training.corpora.sound import Sound, part_in
from training.errors import DataError

LABELS = ("label", "labels", "class", "category", "tags")


def sounds_of_shards(shards: list[Path], task: str) -> Iterator[Sound]:
    for shard in shards:
        yield from _sounds_of_shard(shard, task)


def labels_in(values: dict[str, object]) -> tuple[str, ...]:
    """A text, a number or a list of them, under one of the names that labels have; else none."""
    found = next((values[name] for name in LABELS if values.get(name) is not None), [])
    every = found if isinstance(found, list) else [found]
    return tuple(str(label) for label in every if label not in ("", None))


def plain_columns(values: dict[str, object]) -> dict[str, str]:
    """Texts and numbers; not what holds others."""
    return {name: str(value) for name, value in values.items() if isinstance(value, str | int | float)}


def _sounds_of_shard(shard: Path, task: str) -> Iterator[Sound]:
    try:
        members = tar_members(shard)
    except ArchiveError as error:
        raise DataError(f"{error}.") from error
    samples: dict[str, dict[str, str]] = {}  # name -> suffix -> member
    for name in members:
        path = PurePosixPath(name)
        if not path.name.startswith("."):
            stem, _, suffix = path.name.partition(".")
            samples.setdefault(str(path.parent / stem), {})[suffix.lower()] = name
    part = part_in(shard.name) or part_in(shard.parent.name)
    for sample in samples.values():
        sound = next((name for name in sample.values() if is_audio_file(name)), None)
        if sound is None:
            continue
        values = _json(shard, members, sample["json"]) if "json" in sample else {}
        if "cls" in sample:
            values["label"] = read_member(shard, members[sample["cls"]]).decode(errors="replace").strip()
        yield Sound(shard / sound, task, labels_in(values), part, plain_columns(values))


def _json(shard: Path, members: dict[str, Member], name: str) -> dict[str, object]:
    try:
        values = json.loads(read_member(shard, members[name]))
    except ValueError as error:
        raise DataError(f"{name} in {shard} is not JSON: {error}.") from error
    return values if isinstance(values, dict) else {"label": values}
