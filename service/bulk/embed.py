"""`python -m service embed`: audio files in, their embeddings out.

OUT.npz or OUT.parquet holds, in input order, `embeddings` (n, D) float32, `paths` (n,), `durations_s` (n,)
and `modified_s` (n,), when each file was last modified before it was embedded (seconds since 1970); and
`model`, which tells the model that made it (in parquet: `viola_model` in the schema's metadata).
"""

import argparse
import base64
from functools import partial
from typing import Any

import numpy as np

from service.bulk.cli import Command, count, id_of
from service.bulk.kinds import EMBEDDINGS
from service.bulk.offline import FileResult, Location, ModelWork, Work, embed_files
from service.bulk.server import Answer, Server
from service.inference.card import PROJECTION_FILE
from service.inference.model import Model


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--normalize",
        action="store_true",
        default=None,
        help="vectors of unit length around the centre in the model's folder: unrelated sounds have a cosine "
        "near 0",
    )
    parser.add_argument(
        "--dimensions",
        type=count,
        metavar="N",
        help="the same, of the first N numbers after turning them to their principal axes",
    )


def _here(arguments: argparse.Namespace, model: Model) -> tuple[str, ModelWork]:
    asked = _asked(arguments)
    model.project_of(**asked)  # what it cannot do is said before the first file
    return id_of(model) + _of(asked, model.card.files.get(PROJECTION_FILE)), partial(embed_files, **asked)


def _there(arguments: argparse.Namespace, server: Server) -> tuple[str, Work]:
    asked = _asked(arguments)
    query = {name: str(value).lower() for name, value in asked.items() if value is not None}
    made_by = server.model_id + _of(asked, server.projection)
    return made_by, server.work("embed", _read, encoding="base64", **query)


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"normalize": arguments.normalize, "dimensions": arguments.dimensions}


def _of(asked: dict[str, Any], projection: str | None) -> str:
    """What the vectors are made by beside the model. projection: the SHA-256 of its file."""
    given = [f"{name} {value}".lower() for name, value in asked.items() if value is not None]
    return f", {', '.join(given)} ({(projection or '')[:12]})" if given else ""


def _read(path: Location, answer: Answer) -> FileResult:
    vector = np.frombuffer(base64.b64decode(answer["embedding"]), dtype="<f4")
    return FileResult(path, vector.astype(np.float32), answer["duration_s"])


EMBED = Command("embed", "Embed audio files without HTTP.", EMBEDDINGS, _add_arguments, _here, _there)
