"""A JSON body with texts in, the texts and their parameters out; texts in, their vectors out.

    {"input": ["a dog barks", "rain on a roof"], "normalize": true}

Nothing grows with what is sent: there are limits for the body, the number of texts and the bytes of each, and
the model's own for tokens (text.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request

from service.errors import BadRequest, BodyTooLarge, TextTooLong, UnsupportedMediaType
from service.http.json_body import JSON, TEXT_BYTES, is_json, read_json
from service.http.parameters import TextParameters, query_of, read
from service.http.request_body import SpooledBody, UploadBudget
from service.http.server import Server
from service.inference.embedder import Timings
from service.inference.model import Model
from service.inference.text_worker import TextVectors

FIELD = "input"
MAX_TEXTS = 256  # in one request
MAX_TEXT_BYTES = 10_000  # of one, in UTF-8: far more than any tower reads


async def read_texts(request: Request, budget: UploadBudget) -> tuple[TextParameters, list[str], SpooledBody]:
    """The parameters of the query and of the body, its texts, and what it holds, to be closed at the end.
    Raises UnsupportedMediaType, BodyTooLarge, UploadTimeout, Overloaded, BadRequest or TextTooLong."""
    if not is_json(request):
        raise UnsupportedMediaType(
            f'the Content-Type of this route is {JSON}; send {{"{FIELD}": ["a dog barks", ...]}}'
        )
    try:
        content, body = await read_json(request, budget, max_bytes=TEXT_BYTES, with_texts=True)
    except BodyTooLarge as error:
        raise BodyTooLarge(
            f"the body is longer than the {TEXT_BYTES} bytes that are accepted of texts; send fewer at a time"
        ) from error
    try:
        if FIELD not in content:
            raise BadRequest(f"the JSON has no `{FIELD}`; it is a text, or a list of texts")
        texts = texts_of(content.pop(FIELD))
        return read(TextParameters, query_of(request), content), texts, body
    except BaseException:
        body.close()
        raise


def texts_of(value: Any) -> list[str]:
    """`input` as a list of texts, where one string stands for a list of one. Raises BadRequest or
    TextTooLong."""
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise BadRequest(f"`{FIELD}` is a text, or a list of texts; tokens and other things are not taken")
    if not texts:
        raise BadRequest(f"`{FIELD}` is an empty list; it holds at least one text")
    if len(texts) > MAX_TEXTS:
        raise BadRequest(f"`{FIELD}` holds more than {MAX_TEXTS} texts; send several requests")
    for text, name in zip(texts, names_of(range(len(texts)), len(texts)), strict=True):
        check_text(text, name)
    return texts


def names_of(places: Sequence[int], n: int) -> list[str]:
    """Of the inputs at these places of n, for sentences."""
    return [f"`{FIELD}[{i}]`" if n > 1 else f"`{FIELD}`" for i in places]


def check_text(text: str, name: str) -> None:
    """Raises BadRequest or TextTooLong."""
    if not text.strip():
        raise BadRequest(f"{name} is empty; send words")
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > MAX_TEXT_BYTES:
        raise TextTooLong(
            f"{name} has {n_bytes} bytes in UTF-8, and a text may have {MAX_TEXT_BYTES}; shorten it, or send "
            "it in parts"
        )


async def embed_texts(
    server: Server,
    model: Model,
    texts: Sequence[str],
    *,
    normalize: bool,
    timings: Timings,
    names: Sequence[str] | None = None,
) -> TextVectors:
    """names: of the texts, where they are not all inputs. Raises NoText, TextTooLong, BadRequest or
    Overloaded."""
    encoder = server.text_of(model)
    names = names_of(range(len(texts)), len(texts)) if names is None else names
    made = await server.texts.embed(model, encoder, texts, names)
    timings.queue += made.waited_s
    timings.inference += made.ran_s
    project = model.project_of(normalize=normalize)
    if project is not None:
        made.vectors = np.asarray(project(made.vectors), dtype=np.float32)
    return made
