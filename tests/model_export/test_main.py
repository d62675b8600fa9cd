from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_export.__main__ import main
from model_export.clips import FIXTURES
from service.inference.card import load_card
from service.inference.model import Model
from tests.model_export.own_graphs import LOGMEL, patch_graph, write_own
from tests.model_export.sources.test_published_byola import published_state


def test_a_run_becomes_a_folder_that_is_served(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "mine"
    words = ["export", "--run", str(make_run(0.999)), "--out", str(out), "--licence", "CC0-1.0"]
    assert main([*words, "--training-data", "five sounds"]) == 0
    assert "verified on 10 clips" in capsys.readouterr().out
    card = load_card(out)
    assert (card.name, card.licence, card.encoder.name) == ("mine", "CC0-1.0", "byola-2022")
    assert (card.training["data"], card.training["weights"]) == ("five sounds", "average")
    assert Model.load(out, device="cpu").precision == "float32"

    assert main(words) == 1
    assert "exists: choose another --out" in capsys.readouterr().err
    assert main([*words, "--force", "--name", "other"]) == 0
    assert load_card(out).name == "other"


def test_layers_of_a_runs_encoder_are_fused_on_request(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--run", str(make_run()), "--out", str(tmp_path / "fused")]
    assert main([*words, "--fuse", "2,5"]) == 1
    assert "AudioNTT2022 has no layer 5 to fuse, only 1, 2, 3, 4" in capsys.readouterr().err
    assert main([*words, "--fuse", "2,4"]) == 0
    card = load_card(tmp_path / "fused")
    assert card.embedding_size == 1024 + 256
    assert card.encoder.parameters == {"n_mels": 64, "d": 1280, "fuse": [2, 4]}
    assert card.description == "byola-2022 #2 #4, trained by viola"
    with pytest.raises(SystemExit):
        main([*words, "--fuse", "two"])
    assert "'two' is no list of layers like 10,15" in capsys.readouterr().err


def test_a_published_file_becomes_a_folder_under_its_licence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(published_state("byola-2020"), tmp_path / "d512.pth")
    words = ["import", "--encoder", "byola-2020", "--weights", str(tmp_path / "d512.pth")]
    words += ["--out", str(tmp_path / "ntt")]
    assert main(words) == 1
    assert "--mean and --std are needed" in capsys.readouterr().err
    assert main([*words, "--mean", "-9.66", "--std", "4.72", "--int8", "--calibration", str(FIXTURES)]) == 0
    assert "evaluation only" in capsys.readouterr().out
    card = load_card(tmp_path / "ntt")
    assert card.licence == "LicenseRef-NTT-evaluation"
    assert "redistribution" in str(card.training["notice"])
    assert Model.load(tmp_path / "ntt", device="cpu").precision == "int8"


def test_a_self_test_is_written_on_request_and_a_bad_folder_is_told(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    assert main(["export", "--run", str(make_run()), "--out", str(out), "--float16"]) == 0
    assert "float16: cosine to float32" in capsys.readouterr().out
    assert main(["self-test", "--model", str(out)]) == 0
    assert "the self-test of float32, float16 is in the card" in capsys.readouterr().out
    assert main(["self-test", "--model", str(tmp_path)]) == 1
    assert "card.json cannot be read" in capsys.readouterr().err


def test_int8_without_clips_to_calibrate_with_is_refused(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--run", str(make_run()), "--out", str(tmp_path / "a"), "--int8"]) == 1
    assert "--int8 needs --calibration" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_graph_that_somebody_brings_becomes_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = '\n[scores]\noutput = "scores"\nlabels = "names.csv"\n'
    graph, describe = write_own(tmp_path, patch_graph(batch=1), LOGMEL + scores)
    words = ["import", "--encoder", "onnx", "--graph", str(graph), "--out", str(tmp_path / "own")]
    assert main(words) == 1
    assert "--encoder onnx needs --graph FILE.onnx and --describe FILE.toml" in capsys.readouterr().err
    words += ["--describe", str(describe)]
    assert main([*words, "--mean", "-9", "--fuse", "1,2"]) == 1
    assert "--mean, --fuse: with --encoder onnx the description tells that" in capsys.readouterr().err
    assert main(words) == 1
    assert "names.csv cannot be read" in capsys.readouterr().err
    (tmp_path / "table.txt").write_text("one\ntwo\nthree\n")
    assert main([*words, "--labels", str(tmp_path / "table.txt")]) == 0
    said = capsys.readouterr().out
    assert "the graph as it was brought and the served graph differ by" in said
    assert "Runs one clip at a time: its graph takes one clip at a time." in said
    card = load_card(tmp_path / "own")
    assert (card.licence, card.batching, card.training["weights_file"]) == ("CC0-1.0", "alone", "own.onnx")
    assert card.limitations.endswith("Runs one clip at a time: its graph takes one clip at a time.")
    assert Model.load(tmp_path / "own", device="cpu").heads["scores"].labels == ("one", "two", "three")


def test_a_graph_and_a_description_are_of_their_encoder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import", "--encoder", "logmel-stats", "--graph", "a.onnx", "--out", str(tmp_path / "a")]
    assert main(words) == 1
    assert "--graph and --describe are of --encoder onnx" in capsys.readouterr().err
