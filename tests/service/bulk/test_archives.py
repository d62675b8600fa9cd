"""Sounds in tar, parquet and Arrow files: each path through one gives the very bytes that were put there."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from service.bulk.archives import ArchiveError, archive_of, source_of, tar_members
from service.bulk.offline import embed_files
from service.errors import AudioMissing
from service.inference.model import Model

FIXTURES = Path(__file__).parents[2] / "fixtures"
NAMES = ["digit7_8k_mono_pcm16.wav", "burp_44k1_mono_pcm24.flac", "keyword_yes_16k_mono_pcm16.wav"]
SOUNDS = [(FIXTURES / name).read_bytes() for name in NAMES]


def write_tar(path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, sound in zip(NAMES, SOUNDS, strict=True):
            entry = tarfile.TarInfo(f"./speech/{name}")
            entry.size = len(sound)
            tar.addfile(entry, io.BytesIO(sound))
    return path


def table() -> pyarrow.Table:
    audio = [{"bytes": sound, "path": name} for name, sound in zip(NAMES, SOUNDS, strict=True)]
    return pyarrow.table({"audio": audio, "label": ["seven", "burp", "yes"]})


def write_table(path: Path, *, rows_a_group: int = 2) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table(), path, row_group_size=rows_a_group)
    else:
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table().schema) as writer:
            writer.write_table(table(), max_chunksize=rows_a_group)
    return path


def test_a_member_of_a_tar_file_is_what_was_put_there(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "000.tar")
    assert [source_of(shard / "speech" / name) for name in NAMES] == SOUNDS


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_a_row_of_a_table_is_what_was_put_there_in_any_order(tmp_path: Path, name: str) -> None:
    path = write_table(tmp_path / name)
    assert [source_of(path / f"{row}.wav") for row in (2, 0, 1)] == [SOUNDS[2], SOUNDS[0], SOUNDS[1]]


def test_a_table_may_name_a_sound_that_lies_beside_it(tmp_path: Path) -> None:
    audio = [{"bytes": None, "path": "a.wav"}, {"bytes": b"here", "path": None}]
    schema = pyarrow.schema({"audio": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})})
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"audio": audio}, schema=schema), path)
    assert [source_of(path / "0.wav"), source_of(path / "1")] == [tmp_path / "a.wav", b"here"]


def test_any_other_path_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old.tar").mkdir()  # a folder, whatever it is called
    for path in (tmp_path / "a.wav", tmp_path / "old.tar" / "a.wav", tmp_path / "none.tar" / "a.wav"):
        assert archive_of(path) is None
        assert source_of(path) == path


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    shard, rows = write_tar(tmp_path / "000.tar"), write_table(tmp_path / "train.parquet")
    for path in (shard / "speech" / "none.wav", rows / "3.wav", rows / "-1.wav", rows / "x.wav"):
        with pytest.raises(AudioMissing, match=f"holds no .*{path.name}"):
            source_of(path)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.arrow"])
def test_what_is_no_archive_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no such thing" * 100)
    with pytest.raises(AudioMissing, match="is no "):
        source_of(tmp_path / name / "0.wav")


def test_a_compressed_tar_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="a compressed one: unpack it"):
        tar_members(write_tar(tmp_path / "000.tar", "w:gz"))


def test_an_archive_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "000.tar")
    assert source_of(shard / "speech" / NAMES[0]) == SOUNDS[0]
    with tarfile.open(shard, "w") as tar:
        entry = tarfile.TarInfo("other.wav")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"new"))
    assert source_of(shard / "other.wav") == b"new"


def test_sounds_in_archives_are_embedded_like_files(toy_model: Model, tmp_path: Path) -> None:
    shard, rows = write_tar(tmp_path / "000.tar"), write_table(tmp_path / "train.parquet")
    files = embed_files(toy_model, [FIXTURES / name for name in NAMES])
    members = embed_files(toy_model, [shard / "speech" / name for name in NAMES])
    lines = embed_files(toy_model, [rows / "0.wav", rows / "1.flac", rows / "2.wav", rows / "3.wav"])
    for file, member, line in zip(files, members, lines, strict=False):
        assert file.embedding is not None
        assert member.embedding is not None
        assert np.array_equal(file.embedding, member.embedding)
        assert line.embedding is not None
        assert np.array_equal(file.embedding, line.embedding)
    assert [result.error for result in lines] == [f"{rows} holds no 3.wav"]
