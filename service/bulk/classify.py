"""`python -m service classify`: audio files in, their tags out, with the scores that /classify gives.

service/bulk/tags.py describes OUT.csv, OUT.jsonl and OUT.parquet; the parts of OUT/ are such parquet files.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from service.bulk.cli import Command, given_name, id_of
from service.bulk.kinds import TAGS
from service.bulk.offline import FileResult, Location, ModelWork, Tags, Work, classify_files
from service.bulk.server import Answer, Server
from service.bulk.tags import VERSION
from service.errors import BadRequest, NoText
from service.inference.heads import Tag, hash_of_head, named_head
from service.inference.labels import check_in_place_of_a_head, labels_of, template_of
from service.inference.model import Model
from service.inference.text import why_no_text
from service.inference.zero_shot import HEAD, hash_of_labels, head_of_labels

MOST_TAGS = 1000  # that /classify gives, too
MAX_QUERY_BYTES = 32_000  # of labels in the address: servers and proxies read heads of 64 kB, or less


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--head", type=given_name, help="of the model; default: the first of its card")
    parser.add_argument(
        "--labels",
        type=_checked(labels_of),
        metavar="LABEL,LABEL[,...]",
        help="words in place of a head, or a list in JSON; the model needs a text tower",
    )
    parser.add_argument(
        "--template",
        type=_checked(template_of),
        help="what a label becomes before it is compared, with {} in its place (default: the model's own)",
    )
    parser.add_argument(
        "--top-k", type=_top_k, default=5, help="at most so many tags a file, best first (%(default)s)"
    )
    parser.add_argument(
        "--threshold", type=_threshold, default=0.0, help="only tags with at least this score (%(default)s)"
    )


def _here(arguments: argparse.Namespace, model: Model) -> tuple[str, ModelWork]:
    work = partial(classify_files, top_k=arguments.top_k, threshold=arguments.threshold)
    _check(arguments)
    if arguments.labels is not None:
        of_labels = head_of_labels(model, arguments.labels, arguments.template)
        assert model.card.text
        content = _hash_of(arguments, model.card.text.model_dump(), model.card.files)
        return _made_by(id_of(model), HEAD, content, arguments), partial(work, head=of_labels)
    head = named_head(model.heads, arguments.head, model=model.card.name).name
    content = hash_of_head(model.card.files, head)[:12]
    return _made_by(id_of(model), head, content, arguments), partial(work, head=head)


def _there(arguments: argparse.Namespace, server: Server) -> tuple[str, Work]:
    asked = {"top_k": arguments.top_k, "threshold": arguments.threshold}
    _check(arguments)
    if arguments.labels is not None:
        if server.tower is None or not server.embeds_texts:
            raise NoText(why_no_text(server.model, is_off=server.tower is not None))
        content = _hash_of(arguments, server.tower, server.files)
        made_by = _made_by(server.model_id, HEAD, content, arguments)
        template = {} if arguments.template is None else {"template": arguments.template}
        return made_by, server.work(
            "classify", _read, labels=_in_a_query(arguments.labels), **template, **asked
        )
    head = named_head({name: name for name in server.heads}, arguments.head, model=server.model)
    made_by = _made_by(server.model_id, head, server.heads[head], arguments)
    return made_by, server.work("classify", _read, head=head, **asked)


def _check(arguments: argparse.Namespace) -> None:
    """Raises BadRequest."""
    try:
        check_in_place_of_a_head(arguments.labels, arguments.template, head=arguments.head)
    except ValueError as error:
        raise BadRequest(str(error)) from error


def _hash_of(arguments: argparse.Namespace, tower: Mapping[str, Any], files: Mapping[str, str]) -> str:
    return hash_of_labels(arguments.labels, arguments.template, tower, files)[:12]


def _in_a_query(labels: Sequence[str]) -> str:
    """A list in JSON, as a label may hold a comma. Raises BadRequest."""
    text = json.dumps(labels, ensure_ascii=False)
    length = len(quote(text))
    if length > MAX_QUERY_BYTES:
        raise BadRequest(
            f"the labels take {length} bytes of a request's address, and {MAX_QUERY_BYTES} is the most: give "
            "fewer, or shorter ones"
        )
    return text


def _made_by(model_id: str, head: str, content: str, arguments: argparse.Namespace) -> str:
    """content: the first digits of the SHA-256 of the head's file, or of what labels are compared by."""
    asked = f"top_k {arguments.top_k}, threshold {arguments.threshold}"
    return f"{model_id}, head {head} ({content}), {asked}, tags {VERSION}"


def _read(path: Location, answer: Answer) -> FileResult:
    best = tuple(Tag(tag["label"], float(tag["score"])) for tag in answer["tags"])
    tags = Tags(answer["model"], answer["head"], best)
    return FileResult(path, duration_s=answer["duration_s"], tags=tags)


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option whose check raises ValueError with a sentence, which argparse would not show."""

    def parsed(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


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
