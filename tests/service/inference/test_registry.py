"""Model folders found, loaded once, refused with a sentence."""

import asyncio
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.errors import ModelFolderError, ModelUnavailable, UnknownModel
from service.inference import card as card_module
from service.inference.card import load_card, write_card
from service.inference.model import Model
from service.inference.registry import Registry, Reloaded, together


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
    with pytest.raises((UnknownModel, ModelUnavailable)):
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
        with pytest.raises(ModelUnavailable, match=r"the model `bent` cannot be served: .*SHA-256"):
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

    sha256 = card_module.sha256_of
    monkeypatch.setattr(card_module, "sha256_of", sha256_of)
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
    with pytest.raises(ModelUnavailable, match="cannot be served"):
        asyncio.run(models.get())


class BrokenSession:
    device = "cpu"

    def run(self, names: object, feed: object) -> list[object]:
        raise RuntimeError("no kernel")

    def reopen(self) -> None: ...


def test_a_graph_that_fails_is_refused_at_load(models_dir: Path) -> None:
    def load_broken(folder: Path) -> Model:
        model = load(folder)
        return Model(folder, model.card, model._logmel, BrokenSession(), {}, "float32")  # type: ignore[arg-type]

    models = registry_of(models_dir, load=load_broken)
    with pytest.raises(ModelUnavailable, match="fails on the test signal: no kernel"):
        asyncio.run(models.get())


def test_a_graph_that_fails_while_it_warms_up_is_refused(models_dir: Path) -> None:
    def load_and_fail(folder: Path) -> Model:
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")

    models = registry_of(models_dir, load=load_and_fail)
    with pytest.raises(ModelUnavailable, match="its graph fails: CUDNN_STATUS_NOT_SUPPORTED"):
        asyncio.run(models.get())


def test_heads_are_told_without_loading_the_graph_in_the_order_of_the_card(models_dir: Path) -> None:
    models = registry_of(models_dir)
    described = models.describe("toy")
    assert [head["name"] for head in described["heads"]] == ["pets", "moods"]
    assert described["heads"][0]["labels"] == ("cat", "dog", "fish")
    assert described["loaded"] is False
    asyncio.run(models.get())
    assert [head["name"] for head in models.describe("toy")["heads"]] == ["pets", "moods"]
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
    with pytest.raises(ModelUnavailable, match="cannot be served"):
        models.describe("bent")


# ── Reloading ──


MakeToy = Callable[..., Path]


def new_version(folder: Path, version: str) -> None:
    write_card(folder, load_card(folder).model_copy(update={"version": version}))


def test_a_reload_notices_what_appeared_changed_and_went(tmp_path: Path, make_toy: MakeToy) -> None:
    for name in ("toy", "same", "going", "lazy"):
        make_toy(tmp_path / name, name=name)
    told: list[tuple[str, str | None]] = []

    async def story() -> None:
        models = Registry(
            tmp_path,
            default="toy",
            load=load,
            on_change=lambda name, model: told.append((name, model and model.card.version)),
        )
        await models.preload(("same", "going"))
        told.clear()
        old = await models.get("toy")
        new_version(tmp_path / "toy", "2")
        new_version(tmp_path / "lazy", "2")
        make_toy(tmp_path / "fresh", name="fresh")
        shutil.rmtree(tmp_path / "going")

        report = await models.reload()
        assert report == Reloaded(
            loaded=["fresh"], changed=["lazy", "toy"], removed=["going"], kept=["same"], refused={}
        )
        assert told == [("fresh", "1"), ("lazy", "2"), ("toy", "2"), ("going", None)]
        assert (await models.get("toy")).card.version == "2"
        assert old.run([old.logmel(noise())])[0].count > 0, "whoever holds the old one can finish with it"
        with pytest.raises(UnknownModel, match="there is no model `going`"):
            await models.get("going")
        assert await models.reload() == Reloaded(kept=["fresh", "lazy", "same", "toy"])

    asyncio.run(story())


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.1, size=16_000).astype(np.float32)


