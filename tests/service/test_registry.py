"""Model folders found, loaded once, refused with a sentence."""

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service import model as model_module
from service.errors import ModelFolderError, UnknownModel
from service.model import Model
from service.registry import Registry


def load(folder: Path) -> Model:
    return Model.load(folder, device="cpu")


def registry_of(folder: Path, default: str = "toy", load: Callable[[Path], Model] = load) -> Registry:
    return Registry(folder, default=default, load=load)


def test_a_model_is_loaded_when_first_asked_for_and_once(models_dir: Path) -> None:
    loads: list[str] = []
    gate = threading.Event()

    def slow_load(folder: Path) -> Model:
        loads.append(folder.name)
        gate.wait(5)
        return load(folder)

    async def story() -> None:
        models = registry_of(models_dir, load=slow_load)
        assert models.loaded == {}
        both = asyncio.gather(models.get("toy"), models.get())
        await asyncio.sleep(0.01)
        gate.set()
        first, second = await both
        assert first is second is await models.get("toy")

    asyncio.run(story())
    assert loads == ["toy"]


def test_an_unknown_model_is_an_error_that_names_those_there_are(models_dir: Path) -> None:
    with pytest.raises(UnknownModel, match="there is no model `bayola`; there is `toy`"):
        asyncio.run(registry_of(models_dir).get("bayola"))


@pytest.mark.parametrize("name", ["..", "../toy", "/", "toy/heads", ""])
def test_a_name_is_never_a_path(name: str, models_dir: Path) -> None:
    models = registry_of(models_dir, default="none")
    with pytest.raises(UnknownModel):
        asyncio.run(models.get(name))


def test_a_bad_folder_is_refused_with_a_sentence_and_the_others_are_served(
    tmp_path: Path, make_toy: Callable[..., Path]
) -> None:
    make_toy(tmp_path / "toy")
    make_toy(tmp_path / "bent", name="bent")
    (tmp_path / "bent" / "encoder.onnx").write_bytes(b"not a graph")
    make_toy(tmp_path / "torn", name="torn")
    (tmp_path / "torn" / "card.json").write_text("{")
    make_toy(tmp_path / "renamed", name="original")
    (tmp_path / "not-a-model").mkdir()

    async def story() -> None:
        models = registry_of(tmp_path)
        assert sorted(models.cards) == ["bent", "toy"]
        assert "card.json does not fit" in models.refused["torn"]
        assert "folder and name must be the same" in models.refused["renamed"]
        await models.preload(("*",))
        assert list(models.loaded) == ["toy"]
        assert "encoder.onnx is not the file of the card" in models.refused["bent"]
        with pytest.raises(UnknownModel, match=r"the model `bent` cannot be served: .*SHA-256"):
            await models.get("bent")

    asyncio.run(story())


def test_a_file_that_cannot_be_read_refuses_its_folder_alone(
    tmp_path: Path, make_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_toy(tmp_path / "toy")
    make_toy(tmp_path / "shut", name="shut")

    def sha256_of(path: Path) -> str:  # root may read whatever its mode says
        if path.parent.name == "shut":
            raise PermissionError(13, "Permission denied")
        return sha256(path)

    sha256 = model_module.sha256_of
    monkeypatch.setattr(model_module, "sha256_of", sha256_of)
    models = registry_of(tmp_path)
    asyncio.run(models.preload(("*",)))
    assert list(models.loaded) == ["toy"]
    assert "cannot be read: Permission denied" in models.refused["shut"]


def test_a_load_that_fails_after_everybody_left_is_not_reported_as_unseen(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    def fail_late(folder: Path) -> Model:
        gate.wait(5)
        raise ModelFolderError("no")

    async def story() -> None:
        models = registry_of(models_dir, load=fail_late)
        caller = asyncio.create_task(models.get())
        await asyncio.sleep(0)
        (loading,) = models._loading.values()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        gate.set()
        await asyncio.wait([loading])

    asyncio.run(story())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_missing_default_model_is_refused_not_forgotten(tmp_path: Path) -> None:
    models = registry_of(tmp_path, default="byola")
    assert "no folder" in models.refused["byola"]
    with pytest.raises(UnknownModel, match="cannot be served"):
        asyncio.run(models.get())


def test_a_graph_that_fails_is_refused_at_load(models_dir: Path) -> None:
    def load_broken(folder: Path) -> Model:
        model = load(folder)
        model.run = lambda *_, **__: 1 / 0  # type: ignore[assignment, method-assign]
        return model

    models = registry_of(models_dir, load=load_broken)
    with pytest.raises(UnknownModel, match="fails on a second of silence"):
        asyncio.run(models.get())


def test_heads_are_told_without_loading_the_graph_in_the_order_of_the_card(models_dir: Path) -> None:
    models = registry_of(models_dir)
    described = models.describe("toy")
    assert [head["name"] for head in described["heads"]] == ["pets", "moods"]
    assert described["heads"][0]["labels"] == ("cat", "dog", "fish")
    assert described["loaded"] is False
    asyncio.run(models.get())
    assert list(models.heads("toy")) == ["pets", "moods"]
    assert models.describe("toy")["precision"] == "float32"


def test_a_model_with_an_unreadable_head_is_refused_when_it_is_described(
    tmp_path: Path, make_toy: Callable[..., Path]
) -> None:
    make_toy(tmp_path / "toy")
    make_toy(tmp_path / "bent", name="bent")
    (tmp_path / "bent" / "heads" / "pets.safetensors").write_bytes(b"no tensors")
    models = registry_of(tmp_path)
    assert [each["card"]["name"] for each in models.describe_all()] == ["toy"]
    assert "pets.safetensors" in models.refused["bent"]
    with pytest.raises(UnknownModel, match="cannot be served"):
        models.describe("bent")
