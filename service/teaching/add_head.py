"""A model folder and a head's file in; the folder with that head out, as `python -m service add-head`.

What was taught to a server comes so into a model folder, and with it into git; nothing of PyTorch is needed.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import ModelFolderError
from service.inference.card import NAME, check_files, load_card, sha256_of, write_card
from service.inference.heads import Head, load_head
from service.inference.tensors import read_tensors
from service.process.files import write_whole
from service.teaching.store import encoder_of

NAME_OF_COMMAND = "add-head"


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m service {NAME_OF_COMMAND}", description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("file", type=Path, help="<head>.safetensors, as GET .../heads/<head>/file gives it")
    arguments = parser.parse_args(argv)
    try:
        head = add_head(arguments.model, arguments.file)
    except (ModelFolderError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{arguments.model}: the head {head.name} with {len(head.labels)} labels\n")
    return 0


def add_head(folder: Path, file: Path) -> Head:
    """Into heads/, and its hash into the card; a head of that name is replaced. Raises ModelFolderError where
    it does not fit, and then nothing is changed, and OSError."""
    card = load_card(folder)
    check_files(folder, card)
    if file.suffix != ".safetensors" or not re.fullmatch(NAME, file.stem):
        raise ModelFolderError(f"{file.name} is no name of a head's file, such as doors.safetensors")
    head = load_head(file, embedding_size=card.embedding_size)
    _, metadata = read_tensors(file)
    if metadata.get("encoder", encoder_of(card)) != encoder_of(card):
        raise ModelFolderError(f"{file.name} was taught with another version of the model {card.name}")
    path = folder / "heads" / file.name
    path.parent.mkdir(exist_ok=True)
    write_whole(path, file.read_bytes())
    files = {**card.files, f"heads/{file.name}": sha256_of(path)}
    write_card(folder, card.model_copy(update={"files": files}))
    return head
