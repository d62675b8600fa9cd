"""What --data names in, the sounds of a form that the field uses out; None for one's own folder or CSV."""

from collections.abc import Iterator
from pathlib import Path

from service.bulk.archives import TABLES, TAR, is_archive
from service.bulk.offline import audio_files_below
from training.corpora.audioset import sounds_of_audioset, tables_of_audioset
from training.corpora.freesound import sounds_of_fsd50k, tables_of_fsd50k
from training.corpora.hear import sounds_of_hear, task_folders
from training.corpora.hugging_face import is_saved, sounds_of_saved, sounds_of_tables
from training.corpora.sound import Sound
from training.corpora.webdataset import sounds_of_shards
from training.errors import DataError


def corpus(data: Path, where: dict[str, str]) -> Iterator[Sound] | None:
    """The sounds whose columns have these values. Raises DataError, also while they are read."""
    sounds = _corpus(data)
    return None if sounds is None else _kept(sounds, data, where)


def _corpus(data: Path) -> Iterator[Sound] | None:
    if is_archive(data):
        shards = [data]
    elif not data.exists():
        return None
    elif segments := tables_of_audioset(data):
        return sounds_of_audioset(segments)
    elif tables := tables_of_fsd50k(data):
        return sounds_of_fsd50k(tables)
    elif not data.is_dir():
        return None
    elif folders := task_folders(data):
        return sounds_of_hear(folders)
    elif is_saved(data):
        return sounds_of_saved(data)
    else:
        shards = _shards_below(data)
    if not shards:
        return None
    tars = [path for path in shards if path.suffix == TAR]
    if tars:
        return sounds_of_shards(tars, data.stem)
    return sounds_of_tables(shards, data.stem)


def _shards_below(folder: Path) -> list[Path]:
    """Its archives, in order; none where it holds sounds, beside which a table is a result of something."""
    if next(audio_files_below(folder), None) is not None:
        return []
    found = (path for suffix in (TAR, *TABLES) for path in folder.rglob(f"*{suffix}") if is_archive(path))
    return sorted(path for path in found if not _is_hidden(path.relative_to(folder)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kept(sounds: Iterator[Sound], data: Path, where: dict[str, str]) -> Iterator[Sound]:
    """Not every sound has every column, but one that none has is a mistake."""
    columns: dict[str, None] = {}
    for sound in sounds:
        row = sound.row
        columns |= dict.fromkeys(row)
        if all(row.get(name) == value for name, value in where.items()):
            yield sound
    if missing := [name for name in where if columns and name not in columns]:
        raise DataError(f"{data} has no column '{missing[0]}', only {', '.join(columns)}.")
