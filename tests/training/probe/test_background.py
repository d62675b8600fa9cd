"""Sounds of all kinds become a model's background, evenly."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from service.bulk.offline import embed_files
from service.inference.card import load_card
from service.inference.model import Model
from training.__main__ import main
from training.probe.background import draw


def test_each_kind_has_its_turn_and_each_file_is_drawn_once() -> None:
    sounds = {"many": [Path(f"m{i}") for i in range(50)], "few": [Path("f0"), Path("m1")], "one": [Path("o")]}
    drawn = draw(sounds, 7, seed=0)
    assert len(set(drawn)) == len(drawn) == 7
    assert {Path("o"), Path("f0")} <= set(drawn)
    assert draw(sounds, 7, seed=0) == drawn
    assert len(draw(sounds, 100, seed=0)) == 52


@pytest.mark.timeout(300)
def test_the_command_writes_the_folders_background_and_its_hash(tmp_path: Path) -> None:
    folder = tmp_path / "byola"
    shutil.copytree("models/byola", folder)
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "sounds" / f"kind {number % 4}" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(scale=0.1, size=8000), 16_000)
    (tmp_path / "sounds" / "kind 0" / "broken.wav").write_text("no sound")
    command = ["background", "--model", str(folder), "--data", str(tmp_path / "sounds"), "--clips", "21"]
    assert main(command) == 0
    model = Model.load(folder, device="cpu")  # which checks the hash
    background = model.background()
    assert background is not None
    assert background.shape == (20, load_card(folder).embedding_size)
    assert load_file(folder / "background.safetensors")["embeddings"].dtype == np.int8
    paths = [path for path in sorted((tmp_path / "sounds").rglob("*.wav")) if path.name != "broken.wav"]
    exact = np.stack([result.embedding for result in embed_files(model, paths)])
    # Half a step of 127 to the largest number of each, in whatever order they were drawn.
    order = [int(np.abs(exact - row).max(axis=1).argmin()) for row in background]
    assert sorted(order) == list(range(20))
    steps = np.abs(exact[order]).max(axis=1, keepdims=True) / 127
    assert (np.abs(background - exact[order]) <= 0.51 * steps).all()
    assert main([*command[:-1], "5"]) == 1  # too few to tell how numbers are spread
