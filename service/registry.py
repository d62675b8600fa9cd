"""A folder of model folders in, loaded models out: the default one at start, the others when first asked for.

A folder that cannot be served is refused with the sentence that says why; the others are served all the same.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import ModelFolderError, UnknownModel
from service.model import Card, Head, Model, load_card, load_head

log = logging.getLogger(__name__)


class Registry:
    """The models under `folder`. load: a model's folder → the model, or ModelFolderError; runs in a thread.

    cards: of every folder that has a readable one; refused: name → why it cannot be served; loaded: the rest.
    """

    def __init__(self, folder: Path, *, default: str, load: Callable[[Path], Model]) -> None:
        self.default = default
        self.cards: dict[str, Card] = {}
        self.refused: dict[str, str] = {}
        self.loaded: dict[str, Model] = {}
        self._folder = folder
        self._load = load
        self._loading: dict[str, asyncio.Task[Model]] = {}
        for path in sorted(folder.glob("*/card.json")):
            self._read_card(path.parent)
        if default not in self.cards and default not in self.refused:
            self._refuse(default, f"there is no folder {folder / default} with a card.json")

    async def get(self, name: str | None = None) -> Model:
        """The model, loaded now if it was not; the default one without a name. Raises UnknownModel."""
        name = name or self.default
        if name in self.loaded:
            return self.loaded[name]
        self.check_known(name)
        if name not in self._loading:
            loading = self._loading[name] = asyncio.create_task(self._load_in_thread(name))
            # Its error counts as seen even where everybody who waited for it has left.
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shielded: others may wait for the same model when this caller leaves.
        return await asyncio.shield(self._loading[name])

    async def preload(self, names: tuple[str, ...]) -> None:
        """Load the default model and `names` (`*`: all). What is refused is logged, and kept in `refused`."""
        wanted = list(self.cards) if "*" in names else names
        for name in dict.fromkeys((self.default, *wanted)):
            try:
                await self.get(name)
            except UnknownModel as error:
                log.error("not loaded at start: %s", error)

    def check_known(self, name: str) -> None:
        """Raises UnknownModel with what is wrong and what there is."""
        if name in self.refused:
            raise UnknownModel(f"the model `{name}` cannot be served: {self.refused[name]}")
        if name not in self.cards:
            there = ", ".join(f"`{other}`" for other in self.cards) or "none"
            raise UnknownModel(f"there is no model `{name}`; there is {there}")

    def heads(self, name: str) -> dict[str, Head]:
        """The heads of a model, in the order of its card; read from its folder while it is not loaded."""
        card = self.cards[name]
        paths = [Path(file) for file in card.files if file.startswith("heads/")]
        if name in self.loaded:
            heads = self.loaded[name].heads
            return {path.stem: heads[path.stem] for path in paths if path.stem in heads}
        return {
            path.stem: load_head(self._folder / name / path, embedding_size=card.embedding_size)
            for path in paths
        }

    def describe_all(self) -> list[dict[str, Any]]:
        """Every model as JSON; one whose heads turn out to be unreadable is refused instead."""
        described = []
        for name in list(self.cards):
            with contextlib.suppress(UnknownModel):
                described.append(self.describe(name))
        return described

    def describe(self, name: str) -> dict[str, Any]:
        """A model as JSON: card, heads with their labels, how it is served. Raises UnknownModel."""
        self.check_known(name)
        try:
            heads = self.heads(name)
        except ModelFolderError as error:
            self._refuse(name, str(error))
            self.check_known(name)
            raise
        loaded = self.loaded.get(name)
        return {
            "card": self.cards[name].model_dump(mode="json"),
            "heads": [
                {
                    "name": head.name,
                    "task": head.task,
                    "labels": head.labels,
                    "training_data": head.training_data,
                    "results": head.results,
                }
                for head in heads.values()
            ],
            "default": name == self.default,
            "loaded": loaded is not None,
            "precision": loaded.precision if loaded else None,
            "device": loaded.device if loaded else None,
        }

    def _read_card(self, folder: Path) -> None:
        try:
            card = load_card(folder)
            if card.name != folder.name:
                raise ModelFolderError(f"its card is that of `{card.name}`; folder and name must be the same")
            self.cards[folder.name] = card
        except ModelFolderError as error:
            self._refuse(folder.name, str(error))

    async def _load_in_thread(self, name: str) -> Model:
        try:
            self.loaded[name] = await asyncio.to_thread(self._load_and_try, self._folder / name)
            return self.loaded[name]
        except ModelFolderError as error:
            self._refuse(name, str(error))
            raise UnknownModel(f"the model `{name}` cannot be served: {error}") from error
        finally:
            del self._loading[name]

    def _load_and_try(self, folder: Path) -> Model:
        """Load a model and embed a second of silence, so that a graph that cannot run is refused here."""
        model = self._load(folder)
        try:
            (output,) = model.run([model.logmel(np.zeros(model.card.sample_rate, dtype=np.float32))])
        except Exception as error:
            raise ModelFolderError(f"its graph fails on a second of silence: {error}") from error
        if not np.isfinite(output.sum).all():
            raise ModelFolderError("its graph gives NaN or infinite values for a second of silence")
        return model

    def _refuse(self, name: str, reason: str) -> None:
        log.error("the model %s is refused: %s", name, reason)
        self.refused[name] = reason
        self.cards.pop(name, None)
