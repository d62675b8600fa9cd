"""The layers of an encoder, alone and in pairs: of a run, a model folder and a published checkpoint."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import encoders
from encoders.frontend import BYOLA
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import decode
from tests.published_files import efficientat_shapes, tensors
from training.__main__ import main
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.probe.evaluate import Result
from training.probe.layers import (
    OWN,
    Probed,
    embed_layers,
    layer_table,
    load_probed,
    log_mel_of,
    pooled,
    probe,
    promising_pairs,
)

SHIPPED = Path(__file__).parents[3] / "models" / "byola"


def result(task: str, value: float) -> Result:
    return Result(task, "accuracy", value, (value, value), 2, 10, ("test",), (42,), 3e-4, ((value,),))


# What is probed


def test_the_layers_of_a_model_are_those_of_its_own_vectors(fixtures_dir: Path) -> None:
    """byola-2022 gives its second block and its last layer; in a fused block the bands change fastest."""
    probed = load_probed(SHIPPED)
    assert probed.sizes == {1: 2048, 2: 1024, 3: 2048, 4: 2048}
    path = fixtures_dir / "dog_bark_44k1_mono.ogg"
    vectors = embed_layers(probed, [path])[path]
    assert {name: len(vector) for name, vector in vectors.items()} == {
        "#1": 2048,
        "#2": 1024,
        "#3": 2048,
        "#4": 2048,
        OWN: 3072,
    }
    model = Model.load(SHIPPED, device="cpu", precision="float32")
    served = embed(model.run, model.card, [model.logmel(decode(path, sample_rate=16_000).samples)]).vector
    np.testing.assert_allclose(vectors[OWN], served, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(vectors["#4"], served[1024:], rtol=1e-3, atol=1e-3)
    block = served[:1024].reshape(16, 64)  # (F, C)
    np.testing.assert_allclose(vectors["#2"].reshape(64, 16), block.T, rtol=1e-3, atol=1e-3)


def test_a_run_is_probed_by_the_weights_that_an_export_takes(finished: Path, fixtures_dir: Path) -> None:
    path = fixtures_dir / "click_10ms_16k_mono.wav"
    state = checkpoint.load(finished)
    encoder = encoders.build("byola-2022", n_mels=16, d=320).eval()
    encoder.load_state_dict({k[15:]: v for k, v in state["model"].items() if k.startswith("online.encoder.")})
    probed = load_probed(finished)
    samples = decode(path, sample_rate=16_000).samples
    logmel = log_mel_of(replace(BYOLA, n_mels=16))(np.pad(samples, (0, 513 - len(samples))))
    x = (torch.from_numpy(logmel)[None, None] - probed.mean) / probed.std
    with torch.inference_mode():
        np.testing.assert_allclose(embed_layers(probed, [path])[path][OWN], encoder.pool(encoder(x))[0])


def test_a_published_checkpoint_is_probed_by_its_encoders_layers(fixtures_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vggish = encoders.build_any("vggish")
    torch.save(vggish.state_dict(), tmp_path / "vggish.pth")
    probed = load_probed(tmp_path / "vggish.pth", encoder="vggish")
    assert tuple(probed.sizes) == (2, 5, 8, 10, 13, 15, 18, 20, 22)
    assert probed.sizes[10] + probed.sizes[15] == 8192  # Fusion #10 #15
    path = fixtures_dir / "click_10ms_16k_mono.wav"  # filled up to 0.975 s
    vectors = embed_layers(probed, [path])[path]
    samples = np.pad(decode(path, sample_rate=16_000).samples, (0, 15_600 - 160))
    x = torch.from_numpy(log_mel_of(vggish.frontend)(samples))[None, None]
    with torch.inference_mode():
        np.testing.assert_allclose(vectors["#22"], vggish.pool(vggish.eval()(x))[0], rtol=1e-4, atol=1e-6)


def test_the_layers_of_a_narrower_checkpoint_have_its_own_sizes(fixtures_dir: Path, tmp_path: Path) -> None:
    torch.save(tensors(efficientat_shapes(0.2)), tmp_path / "weights.pt")
    probed = load_probed(tmp_path / "weights.pt", encoder="efficientat")
    assert (probed.sizes[9], probed.sizes[15], probed.sizes[16]) == (16 * 8, 32 * 4, 192 * 4)
    path = fixtures_dir / "click_10ms_16k_mono.wav"
    vectors = embed_layers(probed, [path])[path]
    assert {name: len(vector) for name, vector in vectors.items()} == {
        f"#{number}": size for number, size in probed.sizes.items()
    }


@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        (None, "neither a run's folder nor a model's: name with --encoder"),
        ("vggish", "is no file"),
        ("logmel-stats", "'logmel-stats' has no layers to probe: there are vggish, vggish-4k, cnn14, ast"),
    ],
)
def test_what_cannot_be_probed_is_said(tmp_path: Path, encoder: str | None, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        load_probed(tmp_path, encoder=encoder)


def test_independent_windows_count_by_their_length() -> None:
    stats = encoders.build_any("logmel-stats")
    frames = stats.windows.frames
    x = torch.cat(
        [torch.zeros(1, 1, stats.n_mels, frames), torch.ones(1, 1, stats.n_mels, frames // 2)], dim=3
    )
    means = pooled(stats, x)[: stats.n_mels]
    np.testing.assert_allclose(means, 1 / 3, rtol=1e-6)


# Pairs


def test_the_pairs_that_are_tried_complement_each_other() -> None:
    singles = {
        1: [result("birds", 0.9), result("words", 0.1)],
        2: [result("birds", 0.6), result("words", 0.6)],
        3: [result("birds", 0.1), result("words", 0.8)],
    }
    assert promising_pairs(singles, 2) == [(1, 3), (1, 2)]  # 0.85, 0.75; (2, 3) has 0.7


def test_every_layer_is_evaluated_alone_then_the_best_pairs_then_the_own_output() -> None:
    encoder = encoders.build("byola-2022", n_mels=16, d=320)
    probed = Probed("byola-2022", encoder, {1: 512, 2: 256, 3: 2048}, encoder, 0.0, 1.0)
    asked = []

    def evaluated(layers: tuple[str, ...]) -> list[Result]:
        asked.append(layers)
        return [result("birds", 0.1 * len(asked))]

    results = probe(probed, evaluated, pairs=1, report=lambda sentence: None)
    assert asked == [("#1",), ("#2",), ("#3",), ("#1", "#3"), (OWN,)]
    assert list(results) == ["#1", "#2", "#3", "#1#3", OWN]
    assert layer_table(results).splitlines()[-1] == "| own output | 0.500 | 0.500 |"


# The command


def test_the_command_writes_numbers_and_a_heat_map_of_two_panels(
    finished: Path, fixtures_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "dog_bark_44k1_mono.ogg",
        "rain_44k1_mono.mp3",
        "digit3_8k_mono_ulaw.wav",
        "digit5_8k_mono_u8.wav",
    ]
    rows = []
    for task, pair in (("esc50", names[:2]), ("digits", names[2:])):
        for name in pair:
            for split in ("train", "valid", "test"):  # copies: one file in two splits is refused
                shutil.copy(fixtures_dir / name, tmp_path / f"{split}-{name}")
                rows.append(f"{split}-{name},{task},{name[:6]},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,task,label,split", *rows]))
    out = tmp_path / "layers.json"
    line = ["probe-layers", "--model", str(finished), "--data", str(tmp_path / "labels.csv")]
    assert main([*line, "--out", str(out), "--seeds", "42", "--pairs", "2", "--workers", "1"]) == 0
    written = json.loads(out.read_text())
    assert written["encoder"] == "byola-2022"
    found = written["results"]
    assert list(found)[:4] == ["#1", "#2", "#3", "#4"]
    assert len(found) == 7
    assert [task["task"] for task in found["#1"]["tasks"]] == ["esc50", "digits"]
    assert found["own output"]["tasks"][0]["value"] == 1.0  # it has heard these very clips
    table = capsys.readouterr().out
    assert table.startswith("| layers | esc50 | digits | mean |")
    with Image.open(tmp_path / "layers.png") as picture:
        assert picture.width > 300
