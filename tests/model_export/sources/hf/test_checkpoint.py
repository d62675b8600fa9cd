"""A repository of the hub, and what a checkpoint says of itself."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from model_export.errors import ExportError
from model_export.sources.hf.checkpoint import open_checkpoint
from model_export.sources.hf.load import load_hf
from tests.model_export.hub import Hub, oid_of, running_hub
from tests.model_export.sources.hf.checkpoints import write_waveform

NAME = "owner/small-wav2vec2"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repository_is_fetched_with_its_weights_once(hub: Hub, tmp_path: Path) -> None:
    write_waveform(tmp_path / "source", "wav2vec2")
    old = files_of(tmp_path / "source")
    new = old | {"pytorch_model.bin": b"the same again", "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"}
    hub.commits[NAME] = [old, new]
    trained, checkpoint = load_hf(NAME)
    assert (checkpoint.name, checkpoint.licence()) == (NAME, "CC-BY-NC-4.0")
    assert not (checkpoint.folder / "pytorch_model.bin").exists()
    assert trained.training["weights_file"] == NAME
    assert trained.training["revision"] == oid_of(NAME, 1)
    assert open_checkpoint(f"{NAME}@{oid_of(NAME, 0)}").licence() == "Apache-2.0"


def test_a_repository_that_is_not_there_is_said(hub: Hub) -> None:
    with pytest.raises(ExportError, match="owner/other is no folder here, and the hub does not give it"):
        open_checkpoint("owner/other")


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: mit", "MIT"),
        ("license: other\nlicense_name: as-they-say", "as-they-say"),
        ("license: openrail", "openrail"),
        ("tags: [audio]", None),
        ("license: [", None),
    ],
)
def test_the_licence_is_that_of_the_page(front: str, licence: str | None, tmp_path: Path) -> None:
    write_waveform(tmp_path, "wav2vec2")
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# A page\n", encoding="utf-8")
    assert open_checkpoint(str(tmp_path)).licence() == licence
