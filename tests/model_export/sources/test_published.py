"""Every encoder from its published layout, by the real command; what the server makes of it."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from encoders.ast import ASTTags
from model_export.__main__ import main
from model_export.clips import FIXTURES
from model_export.sources.audioset_head import head_of
from model_export.sources.published import TERMS, load_import
from model_export.sources.trained import Trained
from model_export.verify import cosines, distance, distance_of_outputs, output_distance, torch_embedding
from service.inference.card import load_card
from service.inference.heads import Head
from service.inference.model import GRAPH_FILES, Model
from service.inference.session import Session, TensorRT
from service.inference.windows import embed
from service.sound.audio import decode
from tests.published_files import (
    CASES,
    ast_file,
    cnn14_file,
    efficientat_shapes,
    narrow_for_import,
    tensors,
    vggish_file,
    weights_of,
)

Array = NDArray[np.float32]
Imported = Callable[[str], Path]

VARIANTS = [(name, "float32") for name in CASES]
VARIANTS += [
    (name, bits) for name, case in CASES.items() for bits in ("int8", "float16") if f"--{bits}" in case.words
]

# windows, log-mel frames; milliseconds; pooling; samples of the shortest clip
CARDS: dict[str, tuple[Any, ...]] = {
    "vggish": ("exact", 96, 960, 960, 487.5, "mean+max", 15_600),
    "vggish-10-15": ("exact", 16, 960, 160, 87.5, "mean+max", 15_600),
    "cnn14": ("independent", 32, 1024, 10_240, 5115, "mean", 4960),
    "cnn14-3-6": ("exact", 32, 2048, 320, 155, "mean+max", 4960),
    "ast": ("independent", 16, 1024, 10_240, 5127.5, "mean", 2800),
    "efficientat": ("independent", 32, 1024, 320, 0, "mean", 9921),
    "efficientat-9-15": ("independent", 16, 1024, 160, 0, "mean+max", 9921),
    "msm-mae": ("exact", 16, 1040, 160, 75, "mean", 2400),
    "logmel-stats": ("independent", 1, 1000, 10_000, 4995, "mean", 513),
    "byola-2022-2-4": ("exact", 4, 1000, 40, 15, "mean+max", 513),
}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def trained_of(name: str, folder: Path) -> Trained:
    """The encoder in PyTorch, of the file that the folder was made from."""
    words = CASES[name].words
    option = dict(pairwise(words))
    with narrow_for_import():
        return load_import(
            CASES[name].encoder,
            weights_of(name, folder.parent) if CASES[name].file else None,
            mean=float(option["--mean"]) if "--mean" in option else None,
            std=float(option["--std"]) if "--std" in option else None,
            fuse=[int(number) for number in option.get("--fuse", "").split(",") if number],
        )


def sounds(model: Model) -> list[Array]:
    """Half a second, two seconds and a half, and half a minute, at the model's rate."""
    rate = model.card.sample_rate
    birds = decode(FIXTURES / "birds_30s_16k_mono.opus", sample_rate=rate).samples
    speech = decode(FIXTURES / "speech_16k_mono.flac", sample_rate=rate).samples
    return [speech[: rate // 2], speech[: 5 * rate // 2], birds]


def test_the_server_gives_what_pytorch_gives_of_short_and_of_long_clips(
    imported: Imported, name: str
) -> None:
    folder = imported(name)
    trained, model = trained_of(name, folder), Model.load(folder, device="cpu", precision="float32")
    for samples in sounds(model):
        logmel = model.logmel(samples)
        frames, vector = torch_embedding(trained, logmel)
        served = embed(model.run, model.card, model.logmel_blocks(np.array_split(samples, 7)), frames=True)
        assert served.frames is not None
        assert served.frames.shape == frames.shape
        assert distance(served.frames, frames) < 1e-5
        assert distance(served.vector, vector) < 1e-5


@pytest.mark.parametrize(("name", "precision"), VARIANTS)
def test_an_embedding_does_not_depend_on_its_batch(imported: Imported, name: str, precision: Any) -> None:
    model = Model.load(imported(name), device="cpu", precision=precision)
    logmels = [model.logmel(samples)[:, : model.card.windows.frames] for samples in sounds(model)]
    float32 = Model.load(imported(name), device="cpu", precision="float32")
    at_most = max(1e-5, distance_of_outputs(model, float32, sounds(model)))  # rounding may round otherwise
    for logmel, together in zip(logmels, model.run(logmels, frames=True), strict=True):
        (alone,) = model.run([logmel], frames=True)
        assert alone.count == together.count
        assert output_distance(together, alone) < at_most


@pytest.mark.parametrize(("name", "precision"), VARIANTS)
def test_what_stands_beyond_a_clip_changes_nothing_at_all(
    imported: Imported, name: str, precision: str
) -> None:
    folder = imported(name)
    if load_card(folder).batching != "padded":
        pytest.skip("nothing stands there: its batches are of one length")
    n_mels = load_card(folder).frontend.n_mels
    engine = TensorRT(n_mels=n_mels, shortest=8, longest=1000, batch=2, half=False)
    session = Session(folder / GRAPH_FILES[precision], device="cpu", threads=1, tensorrt=engine)
    clean = np.random.default_rng(0).uniform(-12, 2, (2, n_mels, 240)).astype(np.float32)
    spoilt = clean.copy()
    spoilt[0, :, 101:], spoilt[1, :, 199:] = np.nan, 1e30
    names, n_frames = ["frames", "sum", "max", "count"], np.array([101, 199])
    found = session.run(names, {"logmel": spoilt, "n_frames": n_frames})
    for value, expected in zip(
        found, session.run(names, {"logmel": clean, "n_frames": n_frames}), strict=True
    ):
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value, expected)


def test_the_card_says_how_it_is_fed_and_whose_it_is(imported: Imported, name: str) -> None:
    card = load_card(imported(name))
    windows = card.windows
    assert (
        windows.kind, windows.stride, windows.frames, card.frame_period_ms, card.first_frame_centre_ms,
        card.pooling, card.min_samples,
    ) == CARDS[name]  # fmt: skip
    assert card.licence == TERMS[CASES[name].encoder].licence
    assert card.encoder.name == CASES[name].encoder
    assert f"up to {15 if card.sample_rate == 32_000 else 8} kHz" in card.limitations
    assert ("notice" in card.training) == (name != "logmel-stats")


@pytest.mark.parametrize("n_samples", [1, 600])
def test_a_clip_that_is_too_short_is_heard_with_silence_behind_it(
    imported: Imported, name: str, n_samples: int
) -> None:
    model = Model.load(imported(name), device="cpu", precision="float32")
    served = embed(model.run, model.card, [model.logmel(sounds(model)[1][:n_samples])], frames=True)
    assert served.frames is not None
    assert len(served.frames) == {"vggish-10-15": 6, "efficientat-9-15": 2}.get(name, 1)
    assert np.isfinite(served.vector).all()


def test_the_graph_tells_nothing_of_the_machine_that_wrote_it(imported: Imported, name: str) -> None:
    folder = imported(name)
    for file in [file for file in load_card(folder).files if file.endswith(".onnx")]:
        graph = onnx.load(folder / file)
        assert str(FIXTURES.parents[1]).encode() not in graph.SerializeToString()
        assert (graph.ir_version, graph.producer_name) in {(9, "viola"), (9, "onnx.quantize")}
        assert {node.op_type for node in graph.graph.node}.isdisjoint({"If", "Loop", "Scan"})
        domains = {each.domain for each in graph.opset_import}
        assert domains == {""} if "int8" not in file else domains <= {"", "com.microsoft"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "--int8" in case.words])
