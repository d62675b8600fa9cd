"""A HEAR task's folder in, its sounds with labels and splits or folds out.

    esc50-v2.0.0-full/
      task_metadata.json            embedding_type: scene, or event
      fold00.json  fold01.json ...  or train.json, valid.json, test.json: {"a.wav": ["dog"], ...}
      48000/fold00/a.wav ...        the same sounds at each rate; the highest is taken

Of a task of events (DCASE 2016, MAESTRO) the sounds can be trained on, but a clip has no label of its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.corpora.sound import PARTS, Sound
from training.errors import DataError

METADATA = "task_metadata.json"


def task_folders(data: Path) -> list[Path]:
    """The folder itself, or those in it, that are HEAR's."""
    if (data / METADATA).is_file():
        return [data]
    return sorted(path.parent for path in data.glob(f"*/{METADATA}"))


def sounds_of_hear(folders: list[Path]) -> Iterator[Sound]:
    for folder in folders:
        yield from _sounds_of_task(folder)


def _sounds_of_task(folder: Path) -> Iterator[Sound]:
    metadata = _read(folder / METADATA)
    name = str(metadata.get("task_name") or folder.name)
    rates = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    if not rates:
        raise DataError(f"{folder} has no folder of sounds such as 48000/ or 16000/.")
    sounds = max(rates, key=lambda path: int(path.name))
    has_labels = metadata.get("embedding_type", "scene") == "scene"
    for part in sorted(path for path in folder.glob("*.json") if (sounds / path.stem).is_dir()):
        for file, labels in _read(part).items():
            if has_labels and not _is_list_of_labels(labels):
                raise DataError(f"{part} gives {file} no list of labels.")
            of_clip = tuple(labels) if has_labels else ()
            yield Sound(sounds / part.stem / file, name, of_clip, PARTS.get(part.stem, part.stem))


def _is_list_of_labels(labels: Any) -> bool:
    return isinstance(labels, list) and all(isinstance(label, str) for label in labels)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no object.")
    return content
