"""Shards as WebDataset's TarWriter makes them, on a small copy."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from service.sound.audio import decode
from tests.training.corpora.conftest import DIGIT, DOG
from training.clips import DataError, find_audio, load_clips
from training.probe.labelled import read_tasks, sounds_by_name


def write_shard(path: Path, **members: bytes | dict[str, object]) -> Path:
    """`a__wav=...` becomes the member a.wav."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path, sounds: dict[str, bytes]) -> Path:
    wav, ogg = sounds[DIGIT.name], sounds[DOG.name]
    few = {"label": "speech", "licence": "CC0-1.0", "embedding": [1, 2]}
    write_shard(tmp_path / "shards" / "train-0.tar", a__wav=wav, a__json=few, b__ogg=ogg, b__cls=b"dog\n")
    many = {"tags": ["speech", "digit, spoken"], "licence": "CC-BY-4.0"}
    write_shard(tmp_path / "shards" / "test-0.tar", c__wav=wav, c__json=many, d__txt=b"no sound")
    return tmp_path / "shards"


def test_labels_splits_and_columns_are_read(shards: Path) -> None:
    (task,) = read_tasks(shards)
    found = {str(clip.path.relative_to(shards)): (clip.labels, clip.part) for clip in task.clips}
    assert found == {
        "test-0.tar/c.wav": (("speech", "digit, spoken"), "test"),
        "train-0.tar/a.wav": (("speech",), "train"),
        "train-0.tar/b.ogg": (("dog",), "train"),
    }
    assert find_audio(shards, {"licence": "CC0-1.0"}) == [shards / "train-0.tar" / "a.wav"]
    with pytest.raises(DataError, match="has no column 'license', only"):
        find_audio(shards, {"license": "CC0-1.0"})
    assert sorted(sounds_by_name(shards)) == ["dog", "speech"]


def test_a_shard_that_is_hidden_is_none(shards: Path) -> None:
    (shards / ".cache").mkdir()
    (shards / "test-0.tar").rename(shards / ".cache" / "test-0.tar")
    assert [path.name for path in find_audio(shards)] == ["a.wav", "b.ogg"]


def test_one_shard_may_be_named(shards: Path) -> None:
    assert [path.name for path in find_audio(shards / "train-0.tar")] == ["a.wav", "b.ogg"]


def test_the_samples_are_those_of_the_files(shards: Path, tmp_path: Path) -> None:
    clips = load_clips(find_audio(shards), sample_rate=16_000, cache=tmp_path / "cache")
    assert clips.unreadable == []
    for number, path in enumerate((DIGIT, DIGIT, DOG)):
        samples = decode(path, sample_rate=16_000).samples
        kept = clips.segment(number, 0, len(samples) + 1)
        np.testing.assert_allclose(kept, samples, atol=1 / 32768)  # a step of 16 bits


def test_a_table_beside_sounds_is_a_result_and_no_corpus(tmp_path: Path, sounds: dict[str, bytes]) -> None:
    (tmp_path / "a.wav").write_bytes(sounds[DIGIT.name])
    (tmp_path / "embeddings.parquet").write_bytes(b"of an earlier run")
    assert find_audio(tmp_path) == [tmp_path / "a.wav"]


def test_a_shard_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"a\.tar is no tar file"):
        find_audio(tmp_path)