def test_int8_is_near_float32_and_smaller(imported: Imported, name: str) -> None:
    folder = imported(name)
    exact, quantised = (Model.load(folder, device="cpu", precision=each) for each in ("float32", "int8"))
    assert cosines(quantised, exact, [exact.logmel(samples) for samples in sounds(exact)]).mean() > 0.999
    assert 0.999 <= float(str(exact.card.variants["int8"]["cosine_mean"])) <= 1
    if name == "ast":  # the others are too narrow for their weights to weigh anything
        sizes = [(folder / GRAPH_FILES[each]).stat().st_size for each in ("int8", "float32")]
        assert sizes[0] < 0.4 * sizes[1]


# The head


@pytest.mark.parametrize("name", ["cnn14", "ast", "efficientat"])
def test_the_published_tags_are_a_head(imported: Imported, name: str) -> None:
    folder = imported(name)
    model, tags = Model.load(folder, device="cpu", precision="float32"), trained_of(name, folder).tags
    assert tags is not None
    head = model.heads["audioset"]
    assert (len(head.labels), head.labels[0], head.task) == (527, "audioset_000", "multilabel")
    vectors = np.stack([embed(model.run, model.card, [model.logmel(s)]).vector for s in sounds(model)])
    with torch.no_grad():
        expected = torch.sigmoid(tags(torch.from_numpy(vectors))).numpy()
    np.testing.assert_allclose(head.score(vectors), expected, atol=1e-5)


