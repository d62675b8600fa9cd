"""Labels in words in, those that a sound can be told apart by out: what holds at every door.

    "dog, cat barking" or '["dog", "cat barking"]' ─► labels_of ─► ("dog", "cat barking")

A ValueError's sentence tells what is wrong; each door makes an error of its own of it.
"""

import json
import unicodedata
from collections import Counter
from typing import Any

from service.errors import shortened
from service.inference.card import why_no_template

MAX_LABELS = 256
MAX_LABEL_BYTES = 100  # of one, in UTF-8
MAX_TEMPLATE = 500  # characters


def labels_of(value: Any) -> Any:
    """`dog, cat barking` or `["dog", "cat barking"]` → ("dog", "cat barking"); None stays None. Raises
    ValueError where they are none to choose from."""
    if value is None:
        return None
    if isinstance(value, str):
        value = _listed(value)
    if not (isinstance(value, (list, tuple)) and all(isinstance(label, str) for label in value)):
        raise ValueError("give the labels with commas between, or as a list of strings in JSON")
    labels = tuple(label.strip() for label in value)
    if not 2 <= len(labels) <= MAX_LABELS:
        raise ValueError(
            f"there are 2 to {MAX_LABELS} labels, not {len(labels)}: a score tells which of them fits best, "
            "so that one alone would fit everything; give what else may be heard, too"
        )
    for label in labels:
        if reason := _why_no_label(label):
            raise ValueError(f"the label `{shortened(label)}` {reason}")
    if len(set(labels)) < len(labels):
        twice = Counter(labels).most_common(1)[0][0]
        raise ValueError(f"the label `{shortened(twice)}` is given more than once; give it once")
    return labels


def template_of(value: Any) -> Any:
    """`This is a sound of {}.` as it is. Raises ValueError where a label has no place in it."""
    if isinstance(value, str):
        if len(value) > MAX_TEMPLATE:
            raise ValueError(
                f"the template has {len(value)} characters, and may have at most {MAX_TEMPLATE}; say it in "
                "fewer words"
            )
        if reason := why_no_template(value):
            raise ValueError(reason)
    return value


def check_in_place_of_a_head(labels: object, template: object, **of_a_head: object) -> None:
    """of_a_head: by their names, what means something for a head alone. None is what was left out. Raises
    ValueError."""
    if template is not None and labels is None:
        raise ValueError("template means nothing without labels; give both or none")
    for name, value in of_a_head.items():
        if value is not None and labels is not None:
            raise ValueError(f"{name} is a head's, and labels stand in place of one; leave one of them out")


def _listed(text: str) -> list[Any]:
    """Of a query: with commas between, or a list in JSON where a label holds a comma."""
    if len(text) > MAX_LABELS * (MAX_LABEL_BYTES + 8):
        raise ValueError(f"longer than {MAX_LABELS} labels of {MAX_LABEL_BYTES} bytes can be; send fewer")
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                "begins with [ and is no list in JSON; give the labels with commas between"
            ) from error
    return text.split(",")


def _why_no_label(label: str) -> str | None:
    if not label:
        return "is empty; take out the comma that is too much"
    if len(label.encode("utf-8", "replace")) > MAX_LABEL_BYTES:
        return f"has more than {MAX_LABEL_BYTES} bytes in UTF-8; say it in fewer words"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in label):
        return "holds a control character; send words"
    return None
