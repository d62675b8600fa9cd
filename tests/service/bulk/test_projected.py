"""`embed --normalize` and `--dimensions`: the vectors of /embed with the same parameters, here and from a
server."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from service.bulk.embed import EMBED
from service.bulk.table import read_table
from service.inference.model import Model
from tests.service.http.live import RAW, serving

NAMES = ["digit7_8k_mono_pcm16.wav", "keyword_yes_16k_mono_pcm16.wav"]


@pytest.fixture
def sounds(make_sounds: Callable[[Sequence[str]], Path]) -> Path:
    return make_sounds(NAMES)


def run(sounds: Path, out: Path, models_dir: Path, *asked: str) -> int:
    where = ["--model", "toy", "--models-dir", str(models_dir), "--device", "cpu"]
    return EMBED.main([str(sounds), "--out", str(out), *where, *asked])


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        (["--normalize"], {"normalize": True}),
        (["--dimensions", "4"], {"dimensions": 4}),
        (["--normalize", "--dimensions", "16"], {"normalize": True, "dimensions": 16}),
    ],
)
def test_files_give_what_the_route_gives(
    asked: list[str], options: dict[str, int], sounds: Path, projected_dir: Path, tmp_path: Path
) -> None:
    raw, out = tmp_path / "raw.npz", tmp_path / "out.npz"
    assert run(sounds, raw, projected_dir) == 0
    assert run(sounds, out, projected_dir, *asked) == 0
    project = Model.load(projected_dir / "toy", device="cpu").project_of(**options)
    assert project is not None
    np.testing.assert_allclose(
        read_table(out).embeddings, project(read_table(raw).embeddings), rtol=1e-5, atol=1e-6
    )


def test_a_server_gives_the_same_table(sounds: Path, projected_dir: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    assert run(sounds, here, projected_dir, "--dimensions", "4") == 0
    with serving(projected_dir) as (client, _):
        words = [str(sounds), "--out", str(there), "--url", str(client.base_url), "--model", "toy"]
        assert EMBED.main([*words, "--dimensions", "4"]) == 0
        sound = (sounds / NAMES[0]).read_bytes()
        answer = client.post("/embed?dimensions=4", content=sound, headers=RAW).json()
        assert EMBED.main([*words[:2], str(tmp_path / "many.npz"), *words[3:], "--dimensions", "9"]) == 1
    np.testing.assert_allclose(read_table(there).embeddings, read_table(here).embeddings, atol=1e-5)
    np.testing.assert_allclose(read_table(there).embeddings[0], answer["embedding"], atol=1e-5)


def test_vectors_of_two_kinds_never_come_into_one_table(
    sounds: Path, projected_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npz"
    assert run(sounds, out, projected_dir, "--dimensions", "4") == 0
    assert ", dimensions 4 (" in read_table(out).model
    for asked in ([], ["--dimensions", "5"], ["--normalize"]):
        assert run(sounds, out, projected_dir, *asked) == 1
    assert capsys.readouterr().err.count("choose another --out, or start anew") == 3
    assert run(sounds, out, projected_dir, "--dimensions", "4") == 0  # as before: nothing is left to do


def test_what_the_model_cannot_do_is_said_before_the_first_file(
    sounds: Path, models_dir: Path, projected_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sounds, tmp_path / "out.npz", models_dir, "--normalize") == 1
    assert "error: normalize: the folder of `toy` has no projection" in capsys.readouterr().err
    assert run(sounds, tmp_path / "out.npz", projected_dir, "--dimensions", "9") == 1
    assert "1 to 8 rotated numbers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(sounds, tmp_path / "out.npz", projected_dir, "--dimensions", "0")
    assert not (tmp_path / "out.npz").exists()
