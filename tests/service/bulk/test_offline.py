import os
from pathlib import Path

import numpy as np
import pytest

from service.bulk.offline import audio_files, embed_files, no_file
from service.inference import windows
from service.inference.model import Model
from service.sound.audio import decode

GOOD = [
    "birds_30s_16k_mono.opus",
    "click_10ms_16k_mono.wav",
    "robin_44k1_stereo.mp3",
    "keyword_yes_16k_mono_pcm16.wav",
]


def alone(model: Model, path: Path) -> np.ndarray:
    """The same pipeline, step by step for one file."""
    waveform = decode(path, sample_rate=model.card.sample_rate)
    return windows.embed(model.run, model.card, [model.logmel(waveform.samples)]).vector


def test_files_are_embedded_in_input_order_as_if_alone(toy_model: Model, fixtures_dir: Path) -> None:
    paths = [fixtures_dir / name for name in GOOD]
    results = list(embed_files(toy_model, paths))
    assert [result.path for result in results] == paths
    for result in results:
        np.testing.assert_allclose(result.embedding, alone(toy_model, result.path), rtol=1e-5, atol=1e-6)
    assert [result.duration_s for result in results] == pytest.approx([30, 0.01, 2.6986, 1], abs=1e-4)


@pytest.mark.parametrize("batch_frames", [1, 300, 100_000])
def test_the_size_of_a_batch_changes_nothing(toy_model: Model, fixtures_dir: Path, batch_frames: int) -> None:
    paths = [fixtures_dir / name for name in GOOD] * 2
    for result in embed_files(toy_model, paths, workers=3, batch_frames=batch_frames):
        np.testing.assert_allclose(result.embedding, alone(toy_model, result.path), rtol=1e-5, atol=1e-6)


def test_a_bad_file_is_reported_and_the_rest_goes_on(toy_model: Model, fixtures_dir: Path) -> None:
    names = ["invalid/empty.wav", GOOD[0], "invalid/truncated.flac", "nowhere.wav", GOOD[1]]
    results = list(embed_files(toy_model, [fixtures_dir / name for name in names]))
    assert [result.error is None for result in results] == [False, True, False, False, True]
    assert "is empty" in str(results[0].error)
    assert "cannot be opened" in str(results[3].error)
    assert results[0].embedding is None


def test_more_files_than_are_decoded_ahead_all_come_back(toy_model: Model, fixtures_dir: Path) -> None:
    paths = [fixtures_dir / "keyword_yes_16k_mono_pcm16.wav"] * 250
    assert len(list(embed_files(toy_model, paths, workers=2))) == 250


def test_nothing_in_gives_nothing_out(toy_model: Model) -> None:
    assert list(embed_files(toy_model, [])) == []


def test_a_caller_may_stop_early(toy_model: Model, fixtures_dir: Path) -> None:
    results = embed_files(toy_model, [fixtures_dir / name for name in GOOD])
    assert next(results).path.name == GOOD[0]
    results.close()  # type: ignore[attr-defined]


def test_a_folder_gives_its_audio_files_sorted_and_a_named_file_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("b.wav", "a/z.MP3", "a/notes.txt", ".hidden/x.wav", "a/.y.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = audio_files([tmp_path / "a" / "notes.txt", tmp_path, tmp_path / "b.wav"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/notes.txt", "a/z.MP3", "b.wav"]


@pytest.fixture
def linked(tmp_path: Path, fixtures_dir: Path) -> Path:
    """A folder of links, and a pipe."""
    folder, elsewhere = tmp_path / "sounds", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "more.wav").symlink_to(fixtures_dir / GOOD[1])
    (folder / "click.wav").symlink_to(fixtures_dir / GOOD[1])
    (folder / "gone.wav").symlink_to(tmp_path / "removed.wav")
    (folder / "gone").symlink_to(tmp_path / "unplugged")
    (folder / "gone.txt").symlink_to(tmp_path / "removed.txt")
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    (folder / "more").symlink_to(elsewhere)
    (folder / "up").symlink_to(tmp_path)  # which holds the folder itself
    os.mkfifo(folder / "pipe.wav")
    return folder


def test_links_to_folders_and_to_nowhere_are_told_and_the_others_followed(
    linked: Path, toy_model: Model
) -> None:
    results = {result.path.name: result.error for result in embed_files(toy_model, audio_files([linked]))}
    assert results == {
        "click.wav": None,
        "gone": f"it is a link to {linked.parent}/unplugged, which is not there",
        "gone.wav": f"it is a link to {linked.parent}/removed.wav, which is not there",
        "loop.wav": f"it is a link to {linked}/loop.wav, which is not there",
        "more": "it is a link to a folder, which is not followed: name it, too",
        "up": "it is a link to a folder, which is not followed: name it, too",
    }


def test_a_pipe_that_is_named_is_told_and_not_waited_for(linked: Path, toy_model: Model) -> None:
    (result,) = embed_files(toy_model, [linked / "pipe.wav"])
    assert result.error == "it is a pipe, a device or a socket, and no file"
    assert no_file(linked / "click.wav") is None


def test_a_folder_is_searched_for_every_suffix_of_a_known_format(tmp_path: Path) -> None:
    names = ["a.adts", "b.m4b", "c.mp2", "d.mpga", "e.WAV", "f.opus"]
    for name in [*names, "notes.txt", "cover.png"]:
        (tmp_path / name).touch()
    assert [path.name for path in audio_files([tmp_path])] == names
