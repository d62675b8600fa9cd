"""X-ARES's own checks and runs of a model folder and of a server."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import hear
import hear.xares
from hear.source import open_source
from hear.xares import Frames, ViolaEncoder, class_name
from tests.hear.local_tasks import Clip, run_xares, write_xares_task

SHIPPED = "models/byola"


def test_frames_are_those_of_hear_40_ms_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAR_MODEL", SHIPPED)
    encoder = ViolaEncoder()
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16_000, 3072, 40)
    audio = 2 * torch.rand(2, 50_000, generator=torch.Generator().manual_seed(0)) - 1
    frames = encoder(audio)
    assert frames.shape == (2, 78, 3072)  # 3125 ms
    expected, _ = hear.get_timestamp_embeddings(audio, hear.load_model(SHIPPED))
    assert torch.equal(frames, expected)


def test_a_server_gives_the_frames_of_its_folder(toys: Path, server: str) -> None:
    audio = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0))
    of_server, of_folder = (Frames(open_source(where))(audio) for where in (server, str(toys / "toy")))
    torch.testing.assert_close(of_server, of_folder, rtol=1e-5, atol=1e-5)


def test_what_is_no_batch_of_sounds_is_refused(toys: Path) -> None:
    with pytest.raises(ValueError, match="n_sounds, n_samples"):
        Frames(open_source(str(toys / "toy")))(torch.zeros(16_000))


def test_one_name_of_the_module_ends_as_xares_asks() -> None:
    assert [name for name in dir(hear.xares) if name.endswith("Encoder")] == ["ViolaEncoder"]


def test_two_models_never_share_a_folder_of_results(toys: Path) -> None:
    names = {class_name(open_source(str(toys / name))) for name in ("toy", "centred", "words")}
    assert len(names) == 3
    assert all(re.fullmatch(r"\w+_float32_Encoder", name) for name in names)


def test_xares_own_check_passes(toys: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xares", reason="pip install '.[benchmarks]'")
    from xares.audio_encoder_checker import check_audio_encoder

    for where in (SHIPPED, str(toys / "toy"), server):
        monkeypatch.setenv("HEAR_MODEL", where)
        assert check_audio_encoder(ViolaEncoder())


def test_the_command_of_the_page_scores_a_task(pieces: dict[str, list[Clip]], tmp_path: Path) -> None:
    pytest.importorskip("xares", reason="pip install '.[benchmarks]'")
    task = write_xares_task(tmp_path, "pieces", pieces)
    run = run_xares(tmp_path, str(Path(SHIPPED).resolve()), task)
    assert run.returncode == 0, run.stderr[-3000:]
    found = re.search(r"^\s*pieces +(\S+) +\S+ +False$", run.stdout, re.MULTILINE)
    assert found, run.stdout[-3000:]
    assert float(found[1]) == 1.0  # of the linear classifier
    folders = {each.name for each in (tmp_path / "env" / "pieces" / "embeddings").iterdir()}
    assert folders == {"Unknown", class_name(open_source(SHIPPED))}  # one of them while it downloads


def test_vectors_are_finite_for_silence(toys: Path) -> None:
    frames = Frames(open_source(str(toys / "toy")))(torch.zeros(1, 16_000))
    assert np.isfinite(frames.numpy()).all()
