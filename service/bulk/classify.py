"""`python -m service classify`: audio files in, their tags out, with the scores that /classify gives.

service/bulk/tags.py describes OUT.csv, OUT.jsonl and OUT.parquet; the parts of OUT/ are such parquet files.
"""

import argparse
from functools import partial

from service.bulk.cli import Command, given_name, id_of
from service.bulk.kinds import TAGS
from service.bulk.offline import FileResult, Location, ModelWork, Tags, Work, classify_files
from service.bulk.server import Answer, Server
from service.bulk.tags import VERSION
from service.inference.heads import Tag, hash_of_head, named_head
from service.inference.model import Model

MOST_TAGS = 1000  # that /classify gives, too


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head", type=given_name, help="of the model; default: the first of its card")
    parser.add_argument(
        "--top-k", type=_top_k, default=5, help="at most so many tags a file, best first (%(default)s)"
    )
    parser.add_argument(
        "--threshold", type=_threshold, default=0.0, help="only tags with at least this score (%(default)s)"
    )


def _here(arguments: argparse.Namespace, model: Model) -> tuple[str, ModelWork]:
    head = named_head(model.heads, arguments.head, model=model.card.name).name
    content = hash_of_head(model.card.files, head)[:12]
    work = partial(classify_files, head=head, top_k=arguments.top_k, threshold=arguments.threshold)
    return _made_by(id_of(model), head, content, arguments), work


def _there(arguments: argparse.Namespace, server: Server) -> tuple[str, Work]:
    head = named_head({name: name for name in server.heads}, arguments.head, model=server.model)
    made_by = _made_by(server.model_id, head, server.heads[head], arguments)
    asked = {"head": head, "top_k": arguments.top_k, "threshold": arguments.threshold}
    return made_by, server.work("classify", _read, **asked)


def _made_by(model_id: str, head: str, content: str, arguments: argparse.Namespace) -> str:
    """content: the first digits of the SHA-256 of the head's file."""
    asked = f"top_k {arguments.top_k}, threshold {arguments.threshold}"
    return f"{model_id}, head {head} ({content}), {asked}, tags {VERSION}"


def _read(path: Location, answer: Answer) -> FileResult:
    best = tuple(Tag(tag["label"], float(tag["score"])) for tag in answer["tags"])
    tags = Tags(answer["model"], answer["head"], best)
    return FileResult(path, duration_s=answer["duration_s"], tags=tags)


def _top_k(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_TAGS:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {MOST_TAGS}")
    return int(text)


def _threshold(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return number


CLASSIFY = Command("classify", "Classify audio files without HTTP.", TAGS, _add_arguments, _here, _there)