def test_the_head_of_ast_normalises_as_torch_does() -> None:
    torch.manual_seed(0)
    tags = ASTTags()
    with torch.no_grad():
        tags.norm.weight.uniform_(0.5, 1.5)
        tags.norm.bias.normal_()
        tensors, metadata = head_of(tags)
        vectors = 3 + 5 * torch.randn(4, 768)
        expected = torch.sigmoid(tags(vectors)).numpy()
    none, one = np.zeros(768, np.float32), np.ones(768, np.float32)
    eps = float(metadata["layer_norm_eps"])
    head = Head("tags", (), "multilabel", none, one, tensors["weight"], tensors["bias"], layer_norm_eps=eps)
    np.testing.assert_allclose(head.score(vectors.numpy()), expected, atol=1e-6)


# What is refused


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of it."""
    with narrow_for_import():
        assert main(["import", *words]) == 1
    return capsys.readouterr().err


def test_another_networks_file_is_called_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(vggish_file(), tmp_path / "a.pth")
    words = ("--encoder", "cnn14", "--weights", str(tmp_path / "a.pth"), "--out", str(tmp_path / "a"))
    assert "looks like VGGish" in refused(*words, capsys=capsys)
    torch.save(ast_file() | {"module.v.new": torch.zeros(1)}, tmp_path / "a.pth")
    words = ("--encoder", "ast", *words[2:])
    assert "it has new, which the network has not" in refused(*words, capsys=capsys)
    (tmp_path / "a.pth").write_bytes(b"half a fi")
    assert "cannot be read as a file of torch.save" in refused(*words, capsys=capsys)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--encoder cnn14", "--weights is needed: the file of cnn14 that you have"),
        ("--encoder logmel-stats --weights W", "logmel-stats has no weights: leave --weights out"),
        ("--encoder logmel-stats --float16", "logmel-stats has no weights to write in fewer bits"),
        ("--encoder logmel-stats --fuse 1", "logmel-stats has no layers to fuse"),
        ("--encoder logmel-stats --head", "--head: logmel-stats has no published tags"),
        ("--encoder cnn14 --weights W --mean 1 --std 1", "brings its own normalisation (0, 1)"),
        ("--encoder msm-mae --weights W", "--mean and --std are needed: the published file of msm-mae"),
        ("--encoder msm-mae --weights W --mean 0 --std 0", "std must be positive"),
        ("--encoder cnn14 --weights W --fuse 3,7", "cnn14 has no layer 7 to fuse, only 1, 2, 3, 4, 5, 6"),
        ("--encoder cnn14 --weights W --fuse 3,6 --head", "--head: cnn14 #3 #6 has no published tags"),
        (
            "--encoder efficientat --weights E --fuse 9,15 --head",
            "reads the plain embedding, not fused layers",
        ),
        ("--encoder efficientat --weights E --fuse 9,17", "efficientat has no layer 17 to fuse"),
        ("--encoder efficientat --weights E --mean 1 --std 1", "brings its own normalisation (-4.5, 5)"),
        ("--encoder cnn14 --weights W --labels L", "--labels names the classes of a head: add --head"),
    ],
)
def test_what_does_not_go_together_is_said(
    words: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(cnn14_file(last=16), tmp_path / "W")
    torch.save(tensors(efficientat_shapes()), tmp_path / "E")
    names = words.replace(" W", f" {tmp_path / 'W'}").replace(" E ", f" {tmp_path / 'E'} ").split()
    assert sentence in refused(*names, "--out", str(tmp_path / "a"), capsys=capsys)
    assert not (tmp_path / "a").exists()
