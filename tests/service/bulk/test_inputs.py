import os
from pathlib import Path

import fsspec
import pytest

from service.bulk.errors import CommandError
from service.bulk.inputs import location_of, locations, modified_s


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_files_and_lists_come_in_the_order_they_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "sounds/b.wav", "sounds/a/z.MP3", "sounds/a/notes.txt", "sounds/.hidden/x.wav")
    (tmp_path / "list.csv").write_text("label,path\ndog,sounds/b.wav\ncat,/there/c.wav\n,s3://bucket/d.wav\n")
    named = [str(tmp_path / name) for name in ("notes.txt", "sounds", "list.csv")]
    assert list(locations(named)) == [
        tmp_path / "notes.txt",
        tmp_path / "sounds/a/z.MP3",
        tmp_path / "sounds/b.wav",
        tmp_path / "sounds/b.wav",
        Path("/there/c.wav"),
        "s3://bucket/d.wav",
    ]


def test_a_list_is_read_as_far_as_it_is_needed(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(b"file_name\n" + b"a.wav\n" * 10_000 + b"\xff\n")
    found = locations([str(table)])
    assert next(found) == tmp_path / "a.wav"
    with pytest.raises(CommandError, match="is not a CSV file in UTF-8"):
        list(found)


def test_a_list_that_a_spreadsheet_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbfpath\r\na.wav\r\n\r\n")
    assert list(locations([str(tmp_path / "list.csv")])) == [tmp_path / "a.wav"]


def test_what_lies_below_a_url_is_found_by_fsspec() -> None:
    elsewhere = fsspec.filesystem("memory")
    for name in ("b.wav", "a/z.mp3", "a/notes.txt", ".hidden/x.wav", ".y.wav"):
        elsewhere.pipe_file(f"/inputs/{name}", b"1")
    elsewhere.pipe_file("/inputs/list.csv", b"path\na/z.mp3\n/here/b.wav\n")
    assert list(locations(["memory://inputs"])) == ["memory:///inputs/b.wav", "memory:///inputs/a/z.mp3"]
    assert list(locations(["memory://inputs/b.wav"])) == ["memory://inputs/b.wav"]
    assert list(locations(["memory://inputs/list.csv"])) == ["memory://inputs/a/z.mp3", Path("/here/b.wav")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("list.csv", "name\na.wav\n", "has no column 'file_name' or 'path', only name"),
        ("list.csv", None, "list.csv cannot be read: No such file or directory"),
    ],
)
def test_a_list_that_is_none_is_said(name: str, content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CommandError, match=sentence):
        list(locations([str(tmp_path / name)]))


def test_a_url_of_no_known_kind_is_said() -> None:
    with pytest.raises(CommandError, match=r"nowhere://sounds cannot be read: .*nowhere"):
        list(locations(["nowhere://sounds"]))


def test_a_file_tells_when_it_was_modified_and_a_url_is_not_asked(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    os.utime(tmp_path / "a.wav", (5, 7))
    assert modified_s(tmp_path / "a.wav") == 7
    assert modified_s(tmp_path / "b.wav") != modified_s(tmp_path / "b.wav")
    assert modified_s(location_of("s3://bucket/a.wav")) == 0


def test_a_link_to_a_folder_is_searched_when_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "sounds/a.wav", "elsewhere/b.wav", "other/c.wav")
    for name in ("elsewhere", "other"):
        (tmp_path / "sounds" / name).symlink_to(tmp_path / name)
    named = [str(tmp_path / "sounds"), f"{tmp_path}/sounds/elsewhere/"]
    assert list(locations(named)) == [
        tmp_path / "sounds/a.wav",
        tmp_path / "sounds/other",  # whoever opens it is told that it is not followed
        tmp_path / "sounds/elsewhere/b.wav",
    ]
