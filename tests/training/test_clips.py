"""Sounds in many formats become samples; segments are drawn from them as the recipe says."""

import csv
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
from numpy.typing import NDArray

from service.sound.audio import decode
from training import clips as clips_module
from training.clips import (
    Clips,
    DataError,
    draw_segments,
    epoch_order,
    find_audio,
    load_clips,
    samples_or_reason,
    write_whole,
)

RATE = 16_000


def clips_of(*lengths: int) -> Clips:
    """Clips of ramps: the sample at position p of clip c is c * 1000 + p + 1."""
    samples = [1000 * c + np.arange(1, length + 1) for c, length in enumerate(lengths)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Clips(np.concatenate(samples).astype(np.int16), starts.astype(np.int64), RATE, [])


def draw(
    clips: Clips,
    order: list[int],
    *,
    segment: int,
    distance: int = 0,
    short_clips: str = "zeros-end",
    seed: int = 0,
) -> NDArray[np.int64]:
    """Segments as whole numbers again."""
    drawn = draw_segments(
        clips, np.array(order), segment=segment, distance=distance, short_clips=short_clips, seed=(seed,)
    )
    assert drawn.dtype == np.float32
    return np.rint(drawn * 32768).astype(np.int64)


def write_wav(path: Path, seconds: float = 0.1, amplitude: float = 0.5) -> Path:
    tone = amplitude * np.sin(2 * np.pi * 440 * np.arange(int(RATE * seconds)) / RATE)
    scipy.io.wavfile.write(path, RATE, np.round(tone * 32767).astype(np.int16))
    return path


# Finding and decoding


def test_a_name_that_is_no_utf_8_is_decoded_like_any_other(tmp_path: Path) -> None:
    try:
        write_wav(tmp_path / os.fsdecode(b"caf\xe9.wav"))
        (tmp_path / os.fsdecode(b"t\xebxt.wav")).write_text("no sound")
    except OSError:
        pytest.skip("this file system knows only UTF-8")
    for _ in range(2):  # the second time from the cache
        clips = load_clips(find_audio(tmp_path), sample_rate=RATE, cache=tmp_path / "cache")
        assert len(clips) == 1
        assert [os.fsencode(Path(each.path).name) for each in clips.unreadable] == [b"t\xebxt.wav"]


def test_a_folder_gives_every_sound_below_it(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    paths = [write_wav(tmp_path / "b.wav"), write_wav(tmp_path / "deep" / "er" / "a.WAV")]
    (tmp_path / "notes.txt").write_text("no sound")
    assert sorted(find_audio(tmp_path)) == sorted(paths)


def test_a_csv_gives_its_rows_relative_to_itself_each_once(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file_name,label\na.wav,x\nsub/b.wav,y\na.wav,z\n")
    assert find_audio(tmp_path / "list.csv") == [tmp_path / "a.wav", tmp_path / "sub" / "b.wav"]


def test_a_csv_gives_the_rows_that_have_the_values_asked_for(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        rows = [
            ["path", "free", "use"],
            ["a.wav", "yes", "yes"],
            ["b.wav", "yes", "no"],
            ["c.wav", "no", "yes"],
            [],
        ]
        csv.writer(file).writerows(rows)
    assert find_audio(table, {"free": "yes", "use": "yes"}) == [tmp_path / "a.wav"]
    with pytest.raises(DataError, match="no column 'license', only path, free, use"):
        find_audio(table, {"license": "yes"})
    with pytest.raises(DataError, match="holds no audio"):
        find_audio(table, {"free": "perhaps"})


def test_a_csv_without_paths_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("name\na.wav\n")
    with pytest.raises(DataError, match="no column 'file_name' or 'path', only name"):
        find_audio(tmp_path / "list.csv")


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no audio"):
        find_audio(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a CSV"):
        find_audio(tmp_path / "nowhere")


def test_a_sound_given_as_the_list_is_refused(fixtures_dir: Path) -> None:
    with pytest.raises(DataError, match=r"not a CSV|no column"):
        find_audio(fixtures_dir / "dog_bark_44k1_mono.ogg")


def test_every_format_and_rate_becomes_16_khz(clips: Clips, sounds: Path, fixtures_dir: Path) -> None:
    paths = find_audio(sounds)
    assert len(clips) == len(paths) == 23
    assert clips.unreadable == []
    with (fixtures_dir / "fixtures.csv").open() as file:
        seconds = {row["file"]: row["duration_s"] for row in csv.DictReader(file)}
    for path, length in zip(paths, clips.lengths, strict=True):
        assert length / RATE == pytest.approx(float(seconds[path.name]), abs=0.03), path.name
    assert clips.hours == pytest.approx(sum(clips.lengths) / RATE / 3600)


def test_samples_are_the_decoded_ones_to_16_bits(clips: Clips, sounds: Path) -> None:
    for name in ("speech_16k_mono.flac", "trumpet_44k1_stereo.ogg"):
        number = [path.name for path in find_audio(sounds)].index(name)
        samples = decode(sounds / name, sample_rate=RATE).samples
        kept = clips.segment(number, 0, len(samples) + 5)
        assert len(kept) == len(samples)
        np.testing.assert_allclose(kept, samples, atol=0.5 / 32768 + 1e-7)


def test_full_scale_does_not_wrap_around(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    scipy.io.wavfile.write(path, RATE, np.array([1.0, -1.0] * 100, dtype=np.float32))
    kept = load_clips([path], sample_rate=RATE, cache=tmp_path / "cache").segment(0, 0, 2)
    assert kept.tolist() == [32767 / 32768, -1.0]


def test_unreadable_files_are_reported_and_skipped(fixtures_dir: Path, tmp_path: Path) -> None:
    broken = sorted((fixtures_dir / "invalid").iterdir())
    paths = [*broken, write_wav(tmp_path / "good.wav"), tmp_path / "missing.wav"]
    clips = load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")
    assert clips.lengths.tolist() == [1600]
    assert [item.path for item in clips.unreadable] == [*map(str, broken), str(tmp_path / "missing.wav")]
    assert all(item.reason for item in clips.unreadable)


def test_a_folder_without_a_readable_file_is_refused(fixtures_dir: Path, tmp_path: Path) -> None:
    paths = [fixtures_dir / "invalid" / "empty.wav", fixtures_dir / "invalid" / "text.wav"]
    with pytest.raises(DataError, match=r"None of the 2 files could be decoded; the first: .*empty"):
        load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")


def test_a_file_of_less_than_a_sample_is_reported(tmp_path: Path) -> None:
    scipy.io.wavfile.write(tmp_path / "tiny.wav", 192_000, np.ones(1, dtype=np.int16))
    paths = [tmp_path / "tiny.wav", write_wav(tmp_path / "good.wav")]
    clips = load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")
    assert (clips.lengths > 0).all()


# The cache


def test_a_second_run_finds_the_samples_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_wav(tmp_path / "a.wav"), write_wav(tmp_path / "b.wav", 0.2)]
    first = load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")
    monkeypatch.setattr(clips_module, "decode_all", lambda *_: pytest.fail("decoded again"))
    second = load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")
    assert np.array_equal(first.samples, second.samples)
    assert np.array_equal(first.starts, second.starts)


def test_a_changed_an_added_and_a_removed_file_are_noticed(tmp_path: Path) -> None:
    a, b = write_wav(tmp_path / "a.wav"), write_wav(tmp_path / "b.wav")

    def lengths(*paths: Path, rate: int = RATE) -> list[int]:
        return load_clips(list(paths), sample_rate=rate, cache=tmp_path / "cache").lengths.tolist()

    assert lengths(a) == [1600]
    assert lengths(a, b) == [1600, 1600]
    write_wav(a, 0.3)
    assert lengths(a, b) == [4800, 1600]
    assert lengths(b) == [1600]
    assert lengths(b, rate=8000) == [800]
    samples = load_clips([b], sample_rate=RATE, cache=tmp_path / "cache").samples.copy()
    write_wav(b, amplitude=0.1)  # the same size: the date tells
    os.utime(b, (1, 1))
    louder = (
        np.abs(samples).max()
        / np.abs(load_clips([b], sample_rate=RATE, cache=tmp_path / "cache").samples).max()
    )
    assert louder == pytest.approx(5, rel=0.01)


def test_half_a_cache_is_decoded_again(tmp_path: Path) -> None:
    paths = [write_wav(tmp_path / "a.wav")]
    cache = tmp_path / "cache"
    load_clips(paths, sample_rate=RATE, cache=cache)
    next(cache.glob("*.i16")).unlink()
    assert load_clips(paths, sample_rate=RATE, cache=cache).lengths.tolist() == [1600]


def test_a_full_disk_leaves_no_half_cache_and_does_not_decode_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_wav(tmp_path / f"{i}.wav") for i in range(40)]
    decoded = []

    def no_room(path: Path, sample_rate: int) -> NDArray[np.int16]:
        decoded.append(path)
        time.sleep(0.01)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clips_module, "samples_or_reason", no_room)
    with pytest.raises(OSError, match="No space left"):
        load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")
    assert len(decoded) < 40
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_the_samples_stay_on_the_disk(clips: Clips) -> None:
    assert isinstance(clips.samples, np.memmap)


def test_a_corpus_that_is_larger_than_a_shard_lies_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_wav(tmp_path / f"{i}.wav", (100.5 + i) / RATE) for i in range(5)]
    paths.insert(3, tmp_path / "gone.wav")
    whole = load_clips(paths, sample_rate=RATE, cache=tmp_path / "one")
    monkeypatch.setattr("training.clips.SHARD_BYTES", 401)  # of 202, 204, 206, ... bytes
    clips = load_clips(paths, sample_rate=RATE, cache=tmp_path / "several")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "several").glob("*.i16"))
    assert sizes == [208, 200 + 202, 204 + 206]
    assert [item.path for item in clips.unreadable] == [str(tmp_path / "gone.wav")]
    assert clips.lengths.tolist() == whole.lengths.tolist()
    for clip in range(5):
        for start, length in ((0, 1000), (30, 20), (99, 1)):
            assert np.array_equal(clips.segment(clip, start, length), whole.segment(clip, start, length))


