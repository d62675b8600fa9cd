"""Whatever is called a head is a file's name, and whatever is a label is a line of text."""

import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.teaching.names import MAX_LABEL, MAX_NAME, head_name, label_of, labels_of

NASTY = st.sampled_from(["..", ".", "/", "\\", "a/../b", "a\n", "\0", " ", "‮", "é", "é", "a" * 1000])


def kept(check: Callable[[str], str], text: str) -> str | None:
    """None where it is refused, with a sentence that does not grow with the text."""
    try:
        return check(text)
    except BadRequest as refusal:
        sentence = str(refusal)
    assert len(sentence) < 300
    return None


@given(st.text() | NASTY | st.from_regex(r"[A-Za-z0-9._-]{0,80}"))
def test_the_name_of_a_head_is_one_part_of_a_path_or_refused(text: str) -> None:
    name = kept(head_name, text)
    if name is None:
        return
    assert name == text
    assert len(name) <= MAX_NAME
    assert PurePosixPath("root", name).parts == ("root", name)
    assert PureWindowsPath("root", name).parts == ("root", name)
    assert not name.startswith(".")
    assert name.isascii()


@given(st.text() | NASTY)
def test_a_label_is_a_line_in_one_form_or_refused(text: str) -> None:
    label = kept(label_of, text)
    if label is None:
        return
    assert label_of(label) == label
    assert label == unicodedata.normalize("NFC", label).strip()
    assert 0 < len(label) <= MAX_LABEL
    assert len(label.splitlines()) == 1
    label.encode()


@pytest.mark.parametrize("text", ["", "  ", "​", "a\nb", "a\0", "a" * 81, "\ud800"])
def test_what_is_no_line_of_text_is_no_label(text: str) -> None:
    with pytest.raises(BadRequest):
        label_of(text)


def test_labels_may_hold_what_paths_may_not() -> None:
    assert label_of(" ../../etc/passwd ") == "../../etc/passwd"
    assert label_of("Tür, Klingel") == "Tür, Klingel"
    assert labels_of("dog, cat,dog", several=True) == ("dog", "cat")
    assert labels_of("dog, cat", several=False) == ("dog, cat",)
