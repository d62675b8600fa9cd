"""API keys from a file that changes while the server runs."""

import os
from pathlib import Path

import pytest

from service.http import api_keys as keys_module
from service.http.api_keys import ApiKeys, ApiKeysFileError


@pytest.fixture(autouse=True)
def _check_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "CHECK_EVERY_S", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "keys", "# the keys of June\nfirst\n\n  second  \n")


def write(file: Path, content: str | bytes) -> Path:
    """As one rotates keys well: a new file is put in the place of the old one."""
    new = file.with_name("new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    return new.replace(file)


def test_one_key_per_line_comments_and_spaces_do_not_count(file: Path) -> None:
    keys = ApiKeys(["fixed"], file)
    assert all(keys.is_valid(key) for key in (b"fixed", b"first", b"second"))
    assert not any(
        keys.is_valid(key) for key in (b"", b"# the keys of June", b"  second  ", b"firs", b"third")
    )


def test_a_changed_file_counts_without_a_restart(file: Path) -> None:
    keys = ApiKeys((), file)
    write(file, "third\r\n")
    assert keys.is_valid(b"third")
    assert not keys.is_valid(b"first")


def test_a_change_in_place_counts_too(file: Path) -> None:
    keys = ApiKeys((), file)
    content = file.read_text()
    file.write_text(content.replace("first", "worst"))  # as long as before
    os.utime(file, ns=(1, 1))
    assert keys.is_valid(b"worst")
    assert not keys.is_valid(b"first")


@pytest.mark.parametrize("broken", [b"a\x00b\n", "good\n".encode("utf-16"), b"k" * 2000, b"k\n" * 600_000])
def test_a_broken_file_leaves_the_keys_read_last(
    broken: bytes, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys((), file)
    write(file, broken)
    assert keys.is_valid(b"first")
    assert "stay valid" in caplog.text
    write(file, "third")
    assert keys.is_valid(b"third")


def test_a_file_that_is_gone_leaves_the_keys_read_last(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ApiKeys((), file)
    file.unlink()
    assert keys.is_valid(b"first")
    assert keys.is_valid(b"first")
    assert caplog.text.count("No such file") == 1  # told once, not at every request


@pytest.mark.parametrize("content", ["", "\n\n", "# none yet\n"])
def test_a_file_without_keys_opens_nothing(
    content: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys((), file)
    write(file, content)
    assert keys.are_required
    assert not any(keys.is_valid(key) for key in (b"", b"first", b"# none yet"))
    assert "holds no key" in caplog.text


def test_without_keys_and_file_none_is_asked_for() -> None:
    assert not ApiKeys().are_required


def test_a_file_that_is_missing_at_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ApiKeysFileError, match="No such file"):
        ApiKeys((), tmp_path / "keys")


def test_no_key_is_ever_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    keys = ApiKeys(["fixed"], file)
    write(file, b"first\x00\n")
    keys.is_valid(b"shown")
    assert not any(key in caplog.text for key in ("fixed", "first", "second", "shown"))
    assert "line 1" in caplog.text


def test_the_file_is_looked_at_once_a_second_at_most(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "CHECK_EVERY_S", 3600.0)
    keys = ApiKeys((), file)
    assert keys.is_valid(b"first")
    write(file, "third")
    assert keys.is_valid(b"first")