def test_decoding_that_was_stopped_goes_on_behind_the_last_whole_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_wav(tmp_path / f"{i}.wav", 100.5 / RATE) for i in range(5)]
    monkeypatch.setattr("training.clips.SHARD_BYTES", 400)  # two clips
    monkeypatch.setattr("training.clips.AHEAD", 1)
    read: list[str] = []

    def reading(path: Path, sample_rate: int) -> Any:
        read.append(path.name)
        if len(read) == 4:
            raise KeyboardInterrupt
        return samples_or_reason(path, sample_rate)

    monkeypatch.setattr("training.clips.samples_or_reason", reading)
    with pytest.raises(KeyboardInterrupt):
        load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")
    clips = load_clips(paths, sample_rate=RATE, cache=tmp_path / "cache")
    assert read == ["0.wav", "1.wav", "2.wav", "3.wav", "2.wav", "3.wav", "4.wav"]
    assert clips.lengths.tolist() == [100] * 5
    assert not list((tmp_path / "cache").glob("*.decoded"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_does_not_depend_on_where_the_sounds_are_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_wav(tmp_path / "a.wav")
    load_clips([path], sample_rate=RATE, cache=tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    load_clips([Path("a.wav")], sample_rate=RATE, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.i16"))) == 1
    shutil.rmtree(tmp_path / "cache")


# Drawing


def test_a_segment_is_a_piece_of_its_clip() -> None:
    first = draw(clips_of(50, 80), [1, 0, 1], segment=20)
    assert first.shape == (1, 3, 20)
    for row, clip in enumerate([1, 0, 1]):
        begin = first[0, row, 0]
        assert first[0, row].tolist() == list(range(begin, begin + 20))
        assert 1000 * clip < begin <= 1000 * clip + [50, 80][clip] - 19


def test_every_start_is_equally_likely_the_last_included() -> None:
    begins = draw(clips_of(24), [0] * 5000, segment=20)[0, :, 0] - 1
    assert np.bincount(begins, minlength=5).tolist() == pytest.approx([1000] * 5, abs=150)
    assert begins.max() == 4


def test_a_short_clip_is_padded_at_the_end_or_at_both_ends() -> None:
    assert draw(clips_of(3), [0], segment=8)[0, 0].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]
    both = draw(clips_of(3), [0], segment=8, short_clips="zeros-both")[0, 0]
    assert both.tolist() == [0, 0, 1, 2, 3, 0, 0, 0]  # the left half rounded down
    assert draw(clips_of(8), [0], segment=8, short_clips="zeros-both")[0, 0].tolist() == list(range(1, 9))


def test_without_a_distance_both_views_are_one_segment() -> None:
    assert draw(clips_of(100), [0, 0], segment=10).shape == (1, 2, 10)


def test_with_a_distance_the_views_start_so_far_apart_at_most() -> None:
    clips = clips_of(100, 12, 5)
    first, second = draw(clips, [0] * 3000 + [1] * 500 + [2] * 10, segment=10, distance=15)[:, :, 0]
    apart = second - first
    assert np.abs(apart[:3000]).max() == 15
    assert {-15, 15, 0} <= set(apart[:3000].tolist())
    assert (second[:3000] >= 1).all()
    assert (second[:3000] <= 91).all()
    assert np.abs(apart[3000:3500]).max() == 2  # all that the clip has room for
    assert not apart[3500:].any()


def test_the_same_seed_draws_the_same_segments() -> None:
    clips = clips_of(500)
    assert np.array_equal(draw(clips, [0] * 20, segment=9, seed=1), draw(clips, [0] * 20, segment=9, seed=1))
    assert not np.array_equal(
        draw(clips, [0] * 20, segment=9, seed=1), draw(clips, [0] * 20, segment=9, seed=2)
    )


def order_of(clips: Clips, *, power: float, epoch: int = 0, seed: int = 42, segment: int = 100) -> list[int]:
    order = epoch_order(clips, segment=segment, draws_power=power, seed=seed, epoch=epoch)
    return [int(clip) for clip in order]


def test_an_epoch_has_every_clip_once_in_an_order_of_its_own() -> None:
    clips = clips_of(*range(1, 301))
    epochs = [order_of(clips, power=0, epoch=epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(300)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == order_of(clips, power=0)
    assert epochs[0] != order_of(clips, power=0, seed=43)


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_longer_clips_are_drawn_more_often_and_none_is_left_out(power: float) -> None:
    lengths = [30, 100, 150, 190, 260, 999, 40, 120] * 4
    clips = clips_of(*lengths)
    draws = np.maximum(np.array(lengths) / 100, 1) ** power
    epochs = [order_of(clips, power=power, epoch=epoch) for epoch in range(400)]
    assert {len(order) for order in epochs} == {math.ceil(draws.sum())}  # of one length
    counts = np.array([np.bincount(order, minlength=len(lengths)) for order in epochs])
    assert counts.min() >= 1
    np.testing.assert_allclose(counts.mean(axis=0), draws * counts[0].sum() / draws.sum(), atol=0.15)
    assert (np.abs(counts - draws) < 2).all()


def test_the_streams_of_draws_differ() -> None:
    names = (clips_module.ORDER, clips_module.SEGMENTS, clips_module.STATISTICS, clips_module.AUGMENTATION)
    seeds = [(42, name, number, rank) for name in names for number in range(3) for rank in range(2)]
    first = {int(np.random.default_rng(seed).integers(1 << 62)) for seed in seeds}
    assert len(first) == len(seeds)


def test_sounds_are_decoded_on_a_system_without_file_locks(tmp_path: Path) -> None:
    """Windows has no `fcntl`. Two runs that begin there at once decode the same sounds twice."""
    program = (
        "import sys; sys.modules['fcntl'] = None; from pathlib import Path; from training.clips import *\n"
        "sound, cache = map(Path, sys.argv[1:])\n"
        "for _ in range(2): print(len(load_clips([sound], sample_rate=16_000, cache=cache).samples))\n"
    )
    command = [sys.executable, "-c", program, str(write_wav(tmp_path / "a.wav")), str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1600", "1600"], done.stderr
