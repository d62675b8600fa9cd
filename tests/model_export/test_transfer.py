"""Model folders to the hub and back, as `huggingface_hub` speaks to it, and to and from URLs."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from model_export.__main__ import main
from model_export.errors import ExportError
from model_export.places import LocalFolder, place_of
from model_export.transfer import pull, push
from service.errors import ModelFolderError
from service.inference.card import load_card
from tests.model_export.hub import Hub, running_hub

# huggingface_hub hands httpx what it uploads in a way that httpx calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

OWN = Path(__file__).parents[2] / "models" / "byola" / "card.json"
NAME = "hf://listeners/small"


def write_model(folder: Path, version: str = "1.0.0", **files: bytes) -> Path:
    """A folder whose files fit its card; that they are no networks does not matter on their way."""
    contents = {"encoder.onnx": b"a network", "frontend.safetensors": b"a window", **files}
    contents |= {"heads/dogs.safetensors": b"a head of " + version.encode()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    card: dict[str, Any] = json.loads(OWN.read_text())
    card |= {"name": "small", "version": version, "projection": None, "variants": {}}
    card["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "mine")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
        yield hub


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://models/small"
    fsspec.filesystem("memory").store.clear()


def test_what_is_pushed_to_the_hub_is_pulled_bit_by_bit(hub: Hub, model: Path, tmp_path: Path) -> None:
    assert push(model, NAME, force=False, private=True).startswith(f"{hub.url}/listeners/small/commit/")
    assert hub.messages == ["small 1.0.0"]
    assert hub.private == {"listeners/small": "private"}
    assert hub.large.keys() == {hashlib.sha256(b"a network").hexdigest()}
    assert b"license: cc-by-sa-4.0" in hub.files("listeners/small")["README.md"]
    assert pull(NAME, tmp_path / "theirs", force=False) == load_card(model)
    assert contents_of(tmp_path / "theirs") == contents_of(model)


def test_a_second_push_is_one_more_commit_and_the_first_can_still_be_pulled(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    first = write_model(tmp_path / "first", **{"encoder.int8.onnx": b"in 8 bits"})
    commit = push(first, NAME, force=False, private=False).rpartition("/")[2]
    push(write_model(tmp_path / "second", "2.0.0"), NAME, force=False, private=False)
    assert len(hub.commits["listeners/small"]) == 3  # the empty one, too
    assert "encoder.int8.onnx" not in hub.files("listeners/small")
    assert pull(NAME, tmp_path / "newest", force=False).version == "2.0.0"
    assert pull(f"{NAME}@{commit}", tmp_path / "older", force=False).version == "1.0.0"
    assert contents_of(tmp_path / "older") == contents_of(first)


def test_a_file_that_is_damaged_on_its_way_leaves_nothing(hub: Hub, model: Path, tmp_path: Path) -> None:
    push(model, NAME, force=False, private=False)
    hub.damages = "frontend.safetensors"
    with pytest.raises(ModelFolderError, match=r"frontend\.safetensors is not the file of the card"):
        pull(NAME, tmp_path / "models" / "theirs", force=False)
    assert list((tmp_path / "models").iterdir()) == []


def test_what_the_hub_does_not_have_is_said(hub: Hub, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no model folder: it has no card\.json"):
        pull("hf://nobody/nothing", tmp_path / "a", force=False)
    push(model, NAME, force=False, private=False)
    with pytest.raises(ExportError, match=r"cannot be read: .*Revision"):
        pull(f"{NAME}@never", tmp_path / "a", force=False)
    for wrong in ("hf://small", "hf://a/b/c", "models/small"):
        with pytest.raises(ExportError, match="OWNER/NAME"):
            push(model, wrong, force=False, private=False)


def test_a_page_of_ones_own_is_pushed_as_it_is(hub: Hub, model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\nmine")
    push(model, NAME, force=False, private=False)
    assert hub.files("listeners/small")["README.md"].endswith(b"mine")


def test_a_url_of_any_file_system_holds_a_folder(memory: str, model: Path, tmp_path: Path) -> None:
    push(model, memory, force=False, private=False)
    pull(memory, tmp_path / "theirs", force=False)
    assert contents_of(tmp_path / "theirs") == contents_of(model)
    with pytest.raises(ExportError, match="replace it with --force"):
        push(model, memory, force=False, private=False)


def test_a_folder_at_a_url_is_replaced_as_a_whole(memory: str, tmp_path: Path) -> None:
    push(write_model(tmp_path / "a", **{"encoder.int8.onnx": b"old"}), memory, force=False, private=False)
    push(write_model(tmp_path / "b", "2.0.0"), memory, force=True, private=False)
    assert pull(memory, tmp_path / "c", force=False).version == "2.0.0"
    assert not fsspec.filesystem("memory").exists("/models/small/encoder.int8.onnx")


def test_a_push_that_fails_half_way_leaves_no_model_folder(
    memory: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card goes first and comes last."""
    push(model, memory, force=False, private=False)
    elsewhere = type(fsspec.filesystem("memory"))
    whole = elsewhere.put_file

    def put_file(self: Any, local: str, remote: str, **options: Any) -> None:
        if remote.endswith("dogs.safetensors"):
            raise OSError("the network is down")
        whole(self, local, remote, **options)

    monkeypatch.setattr(elsewhere, "put_file", put_file)
    with pytest.raises(ExportError, match="no model folder until it is pushed again: the network is down"):
        push(model, memory, force=True, private=False)
    with pytest.raises(ExportError, match=r"it has no card\.json"):
        pull(memory, tmp_path / "theirs", force=False)
    assert not (tmp_path / "theirs").exists()


