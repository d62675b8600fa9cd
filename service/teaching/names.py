"""The name of a head, or a label, as a client sent it in; checked, or a sentence on what is wrong, out.

A head's name is that of a folder and a file. A label is any line of text: it is never part of a path.
"""

import re
import unicodedata
from collections.abc import Iterable

from service.errors import MAX_ECHO, BadRequest, shortened
from service.inference.card import NAME

MAX_NAME = 64  # characters; a folder's name may have 255 bytes
MAX_LABEL = MAX_ECHO  # characters: a label comes back whole in answers

# Of Unicode: control characters, halves of surrogate pairs, unassigned ones; and what ends a line.
_NO_TEXT = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})
# What a text looks the same without: direction marks, joiners alone, zero-width blanks.
_UNSEEN = frozenset({"Cf", "Zs", "Mn", "Me"})


def head_name(text: str) -> str:
    """Raises BadRequest."""
    if len(text) > MAX_NAME or not re.fullmatch(NAME, text, re.ASCII) or text.endswith("\n"):
        raise BadRequest(
            f"`{shortened(text)}` is no name of a head: up to {MAX_NAME} letters, digits, `.`, `_` and "
            "`-`, the first of them a letter or a digit"
        )
    return text


def label_of(text: str) -> str:
    """In the one form that Unicode has of it (NFC), without blanks around it. Raises BadRequest."""
    if len(text) > 4 * MAX_LABEL:  # before anything is computed of it
        raise _too_long(text)
    label = unicodedata.normalize("NFC", text).strip()
    if len(label) > MAX_LABEL:
        raise _too_long(label)
    kinds = {unicodedata.category(character) for character in label}
    if kinds & _NO_TEXT:
        raise BadRequest("the label holds a control character or a broken one; give a line of text")
    if not kinds - _UNSEEN:
        raise BadRequest("the label holds nothing that can be seen; give a line of text, such as `doorbell`")
    return label


def labels_of(text: str, *, several: bool) -> tuple[str, ...]:
    """`doorbell`; where several may be given, `doorbell, dog` -> ("doorbell", "dog"). Raises BadRequest."""
    if not several:
        return (label_of(text),)
    if len(text) > 100 * MAX_LABEL:
        raise _too_long(text)
    return unique(label_of(part) for part in text.split(","))


def unique(labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))


def _too_long(text: str) -> BadRequest:
    return BadRequest(f"the label `{shortened(text, 20)}` is too long: {MAX_LABEL} characters at most")
