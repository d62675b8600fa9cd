"""A model folder in, the same at another place out, and back; nothing that does not fit its card.

models/NAME ─► check_files ─► README.md from card.json ─► place     push
place ─► card.json ─► its files ─► check_files ─► models/NAME       pull: the folder appears when all is there
"""

import json
import tempfile
from pathlib import Path

from model_export.errors import ExportError
from model_export.folder import new_folder
from model_export.hub_card import hub_card
from model_export.places import CARD, Place, place_of
from service.inference.card import Card, check_files, check_names, load_card

README = "README.md"


def push(folder: Path, url: str, *, force: bool, private: bool) -> str:
    """Where it lies now. Raises ExportError and ModelFolderError."""
    card = load_card(folder)
    check_files(folder, card)
    place = place_of(url, private=private)
    files = {name: folder / name for name in (CARD, *card.files)}
    gone = sorted(_files_there(place) - {README, *files})
    with tempfile.TemporaryDirectory() as made:
        own = folder / README
        if not own.is_file():
            own = Path(made) / README
            own.write_text(hub_card(card, url), encoding="utf-8")
        message = f"{card.name} {card.version}"
        return place.put({README: own, **files}, gone=gone, force=force, message=message)


def pull(url: str, out: Path, *, force: bool) -> Card:
    """The card of the folder, which is at `out` then. Raises ExportError and ModelFolderError."""
    place = place_of(url)
    with new_folder(out, force=force) as new:
        content = place.read_card()
        if content is None:
            raise ExportError(f"{url} is no model folder: it has no {CARD}.")
        (new / CARD).write_bytes(content)
        card = load_card(new)
        check_names(new, card)  # before a file is written by a name that came from elsewhere
        for name in card.files:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            place.read(name, new / name)
        check_files(new, card)
    return card


def _files_there(place: Place) -> set[str]:
    """What the folder that is replaced says that it holds."""
    try:
        card = json.loads(place.read_card() or b"{}")
        return {name for name in card.get("files", {}) if ".." not in Path(name).parts}
    except (ValueError, AttributeError, TypeError):  # it is no card of ours
        return set()