def test_a_url_of_this_machine_is_a_folder_that_appears_in_one_step(model: Path, tmp_path: Path) -> None:
    url = (tmp_path / "shared" / "small").as_uri()
    assert isinstance(place_of(url), LocalFolder)
    push(model, url, force=False, private=False)
    assert contents_of(tmp_path / "shared" / "small").keys() == contents_of(model).keys() | {"README.md"}
    with pytest.raises(ExportError, match="exists"):
        push(model, url, force=False, private=False)
    pull(url, tmp_path / "back", force=False)
    assert contents_of(tmp_path / "back") == contents_of(model)


def test_the_commands_say_where_it_is_and_what_is_wrong(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = (tmp_path / "shared").as_uri()
    push_it = ["push", "--model", str(model), "--to", url]
    assert main(push_it) == 0
    assert f"{model} is at {tmp_path / 'shared'}" in capsys.readouterr().out
    assert main(push_it) == 1
    assert "error: " in capsys.readouterr().err
    assert main([*push_it, "--force"]) == 0
    assert main(["pull", "--from", url, "--out", str(tmp_path / "back")]) == 0
    assert "encoder.onnx" in capsys.readouterr().out
    assert contents_of(tmp_path / "back") == contents_of(model)


def test_a_folder_that_does_not_fit_its_card_is_not_pushed(memory: str, model: Path) -> None:
    (model / "encoder.onnx").write_bytes(b"another network")
    with pytest.raises(ModelFolderError, match="not the file of the card"):
        push(model, memory, force=False, private=False)
    assert fsspec.filesystem("memory").find("/models/small") == []


def test_a_card_from_elsewhere_writes_nothing_outside_its_folder(
    memory: str, model: Path, tmp_path: Path
) -> None:
    push(model, memory, force=False, private=False)
    elsewhere = fsspec.filesystem("memory")
    card = json.loads(elsewhere.cat_file("/models/small/card.json"))
    card["files"]["../../evil"] = "0" * 64
    elsewhere.pipe_file("/models/small/card.json", json.dumps(card).encode())
    elsewhere.pipe_file("/evil", b"evil")
    with pytest.raises(ModelFolderError, match="outside the folder"):
        pull(memory, tmp_path / "models" / "theirs", force=False)
    assert list(tmp_path.rglob("evil")) == []