def test_a_broken_folder_is_refused_and_the_old_model_is_served_on(tmp_path: Path, make_toy: MakeToy) -> None:
    make_toy(tmp_path / "toy")

    async def story() -> None:
        models = registry_of(tmp_path)
        old = await models.get()
        whole = (tmp_path / "toy" / "encoder.onnx").read_bytes()
        (tmp_path / "toy" / "encoder.onnx").write_bytes(whole[:-1])
        for _ in range(2):  # it is tried again each time
            report = await models.reload()
            assert "encoder.onnx is not the file of the card" in report.refused["toy"]
            assert (report.changed, report.kept) == ([], [])
            assert await models.get() is old
            assert models.refused == {}
        (tmp_path / "toy" / "encoder.onnx").write_bytes(whole)  # another time, but the same content
        assert await models.reload() == Reloaded(kept=["toy"])
        assert await models.get() is old

    asyncio.run(story())


def test_a_folder_that_was_refused_is_tried_again_and_one_that_breaks_unloaded_is_refused(
    tmp_path: Path, make_toy: MakeToy
) -> None:
    make_toy(tmp_path / "toy")
    make_toy(tmp_path / "bent", name="original")
    make_toy(tmp_path / "torn", name="torn")

    async def story() -> None:
        models = registry_of(tmp_path)
        assert list(models.refused) == ["bent"]
        card = load_card(tmp_path / "bent")
        write_card(tmp_path / "bent", card.model_copy(update={"name": "bent"}))
        (tmp_path / "torn" / "card.json").write_text("{")
        report = await models.reload()
        assert (report.loaded, report.kept) == (["bent"], ["toy"])
        assert "card.json does not fit" in report.refused["torn"]
        assert list(models.refused) == ["torn"]
        assert (await models.get("bent")).card.name == "bent"

    asyncio.run(story())


def test_a_default_model_whose_folder_went_is_served_on(tmp_path: Path, make_toy: MakeToy) -> None:
    make_toy(tmp_path / "toy")

    async def story() -> None:
        models = registry_of(tmp_path)
        old = await models.get()
        shutil.rmtree(tmp_path / "toy")
        report = await models.reload()
        assert report.refused == {"toy": "its folder is gone; the default model is served on"}
        assert await models.get() is old

    asyncio.run(story())


def test_reloads_and_loads_run_one_after_the_other(tmp_path: Path, make_toy: MakeToy) -> None:
    make_toy(tmp_path / "toy")
    make_toy(tmp_path / "other", name="other")
    running = most = 0

    def slow_load(folder: Path) -> Model:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return load(folder)

    async def story() -> None:
        models = registry_of(tmp_path, load=slow_load)
        await models.get()
        new_version(tmp_path / "toy", "2")
        first, second, other = await asyncio.gather(models.reload(), models.reload(), models.get("other"))
        assert (first.changed, second.changed) == (["toy"], [])
        assert other.card.name == "other"

    asyncio.run(story())
    assert most == 1


def test_the_old_model_is_let_go(tmp_path: Path, make_toy: MakeToy) -> None:
    make_toy(tmp_path / "toy")

    async def story() -> None:
        models = registry_of(tmp_path)
        old = weakref.ref(await models.get())
        new_version(tmp_path / "toy", "2")
        await models.reload()
        gc.collect()
        assert old() is None

    asyncio.run(story())


def test_the_reports_of_several_processes_become_one() -> None:
    reports = [Reloaded(changed=["a"], kept=["b"]), Reloaded(kept=["b"], refused={"a": "out of memory"})]
    assert together(reports) == Reloaded(changed=["a"], kept=["b"], refused={"a": "out of memory"})


def test_a_folder_that_lost_its_card_is_refused_and_its_model_served_on(
    tmp_path: Path, make_toy: Callable[..., Path]
) -> None:
    make_toy(tmp_path / "toy")
    other = make_toy(tmp_path / "other", name="other")

    async def story() -> None:
        models = registry_of(tmp_path)
        served = await models.get("other")
        (other / "card.json").rename(tmp_path / "away")
        report = await models.reload()
        assert report.removed == []
        assert "other cannot be read" in report.refused["other"]
        assert await models.get("other") is served

    asyncio.run(story())


def test_a_folder_of_models_that_is_gone_for_a_moment_changes_nothing(
    tmp_path: Path, make_toy: Callable[..., Path]
) -> None:
    folder = tmp_path / "models"
    make_toy(folder / "toy")

    async def story() -> None:
        models = registry_of(folder)
        served = await models.get()
        folder.rename(tmp_path / "elsewhere")
        report = await models.reload()
        assert "cannot be read: No such file" in report.refused["toy"]
        assert await models.get() is served
        (tmp_path / "elsewhere").rename(folder)
        assert (await models.reload()).kept == ["toy"]

    asyncio.run(story())
