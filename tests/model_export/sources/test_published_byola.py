"""The published layouts, with random weights: the real files may be no test fixture (their licence)."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from encoders.published import LAYERED_BYOLA
from model_export.errors import ExportError
from model_export.sources.published_byola import NOTICE, load_published
from model_export.sources.trained import Trained

CONVOLUTIONS = {"byola-2020": (0, 4, 8), "byola-2022": (0, 4)}
LINEARS = {"byola-2020": {0: (512, 512), 3: (512, 512)}, "byola-2022": {0: (2048, 1024), 3: (2048, 2048)}}
ENTRIES = {"byola-2020": 25, "byola-2022": 18}


def published_state(name: str) -> dict[str, Tensor]:
    """The key names and shapes of the published files, written down by hand."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    for layer in CONVOLUTIONS[name]:
        state[f"features.{layer}.weight"] = torch.randn(64, 64 if layer else 1, 3, 3) / 24
        state[f"features.{layer}.bias"] = torch.randn(64)
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"features.{layer + 1}.{key}"] = 0.5 + torch.rand(64)
        state[f"features.{layer + 1}.num_batches_tracked"] = torch.tensor(1_534_402)
    for layer, shape in LINEARS[name].items():
        state[f"fc.{layer}.weight"] = torch.randn(shape) / 32
        state[f"fc.{layer}.bias"] = torch.randn(shape[0])
    return state


def load(name: str, content: Any, folder: Path) -> Trained:
    path = folder / "weights.pth"
    torch.save(content, path)
    return load_published(name, path, mean=-9.66, std=4.72)


@pytest.mark.parametrize("name", ["byola-2020", "byola-2022"])
def test_the_published_layout_is_read_and_sizes_come_from_shapes(name: str, tmp_path: Path) -> None:
    state = published_state(name)
    assert len(state) == ENTRIES[name]
    trained = load(name, state, tmp_path)
    assert trained.encoder.embedding_size == {"byola-2020": 512, "byola-2022": 3072}[name]
    torch.testing.assert_close(trained.encoder.state_dict()["fc.3.weight"], state["fc.3.weight"])
    assert trained.training["notice"] == NOTICE


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "learner.online_encoder.net."])
def test_wrappers_and_prefixes_are_taken_off(wrapper: str | None, prefix: str, tmp_path: Path) -> None:
    state = {prefix + key: value for key, value in published_state("byola-2020").items()}
    content = {wrapper: state, "epoch": 100} if wrapper else state
    assert load("byola-2020", content, tmp_path).parameters == {"n_mels": 64, "d": 512}


def test_the_layered_variant_of_v1_holds_the_same_weights(tmp_path: Path) -> None:
    state = published_state("byola-2020")
    layered = {plain: name for name, plain in LAYERED_BYOLA.items()}
    renamed = {
        ".".join(["model", layered[stem], kind]): value
        for (stem, _, kind), value in ((key.rpartition("."), value) for key, value in state.items())
    }
    found = load("byola-2020", renamed, tmp_path).encoder.state_dict()
    assert all(torch.equal(found[key].double(), state[key].double()) for key in state)


def test_files_of_old_versions_of_torch_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "legacy.pth"
    torch.save(published_state("byola-2020"), path, _use_new_zipfile_serialization=False)
    assert load_published("byola-2020", path, mean=-9.66, std=4.72).parameters == {"n_mels": 64, "d": 512}


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(published_state("byola-2020"), path)
    assert load_published("byola-2020", path, mean=0, std=1).parameters["d"] == 512


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features.5.running_var": None}, r"lacks features\.5\.running_var"),
        ({"projector.0.weight": torch.zeros(1)}, r"it has projector\.0\.weight, which the encoder has not"),
        (
            {"features.4.weight": torch.zeros(64, 64, 1, 1)},
            r"features\.4\.weight has the shape \[64, 64, 1, 1\]",
        ),
        (
            {"fc.0.weight": torch.zeros(512, 256)},
            r"fc\.0\.weight has the shape \[512, 256\], not \[512, 512\]",
        ),
        ({"fc.3.bias": torch.full((512,), torch.inf)}, r"fc\.3\.bias holds NaN or infinite"),
        ({"fc.3.bias": "lost"}, r"fc\.3\.bias is a str, not a tensor"),
        ({"fc.3.weight": None}, r"lacks the matrix fc\.3\.weight"),
        ({"target.fc.0.bias": torch.zeros(1)}, r"several encoders, under ``, `target`"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    state = {**published_state("byola-2020"), **change}
    with pytest.raises(ExportError, match=sentence):
        load("byola-2020", {key: value for key, value in state.items() if value is not None}, tmp_path)


@pytest.mark.parametrize(("name", "other"), [("byola-2020", "byola-2022"), ("byola-2022", "byola-2020")])
def test_the_other_versions_file_is_recognised(name: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"looks like {other} .* import it with --encoder {other}"):
        load(name, published_state(other), tmp_path)


def test_files_that_hold_no_encoder_are_said_to(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no BYOL-A encoder"):
        load("byola-2020", {"conv1.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(ExportError, match="holds a list"):
        load("byola-2020", [1, 2], tmp_path)
    with pytest.raises(ExportError, match="cannot be read"):
        load("byola-2020", Path("a class, which could run code"), tmp_path)
    with pytest.raises(ExportError, match="does not exist"):
        load_published("byola-2020", tmp_path / "nothing.pth", mean=0, std=1)
    (tmp_path / "broken.safetensors").write_bytes(b"....")
    with pytest.raises(ExportError, match="safetensors"):
        load_published("byola-2020", tmp_path / "broken.safetensors", mean=0, std=1)


def test_statistics_are_asked_for_with_the_published_ones_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--mean and --std are needed.*-9\.660292"):
        load_published("byola-2020", tmp_path / "any.pth", mean=None, std=1)
    with pytest.raises(ExportError, match="std must be positive"):
        load_published("byola-2020", tmp_path / "any.pth", mean=0, std=0)
