"""A folder of model folders in, loaded models out: the default one at start, the others when first asked for.

A folder that cannot be served is refused with the sentence that says why; the others are served all the same.

    reload:   appeared ─┐                           ┌─ yes ─► it takes the old one's place, in one step;
              changed  ─┴─► load, warm, self-test ──┤         requests that hold the old one finish with it
              gone     ───► no longer served        └─ no ──► refused with the reason, the old one stays
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.errors import ModelFolderError, ModelUnavailable, UnknownModel, shortened
from service.inference.card import Card, check_files, load_card
from service.inference.heads import SCORE_DIGITS, Head, load_heads
from service.inference.model import Model
from service.inference.text import can_tokenize
from service.inference.threads import ThreadPlan
from service.settings import Settings

log = logging.getLogger(__name__)

# What tells that a folder was changed: the SHA-256 of its card; its other files with their sizes and times.
FolderState = tuple[str, tuple[tuple[str, int, int], ...]]


@dataclass
class Reloaded:
    """What a reload did, by name. refused: with the reason; a model that was loaded before is served on."""

    loaded: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def together(reports: Sequence[Reloaded]) -> Reloaded:
    """One report of several processes: what any of them did."""
    names: dict[str, list[str]] = {
        key: sorted({name for report in reports for name in getattr(report, key)})
        for key in ("loaded", "changed", "removed", "kept")
    }
    refused = {name: reason for report in reports for name, reason in report.refused.items()}
    return Reloaded(**names, refused=refused)


def load_warm(folder: Path, *, settings: Settings, threads: ThreadPlan) -> Model:
    """The model of a folder, loaded and warmed up; the log tells how long it took.

    Raises ModelFolderError.
    """
    started = time.perf_counter()
    model = Model.load(
        folder,
        device=settings.device,
        precision=settings.precision,
        threads=threads.inference,
        batch_threads=threads.batch,
        max_batch=settings.max_batch_items,
        tensorrt_cache=settings.tensorrt_cache,
    )
    model.warm_up(max_batch_frames=settings.max_batch_frames, max_batch_items=settings.max_batch_items)
    card = model.card
    log.info(
        "loaded %s %s in %.2f s: %s on %s, %d numbers per clip, heads: %s",
        card.name,
        card.version,
        time.perf_counter() - started,
        model.precision,
        model.device,
        card.embedding_size,
        ", ".join(model.heads) or "none",
    )
    return model


class Registry:
    """The models under `folder`. load: a model's folder → the model, warm, or ModelFolderError; in a thread.

    cards: of every folder that has a readable one; refused: name → why it cannot be served; loaded: the rest.
    taught: the heads that a model of this card was taught, beside those of its folder, whose names are given.
    on_change: called with a name and the model that it stands for from now on; None where it stands for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        default: str,
        load: Callable[[Path], Model],
        on_change: Callable[[str, Model | None], None] = lambda name, model: None,
        taught: Callable[[Card, Iterable[str]], Mapping[str, Head]] = lambda card, own: {},
    ) -> None:
        self.default = default
        self.cards: dict[str, Card] = {}
        self.refused: dict[str, str] = {}
        self.loaded: dict[str, Model] = {}
        self._folder = folder
        self._load = load
        self._on_change = on_change
        self._taught = taught
        self._loading: dict[str, asyncio.Task[Model]] = {}
        self._states: dict[str, FolderState] = {}
        self._one_change_at_a_time = asyncio.Lock()
        with contextlib.suppress(OSError):  # the default model's refusal says what is missing
            for path in self._folders():
                self._read_card(path)
        if default not in self.cards and default not in self.refused:
            self._refuse(default, f"there is no folder {folder / default} with a card.json")

    async def get(self, name: str | None = None) -> Model:
        """The model, loaded now if it was not; the default one without a name. Raises UnknownModel and
        ModelUnavailable."""
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
            except (UnknownModel, ModelUnavailable) as error:
                log.error("not loaded at start: %s", error)

    async def reload(self) -> Reloaded:
        """Notice which folders appeared, changed or went. What appeared or changed is loaded, warmed and
        tested before it is served; reloads that overlap run one after the other."""
        async with self._one_change_at_a_time:
            report = Reloaded()
            try:
                folders = {path.name: path for path in await asyncio.to_thread(self._folders)}
            except OSError as error:  # a mount that is gone for a moment: everything stays as it is
                reason = f"the folder of models {self._folder} cannot be read: {error.strerror}"
                report.refused = dict.fromkeys(sorted({*self.cards, *self.refused}), reason)
                return report
            for name, path in folders.items():
                if name in self.refused or not await asyncio.to_thread(self._is_as_it_was, path):
                    await self._replace(path, report)
                else:
                    report.kept.append(name)
            for name in sorted({*self.cards, *self.refused} - folders.keys()):
                self._remove(name, report)
        log.info("reloaded: %s", report)
        return report

    def check_known(self, name: str) -> None:
        """Raises UnknownModel or ModelUnavailable, with what is wrong and what there is."""
        if name in self.refused:
            raise ModelUnavailable(f"the model `{name}` cannot be served: {self.refused[name]}")
        if name not in self.cards:
            there = ", ".join(f"`{other}`" for other in self.cards) or "none"
            raise UnknownModel(f"there is no model `{shortened(name)}`; there is {there}")

    def with_text(self) -> list[str]:
        """The names of the models that have a text tower."""
        return [name for name, card in self.cards.items() if card.text is not None]

    def has_text(self, name: str | None = None) -> bool:
        """Whether the model of that name, or the default one, has a text tower by its card."""
        card = self.cards.get(name or self.default)
        return card is not None and card.text is not None

    def describe_all(self) -> list[dict[str, Any]]:
        """Every model as JSON; one whose heads turn out to be unreadable is refused instead."""
        described = []
        for name in list(self.cards):
            with contextlib.suppress(ModelUnavailable):
                described.append(self.describe(name))
        return described

    def describe(self, name: str) -> dict[str, Any]:
        """A model as JSON: card, heads with their labels, how it is served. Raises UnknownModel and
        ModelUnavailable."""
        self.check_known(name)
        loaded, card = self.loaded.get(name), self.cards.get(name)
        if card is None:  # a reload was faster
            raise ModelUnavailable(f"the model `{name}` is being exchanged, ask again")
        try:
            own = loaded.own_heads if loaded else load_heads(self._folder / card.name, card)
        except ModelFolderError as error:
            if name not in self.loaded:
                self._refuse(name, str(error))
            raise ModelUnavailable(f"the model `{name}` cannot be served: {error}") from error
        heads = {**own, **self._taught(loaded.card if loaded else card, own)}
        return {
            "card": (loaded.card if loaded else card).model_dump(mode="json"),
            "heads": [
                {
                    "name": head.name,
                    "task": head.task,
                    "labels": head.labels,
                    "thresholds": [round(each, SCORE_DIGITS) for each in head.thresholds] or None,
                    "training_data": head.training_data,
                    "results": head.results,
                    "taught": head.name not in own,
                }
                for head in heads.values()
            ],
            "default": name == self.default,
            "loaded": loaded is not None,
            "text": card.text is not None and (can_tokenize() if loaded is None else loaded.text is not None),
            "precision": loaded.precision if loaded else None,
            "device": loaded.device if loaded else None,
        }

    def _folders(self) -> list[Path]:
        """Folders with a card, and those that had one: what is served is gone only where its folder is.
        Raises OSError."""
        known = {*self.cards, *self.refused}
        folders = sorted(path for path in self._folder.iterdir() if path.is_dir())
        return [path for path in folders if path.name in known or _has_card(path)]

    def _read_card(self, folder: Path) -> None:
        try:
            self._states[folder.name] = _state_of(folder)
            self.cards[folder.name] = _card_of(folder)
        except ModelFolderError as error:
            self._refuse(folder.name, str(error))

    async def _load_in_thread(self, name: str) -> Model:
        try:
            async with self._one_change_at_a_time:
                if name in self.loaded:  # by a reload, meanwhile
                    return self.loaded[name]
                model, seen = await asyncio.to_thread(self._load_and_test, self._folder / name)
                self._serve(name, model, seen)
                return model
        except ModelFolderError as error:
            self._refuse(name, str(error))
            raise ModelUnavailable(f"the model `{name}` cannot be served: {error}") from error
        finally:
            del self._loading[name]

    def _load_and_test(self, folder: Path) -> tuple[Model, FolderState]:
        """In a thread. A model that has passed its self-test, and the state of its folder before. Raises
        ModelFolderError."""
        seen = _state_of(folder)
        _card_of(folder)
        try:
            model = self._load(folder)
            reason = model.probe()
        except ModelFolderError:
            raise
        except Exception as error:  # of onnxruntime, while it warms up
            raise ModelFolderError(f"its graph fails: {error}") from error
        if reason:
            raise ModelFolderError(reason)
        return model, seen

    def _serve(self, name: str, model: Model, seen: FolderState) -> None:
        self.loaded[name] = model
        self.cards[name] = model.card
        self.refused.pop(name, None)
        self._states[name] = seen
        self._on_change(name, model)

    async def _replace(self, folder: Path, report: Reloaded) -> None:
        """What is served under the folder's name, by what the folder holds now."""
        name = folder.name
        try:
            model, seen = await asyncio.to_thread(self._load_and_test, folder)
        except ModelFolderError as error:
            report.refused[name] = str(error)
            if name in self.loaded:
                log.error("the model %s is not replaced, the old one is served on: %s", name, error)
            else:
                self._refuse(name, str(error))
            return
        (report.changed if name in self.cards else report.loaded).append(name)
        self._serve(name, model, seen)

    def _remove(self, name: str, report: Reloaded) -> None:
        """Its folder is gone. The default model is served on: without it the server would not be ready."""
        if name == self.default:
            report.refused[name] = self.refused.get(
                name, "its folder is gone; the default model is served on"
            )
            return
        self.refused.pop(name, None)
        self.cards.pop(name, None)
        self._states.pop(name, None)
        report.removed.append(name)
        if self.loaded.pop(name, None):
            self._on_change(name, None)

    def _is_as_it_was(self, folder: Path) -> bool:
        """In a thread. Whether the folder still holds what is served; its files are read again only where
        sizes or times differ."""
        before = self._states.get(folder.name)
        try:
            now = _state_of(folder)
            if before is None or before[0] != now[0]:
                return False
            if before != now:
                check_files(folder, self.cards[folder.name])
                self._states[folder.name] = now
        except ModelFolderError:
            return False
        return True

    def _refuse(self, name: str, reason: str) -> None:
        log.error("the model %s is refused: %s", name, reason)
        self.refused[name] = reason
        self.cards.pop(name, None)


def _has_card(folder: Path) -> bool:
    """True also where permissions forbid to look: reading the card then tells why."""
    try:
        return (folder / "card.json").exists()
    except OSError:
        return True


def _card_of(folder: Path) -> Card:
    card = load_card(folder)
    if card.name != folder.name:
        raise ModelFolderError(f"its card is that of `{card.name}`; folder and name must be the same")
    return card


def _state_of(folder: Path) -> FolderState:
    """Enough to see that a folder was changed, without reading its large files."""
    try:
        card = (folder / "card.json").read_bytes()
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "card.json"]
        stats = [(str(path.relative_to(folder)), path.stat()) for path in files]
    except OSError as error:
        raise ModelFolderError(f"{folder.name} cannot be read: {error.strerror}") from error
    return hashlib.sha256(card).hexdigest(), tuple((n, stat.st_size, stat.st_mtime_ns) for n, stat in stats)
