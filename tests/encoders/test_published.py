"""Published layouts: random weights under the published names in, their encoder out; wrong files refused."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import ASTConfig, ASTForAudioClassification

import encoders
from encoders.cnn14 import CNN14
from encoders.efficientat import EfficientAT, EfficientATTags
from encoders.published import WrongWeightsError, _width, load_published, plain_byola_key

from ..published_files import (
    SMALL_CHANNELS,
    ast_shapes,
    cnn14_file,
    efficientat_shapes,
    hugging_face,
    msm_mae_file,
    tensors,
    vggish_file,
)
from .conftest import look_trained

pytestmark = pytest.mark.usefixtures("narrow")

WIDTH = 768


@pytest.mark.parametrize("fc", ["fc", "embeddings"])
def test_both_ports_of_vggish_give_the_same_network(fc: str) -> None:
    file = vggish_file(fc)
    found = load_published("vggish", file)
    assert not found.ignored
    assert found.tags is None
    state = found.encoder.state_dict()
    assert len(state) == 18
    for key, value in file.items():
        assert torch.equal(state[key.replace("embeddings", "fc")], value)


def test_the_pca_of_the_port_is_left_aside_with_its_reason() -> None:
    file = vggish_file("embeddings") | {"pproc.pca_means": torch.zeros(128)}
    ignored = load_published("vggish", file).ignored
    assert list(ignored) == ["pproc.pca_means"]
    assert "PCA" in ignored["pproc.pca_means"]


def test_what_lies_behind_the_last_layer_is_left_aside_but_must_be_right() -> None:
    found = load_published("vggish", vggish_file(), fuse=(10, 15))
    assert found.parameters == {"fuse": (10, 15)}
    assert found.ignored.keys() == {f"fc.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    shorter = load_published("vggish-4k", vggish_file())
    assert shorter.ignored.keys() == {f"fc.{i}.{kind}" for i in (2, 4) for kind in ("weight", "bias")}
    with pytest.raises(WrongWeightsError, match=r"fc\.2\.bias has the shape \[3\], not \[20\]"):
        load_published("vggish", vggish_file() | {"fc.2.bias": torch.zeros(3)}, fuse=(10, 15))


def test_cnn14_gives_its_embedding_and_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.cnn14.CHANNELS", (*SMALL_CHANNELS[:5], 2048))
    file = cnn14_file()
    found = load_published("cnn14", file)
    state = found.encoder.state_dict()
    assert torch.equal(state["conv_block4.conv2.weight"], file["model"]["conv_block4.conv2.weight"])
    assert set(found.ignored) == {key for key in file["model"] if "extractor" in key}
    assert found.tags is not None
    assert torch.equal(found.tags.state_dict()["weight"], file["model"]["fc_audioset.weight"])

    fused = load_published("cnn14", file, fuse=(3, 5))
    assert isinstance(fused.encoder, CNN14)
    assert fused.tags is None
    assert "fc_audioset.weight" not in fused.encoder.state_dict()
    assert {"fc1.weight", "conv_block6.conv1.weight", "tags.weight"} <= fused.ignored.keys()

    # A file of torch before 0.4.1 counts no batches.
    uncounted = {key: value for key, value in file["model"].items() if "num_batches" not in key}
    load_published("cnn14", {"model": uncounted}, fuse=(1,))


def test_cnn14_for_another_rate_is_told_apart_by_its_front_end() -> None:
    with pytest.raises(WrongWeightsError, match=r"CNN14 of PANNs for 32 kHz .* for 16 kHz was expected"):
        load_published("cnn14", cnn14_file(window=1024))


def test_both_files_of_ast_give_the_same_network_and_tags() -> None:
    state = tensors(ast_shapes())
    assert len(state) == 159
    original = load_published("ast", {f"module.{key}": value for key, value in state.items()}, fuse=(1, 2))
    assert {"v.head.weight", "v.head_dist.bias", "blocks.2.norm1.weight"} <= original.ignored.keys()
    port = load_published("ast", hugging_face(state), fuse=(1, 2))
    theirs, ours = port.encoder.state_dict(), original.encoder.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert torch.equal(ours["blocks.1.attn.qkv.weight"], state["v.blocks.1.attn.qkv.weight"])


def test_the_ports_names_are_those_that_transformers_writes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 24, "max_length": 100}
    ASTForAudioClassification(ASTConfig(**sizes)).save_pretrained(tmp_path)
    written = safetensors.torch.load_file(tmp_path / "model.safetensors")
    with torch.device("meta"):
        original = {key: torch.empty(shape) for key, shape in ast_shapes().items()}
    assert hugging_face(original).keys() == written.keys()


def test_asts_tags_read_the_plain_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders.AST, "layers", (1, 2))
    state = tensors(ast_shapes(n_blocks=2))
    tags = load_published("ast", state).tags
    assert tags is not None
    vector = torch.randn(768)
    normal = (vector - vector.mean()) / (vector.var(unbiased=False) + 1e-5).sqrt()
    normal = normal * state["mlp_head.0.weight"] + state["mlp_head.0.bias"]
    expected = state["mlp_head.1.weight"] @ normal + state["mlp_head.1.bias"]
    torch.testing.assert_close(tags(vector), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [0.2, 0.4])
def test_the_width_of_efficientat_is_told_from_its_shapes(width: float) -> None:
    file = tensors(efficientat_shapes(width))
    found = load_published("efficientat", file)
    assert found.parameters == {"width": width}
    assert not found.ignored
    state = found.encoder.state_dict()
    assert torch.equal(
        state["features.11.block.2.fc2.bias"], file["features.11.block.2.conc_se_layers.0.fc2.bias"]
    )
    assert torch.equal(state["features.1.block.1.1.running_var"], file["features.1.block.1.1.running_var"])
    assert found.tags is not None
    assert torch.equal(found.tags.state_dict()["hidden.weight"], file["classifier.2.weight"])
    assert torch.equal(found.tags.state_dict()["linear.bias"], file["classifier.5.bias"])


@pytest.mark.parametrize("width", [0.1, 0.5, 0.65, 0.725, 1.0, 2.0, 3.0, 4.0])
def test_any_width_is_told_to_the_thousandth_where_it_matters(width: float) -> None:
    with torch.device("meta"):
        encoder, tags = EfficientAT(width), EfficientATTags(width)
    state = {key: value.shape for key, value in encoder.state_dict().items()}
    state |= {f"tags.{key}": value.shape for key, value in tags.state_dict().items()}
    assert _width({key: torch.empty(shape, device="meta") for key, shape in state.items()}) == width


def test_fused_efficientat_leaves_its_tags_aside() -> None:
    found = load_published("efficientat", tensors(efficientat_shapes()), fuse=(9, 15))
    assert found.parameters == {"width": 0.2, "fuse": (9, 15)}
    assert found.tags is None
    assert found.ignored["tags.hidden.weight"] == "reads tags from the plain embedding, not from fused layers"
    assert {key.split(".")[0] for key in found.ignored} == {"tags", "features"}


def test_what_does_not_fit_a_width_is_told_by_its_name() -> None:
    file = tensors(efficientat_shapes())
    with pytest.raises(
        WrongWeightsError, match=r"features\.9\.block\.0\.0\.weight has the shape \[44, 16, 1, 1\]"
    ):
        load_published("efficientat", file | {"features.9.block.0.0.weight": torch.zeros(44, 16, 1, 1)})
    with pytest.raises(WrongWeightsError, match="a multiple of 8: 12 belong to no width"):
        load_published("efficientat", file | {"classifier.2.bias": torch.zeros(12)})
    del file["features.16.1.running_mean"]
    with pytest.raises(
        WrongWeightsError, match=r"looks like EfficientAT, but it lacks features\.16\.1\.running"
    ):
        load_published("efficientat", file)
    images = {"features.0.0.weight": torch.zeros(1), "features.1.block.0.0.weight": torch.zeros(1)}
    with pytest.raises(WrongWeightsError, match="another MobileNet, not EfficientAT"):
        load_published("efficientat", images)


@pytest.mark.parametrize(("columns", "unit_frames"), [(13, 208), (32, 512)])
def test_msm_mae_is_read_without_its_decoder(columns: int, unit_frames: int) -> None:
    content = msm_mae_file(columns)
    file = content["model"]
    found = load_published("msm-mae", content)
    assert found.parameters == {"unit_frames": unit_frames}
    assert set(found.ignored) == {key for key in file if key.startswith(("decoder", "mask"))}
    bias = found.encoder.state_dict()["blocks.1.attn.qkv.bias"]
    q, k, v = bias.chunk(3)
    assert torch.equal(q, file["blocks.1.attn.q_bias"])
    assert not k.any()
    assert torch.equal(v, file["blocks.1.attn.v_bias"])


def test_a_file_of_another_network_is_called_by_its_name() -> None:
    with pytest.raises(
        WrongWeightsError, match=r"looks like VGGish as tcvrick.* For cnn14, CNN14 of PANNs was"
    ):
        load_published("cnn14", vggish_file())
    with pytest.raises(WrongWeightsError, match="looks like the PCA of VGGish"):
        load_published("vggish", {"pca_eigen_vectors": torch.eye(2), "pca_means": torch.zeros(2)})
    with pytest.raises(WrongWeightsError, match=r"looks like BYOL-A v2"):
        load_published("vggish", encoders.build("byola-2022").state_dict())
    with pytest.raises(
        WrongWeightsError, match=r"nothing that viola knows: its keys are a, b\. For ast, AST as"
    ):
        load_published("ast", {"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(WrongWeightsError, match="holds a list, not a dict"):
        load_published("ast", [1, 2])


def test_every_key_is_accounted_for() -> None:
    lacking = vggish_file()
    del lacking["features.8.bias"]
    with pytest.raises(WrongWeightsError, match=r"looks like VGGish.*lacks features\.8\.bias"):
        load_published("vggish", lacking)
    with pytest.raises(WrongWeightsError, match=r"it has extra, which the network has not"):
        load_published("vggish", vggish_file() | {"extra": torch.zeros(1)})
    with pytest.raises(WrongWeightsError, match=r"fc\.4\.bias holds NaN"):
        load_published("vggish", vggish_file() | {"fc.4.bias": torch.full((12,), torch.nan)})
    with pytest.raises(WrongWeightsError, match=r"fc\.4\.bias is a int, not a tensor"):
        load_published("vggish", vggish_file() | {"fc.4.bias": 3})  # type: ignore[dict-item]


def test_the_layered_variant_of_byola_has_other_names_for_the_same_weights() -> None:
    encoder = encoders.build("byola-2020", d=2048)
    look_trained(encoder)
    layered = [
        f"{name}.{i}.{kind}"
        for name in ("conv1", "conv2", "conv3")
        for i in (0, 1)
        for kind in ("weight", "bias")
    ]
    layered += [
        f"conv{k}.1.{kind}"
        for k in (1, 2, 3)
        for kind in ("running_mean", "running_var", "num_batches_tracked")
    ]
    layered += ["fc1.0.weight", "fc1.0.bias", "fc2.1.weight", "fc2.1.bias"]
    assert {plain_byola_key(key) for key in layered} == encoder.state_dict().keys()
