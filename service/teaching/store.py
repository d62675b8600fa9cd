"""A folder in; what was taught, kept so that nothing that happens to a process or a disk loses a head, out.

    VIOLA_DATA_DIR/<model>/
      heads/<head>.safetensors     what is served: the file that a model folder takes, too
      generation                   replaced after each change in heads/: all processes look at it
      lock                         held while any of this is written
      taught/<head>/
        head.json                  its options, and how often it was changed (State)
        report.json                what the last fit said
        examples/<id>.safetensors  one example: its embedding, and as metadata its labels and where it is from
        clips/<clip>               the sound as it was sent, where clips are kept

Every file is written whole under another name, forced to the disk and renamed: there is no instant at which a
reader, or a machine that starts again, finds half of one. What a process that was killed has left under such
a name is removed by the next one that writes. A file that a disk has damaged is passed over, and told of.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from service.errors import (
    HeadConflict,
    ModelFolderError,
    Overloaded,
    StorageFailed,
    TeachingLimit,
    UnknownExample,
    UnknownHead,
    shortened,
)
from service.inference.card import Card
from service.inference.heads import Head, load_head
from service.inference.tensors import checked_tensor, read_tensors
from service.process.files import HAS_LOCKS, NEW, sync_folder, try_lock, write_whole

Array = NDArray[np.float32]
Task = Literal["multiclass", "multilabel"]

GONE = ".gone-"  # before the name of a head's folder that is being removed
LOCK_S = 10.0  # a process that holds the lock for longer does not get on: its disk hangs, or it was stopped
LOCK_EVERY_S = 0.005
ID_DIGITS = 16  # of a clip's hash


@dataclass(frozen=True)
class Options:
    """What is fitted. none_of_these: also what tells that a sound is none of the labels; keep_clips: whether
    sounds are kept beside their embeddings."""

    task: Task = "multiclass"
    none_of_these: bool = True
    keep_clips: bool = False


@dataclass(frozen=True)
class State:
    """edits: how often the head's examples or options were changed; created: ISO 8601, UTC. is_imported: the
    head came as a file, and has no examples."""

    options: Options
    edits: int = 0
    created: str = ""
    is_imported: bool = False


@dataclass(frozen=True)
class Example:
    """One clip, or a passage of a long one. labels: none where it is an example of none of these; encoder:
    what made its embedding (`encoder_of`); clip: the hash of the sound, by which it is kept if it is."""

    id: str
    labels: tuple[str, ...]
    file: str
    start_s: float
    end_s: float
    added: str
    encoder: str
    clip: str


@dataclass(frozen=True)
class Limits:
    """heads: of one model; labels, examples: of one head; bytes: of all that is kept."""

    heads: int
    labels: int
    examples: int
    bytes: int


@dataclass(frozen=True)
class Taught:
    """The heads of one model as they are served: by name, and why others are not."""

    heads: dict[str, Head]
    refused: dict[str, str]


@dataclass(frozen=True)
class Contents:
    """A head's examples, each with its row of vectors (n, D); damaged: files that cannot be read; outdated:
    examples of another encoder than `encoder`, whose vectors are not here."""

    state: State
    examples: tuple[Example, ...]
    vectors: Array
    damaged: int
    outdated: tuple[Example, ...]


def encoder_of(card: Card) -> str:
    """What an embedding depends on: another hash, other embeddings. A model that takes samples has no file of
    a frontend."""
    parts = (card.files["encoder.onnx"], card.files.get("frontend.safetensors", ""), card.pooling)
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:ID_DIGITS]


class Adding:
    """A head that examples are added to. there: those it has; n_bytes: of all that is kept."""

    def __init__(self, folder: Path, there: Sequence[Example], limits: Limits, n_bytes: int) -> None:
        self._folder = folder
        self._there = {example.id: example for example in there}
        self._limits = limits
        self._n_bytes = n_bytes

    def add(self, examples: Sequence[Example], vectors: Array, clip: bytes | None) -> None:
        """The examples of one clip, with their vectors (n, D), and its bytes where clips are kept. One that
        is there already gets the new labels. Raises TeachingLimit and StorageFailed, and nothing is added but
        perhaps the first of them."""
        there = self._there | {example.id: example for example in examples}
        size = vectors.nbytes + 1000 * len(examples) + len(clip or b"")
        self._check(there, size)
        with _disk():
            if clip is not None:
                write_whole(self._folder / "clips" / examples[0].clip, clip)
            for example, vector in zip(examples, vectors, strict=True):
                _write_example(self._folder, example, vector)
        self._there = there
        self._n_bytes += size

    def _check(self, there: dict[str, Example], size: int) -> None:
        limits, labels = self._limits, {label for example in there.values() for label in example.labels}
        if len(there) > limits.examples:
            raise TeachingLimit(
                f"a head has {limits.examples} examples at most (VIOLA_MAX_TAUGHT_EXAMPLES); a passage of a "
                "long sound is one"
            )
        if len(labels) > limits.labels:
            raise TeachingLimit(f"a head has {limits.labels} labels at most (VIOLA_MAX_TAUGHT_LABELS)")
        if self._n_bytes + size > limits.bytes:
            raise TeachingLimit(
                f"{limits.bytes} bytes are kept at most (VIOLA_MAX_DATA_BYTES), and so many there are: "
                "delete examples or heads"
            )


class Store:
    """All that was taught. Every method may wait for the disk, and is called in a thread.

    Methods raise StorageFailed where the disk fails, and Overloaded where another process does not let go of
    the lock.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self._one_thread = threading.Lock()  # where the system has no file locks there is one process

    # What is served

    def generation(self, model: str) -> object:
        """Something that changes with the heads of a model; None while it has none. A microsecond or two."""
        try:
            found = (self.folder / model / "generation").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def taught(self, card: Card, own: Sequence[str]) -> Taught:
        """own: the names of the heads in the model's own folder, which are served in any case."""
        heads: dict[str, Head] = {}
        refused: dict[str, str] = {}
        encoder = encoder_of(card)
        for path in sorted((self.folder / card.name / "heads").glob("[!.]*.safetensors")):
            name = path.stem
            try:
                _, metadata = read_tensors(path)
                if name in own:
                    refused[name] = f"the folder of the model `{card.name}` has a head of this name"
                elif metadata.get("encoder", encoder) != encoder:
                    refused[name] = f"it was taught with another version of the model `{card.name}`"
                else:
                    heads[name] = load_head(path, embedding_size=card.embedding_size)
            except ModelFolderError as error:
                refused[name] = str(error)
        return Taught(heads, refused)

    def heads(self, model: str) -> list[str]:
        """The names of all that is taught, whether there is something to serve yet or not."""
        return sorted(path.parent.name for path in (self.folder / model / "taught").glob("[!.]*/head.json"))

    # A head

    def state(self, model: str, head: str) -> State:
        """Raises UnknownHead."""
        path = self._of(model, head) / "head.json"
        try:
            return _state_of(json.loads(path.read_bytes()))
        except FileNotFoundError:
            there = ", ".join(f"`{name}`" for name in self.heads(model)[:20]) or "none"
            raise UnknownHead(
                f"nothing was taught to the model `{model}` as `{shortened(head)}`; there is {there}"
            ) from None
        except OSError as error:
            raise StorageFailed(f"the head `{head}` cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise StorageFailed(
                f"the head `{head}` has a damaged head.json: PUT the head with its options, or another "
                "example, writes it anew, and no example is lost"
            ) from error

    def put(self, model: str, head: str, changes: dict[str, Any]) -> State:
        """Make a head, or change the options of one: those that `changes` names. Raises HeadConflict and
        TeachingLimit."""
        with self._writing(model, head):
            return self._put(model, head, changes)

    def remove(self, model: str, head: str) -> None:
        """Raises UnknownHead."""
        with self._writing(model, head):
            folder = self._of(model, head)
            served = self._served(model, head)
            if not folder.exists() and not served.exists():
                self.state(model, head)  # raises, with what there is
            served.unlink(missing_ok=True)
            self._tell(model)
            if folder.exists():
                gone = folder.with_name(f"{GONE}{head}-{time.time_ns()}")
                folder.rename(gone)
                sync_folder(gone.parent)
                shutil.rmtree(gone, ignore_errors=True)

    # Its examples

    @contextlib.contextmanager
    def adding(self, model: str, head: str) -> Iterator["Adding"]:
        """What takes examples, one clip after the other. Raises UnknownHead and HeadConflict."""
        with self._writing(model, head):
            folder = self._of(model, head)
            state = self.state(model, head)
            if state.is_imported:
                raise HeadConflict(
                    f"the head `{head}` was imported and has no examples here: give the sounds another "
                    "head's name, or delete this one first"
                )
            self._edited(folder, state)
            for name in ("examples", "clips"):
                (folder / name).mkdir(exist_ok=True)
            yield Adding(folder, self._examples(folder)[0], self.limits, self.n_bytes())

    def forget(
        self, model: str, head: str, *, example: str | None = None, label: str | None = None
    ) -> list[str]:
        """Remove the example of that id, or all with that label; None: those of none of these. Returns their
        ids. Raises UnknownHead, or UnknownExample where there is none."""
        with self._writing(model, head):
            folder = self._of(model, head)
            state = self.state(model, head)
            examples, _ = self._examples(folder)
            gone = [
                one for one in examples if (one.id == example if example is not None else _has(one, label))
            ]
            if not gone:
                raise UnknownExample(
                    f"the head `{head}` has no example "
                    + (f"`{shortened(example)}`" if example is not None else f"of `{shortened(label or '')}`")
                )
            self._edited(folder, state)
            for one in gone:
                (folder / "examples" / f"{one.id}.safetensors").unlink(missing_ok=True)
            needed = {one.clip for one in examples if one not in gone}
            for path in (folder / "clips").glob("[!.]*"):
                if path.name not in needed:
                    path.unlink(missing_ok=True)
            sync_folder(folder / "examples")
            return [one.id for one in gone]

    def examples(self, model: str, head: str) -> tuple[State, list[Example], int]:
        """State, examples from the oldest on, and how many files are damaged. Raises UnknownHead."""
        state = self.state(model, head)
        return state, *self._examples(self._of(model, head))

    def contents(self, model: str, head: str, *, encoder: str, embedding_size: int) -> Contents:
        """What a fit needs. Raises UnknownHead."""
        state = self.state(model, head)
        folder = self._of(model, head)
        examples, damaged = self._examples(folder)
        fitting, vectors = [], []
        for example in examples:
            if example.encoder != encoder:
                continue
            path = folder / "examples" / f"{example.id}.safetensors"
            try:
                vectors.append(checked_tensor(path, read_tensors(path)[0], "embedding", (embedding_size,)))
                fitting.append(example)
            except ModelFolderError:
                damaged += 1
        return Contents(
            state,
            tuple(fitting),
            np.stack(vectors) if vectors else np.zeros((0, embedding_size), np.float32),
            damaged,
            tuple(example for example in examples if example.encoder != encoder),
        )

    def clip(self, model: str, head: str, example: str) -> bytes:
        """The sound that an example is from, as it was sent. Raises UnknownHead and UnknownExample."""
        _, examples, _ = self.examples(model, head)
        for one in examples:
            if one.id == example:
                with contextlib.suppress(FileNotFoundError), _disk():
                    return (self._of(model, head) / "clips" / one.clip).read_bytes()
                raise UnknownExample(f"of the example `{one.id}` no clip was kept (keep_clips)")
        raise UnknownExample(f"the head `{head}` has no example `{shortened(example)}`")

    def has_clip(self, model: str, head: str, example: Example) -> bool:
        return (self._of(model, head) / "clips" / example.clip).exists()

    # Its file

    def publish(self, model: str, head: str, content: bytes, report: dict[str, Any], *, edits: int) -> bool:
        """Serve a head that was fitted after so many edits. False where one of a later fit is served, or
        the head is gone."""
        with self._writing(model, head):
            folder = self._of(model, head)
            if not (folder / "head.json").exists():
                return False
            newest = self.report(model, head)
            if newest and newest["edits"] > edits and self._served(model, head).exists():
                return False
            self._publish(model, head, content)
            write_whole(folder / "report.json", json.dumps(report | {"edits": edits}).encode())
            return True

    def report(self, model: str, head: str) -> dict[str, Any] | None:
        """What the last fit said; None where there was none, or the file is damaged."""
        try:
            report = json.loads((self._of(model, head) / "report.json").read_bytes())
            return report if isinstance(report.get("edits"), int) else None
        except (OSError, ValueError, AttributeError):
            return None

    def take_in(self, model: str, head: str, content: bytes, card: Card) -> Head:
        """A head's file from elsewhere. Raises HeadConflict where it does not fit the model, or where
        examples would be lost, and TeachingLimit."""
        with self._writing(model, head):
            folder = self._of(model, head)
            if (folder / "head.json").exists() and not self.state(model, head).is_imported:
                raise HeadConflict(
                    f"the head `{head}` has examples here, from which it is fitted: import under another "
                    "name, or delete it first"
                )
            trial = self.folder / model / f"{NEW}{head}.safetensors"
            try:
                trial.write_bytes(content)
                loaded = load_head(trial, embedding_size=card.embedding_size)
                _, metadata = read_tensors(trial)
            except ModelFolderError as error:
                reason = str(error).replace(trial.name, "the file")
                raise HeadConflict(f"this is no head of the model `{model}`: {reason}") from error
            finally:
                trial.unlink(missing_ok=True)
            if metadata.get("encoder", encoder_of(card)) != encoder_of(card):
                raise HeadConflict(f"the head was taught with another version of the model `{model}`")
            options = {"task": loaded.task, "none_of_these": loaded.known is not None}
            state = self._put(model, head, options)
            self._write_state(folder, replace(state, is_imported=True))
            self._publish(model, head, content)
            return loaded

    def file(self, model: str, head: str) -> bytes:
        """The head as a model folder takes it. Raises UnknownHead, or HeadConflict where it has not been
        fitted."""
        with _disk():
            try:
                return self._served(model, head).read_bytes()
            except FileNotFoundError:
                self.state(model, head)
                raise HeadConflict(f"the head `{head}` has not been fitted yet: POST its fit") from None

    def n_bytes(self) -> int:
        """Of all that is kept."""
        total, folders = 0, [os.fspath(self.folder)]
        while folders:
            with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        with contextlib.suppress(OSError):
                            total += entry.stat(follow_symlinks=False).st_size
        return total

    def check_writable(self) -> None:
        """Raises StorageFailed, with what would be right."""
        with _disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / ".writable", b"")
            (self.folder / ".writable").unlink(missing_ok=True)

    # Inside

    def _of(self, model: str, head: str) -> Path:
        return self.folder / model / "taught" / head

    def _served(self, model: str, head: str) -> Path:
        return self.folder / model / "heads" / f"{head}.safetensors"

    def _put(self, model: str, head: str, changes: dict[str, Any]) -> State:
        folder = self._of(model, head)
        is_there = True
        try:
            before = self.state(model, head)
        except UnknownHead:
            is_there = False
            if len(self.heads(model)) >= self.limits.heads:
                raise TeachingLimit(
                    f"a model is taught {self.limits.heads} heads at most (VIOLA_MAX_TAUGHT_HEADS)"
                ) from None
            before = State(Options(), created=now())
        except StorageFailed:  # head.json is damaged
            is_there = False
            before = State(Options(), edits=_edits_of(self.report(model, head)), created=now())
        options = replace(before.options, **changes)
        if is_there and options == before.options:
            return before
        if options.task == "multiclass" and any(len(e.labels) > 1 for e in self._examples(folder)[0]):
            raise HeadConflict("the head has examples with several labels: it stays multilabel, or they go")
        folder.mkdir(parents=True, exist_ok=True)
        state = replace(before, options=options, edits=before.edits + 1)
        self._write_state(folder, state)
        return state

    def _edited(self, folder: Path, state: State) -> None:
        self._write_state(folder, replace(state, edits=state.edits + 1))

    def _write_state(self, folder: Path, state: State) -> None:
        write_whole(folder / "head.json", json.dumps(asdict(state)).encode())

    def _publish(self, model: str, head: str, content: bytes) -> None:
        served = self._served(model, head)
        served.parent.mkdir(exist_ok=True)
        write_whole(served, content)
        self._tell(model)

    def _tell(self, model: str) -> None:
        """All processes that the model's heads have changed: the time of the generation goes up each time,
        also where the clock of the file system has not moved on."""
        path = self.folder / model / "generation"
        before = path.stat().st_mtime_ns if path.exists() else 0
        new = path.with_name(f"{NEW}generation")
        new.write_bytes(b"")
        moment = max(time.time_ns(), before + 1_000_000)
        os.utime(new, ns=(moment, moment))
        new.replace(path)

    def _examples(self, folder: Path) -> tuple[list[Example], int]:
        """From the oldest on; and how many files are damaged."""
        examples, damaged = [], 0
        for path in (folder / "examples").glob("[!.]*.safetensors"):
            try:
                examples.append(_read_example(path))
            except FileNotFoundError:  # it was removed meanwhile
                continue
            except (OSError, ValueError, KeyError, TypeError):
                damaged += 1
        return sorted(examples, key=lambda one: (one.added, one.id)), damaged

    @contextlib.contextmanager
    def _writing(self, model: str, head: str) -> Iterator[None]:
        """Alone, in all processes. What those who were killed have left is removed."""
        with self._one_thread, _disk():
            folder = self.folder / model
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as lock:
                _wait_for(lock)
                own = folder / "taught" / head
                for place in (folder, folder / "heads", own, own / "examples", own / "clips"):
                    for leftover in place.glob(f"{NEW}*"):
                        leftover.unlink(missing_ok=True)
                for gone in folder.glob(f"taught/{GONE}*"):
                    shutil.rmtree(gone, ignore_errors=True)
                yield


def _wait_for(lock: Any) -> None:
    """Until nobody else holds it. Asked again and again, because the system's own wait has no end."""
    if not HAS_LOCKS:
        return
    end = time.monotonic() + LOCK_S
    while not try_lock(lock):
        if time.monotonic() > end:
            raise Overloaded(
                f"another process has been writing what is taught for {LOCK_S:g} s, try again later",
                retry_after_s=LOCK_S,
            )
        time.sleep(LOCK_EVERY_S)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """Raises StorageFailed for what the system says."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageFailed(
            f"what is taught cannot be kept: {error.strerror or type(error).__name__}; nothing that was kept "
            "before is lost"
        ) from error


def _state_of(content: Any) -> State:
    """Raises KeyError, TypeError or ValueError where it was not written by us."""
    state = State(**{**content, "options": Options(**content["options"])})
    options = state.options
    is_right = options.task in ("multiclass", "multilabel") and isinstance(state.created, str)
    are_claims = all(
        isinstance(claim, bool) for claim in (options.none_of_these, options.keep_clips, state.is_imported)
    )
    if not (is_right and are_claims and type(state.edits) is int):
        raise ValueError("a value of another kind")
    return state


def _write_example(folder: Path, example: Example, vector: Array) -> None:
    metadata = {"example": json.dumps(asdict(example))}
    content = save({"embedding": np.ascontiguousarray(vector, np.float32)}, metadata=metadata)
    write_whole(folder / "examples" / f"{example.id}.safetensors", content)


def _read_example(path: Path) -> Example:
    """Its metadata alone, which stands first; the length of the file must be right. Raises ValueError,
    KeyError or TypeError for a damaged one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 100_000:
            raise ValueError("no header")
        header = json.loads(file.read(length))
        if os.fstat(file.fileno()).st_size != 8 + length + header["embedding"]["data_offsets"][1]:
            raise ValueError("cut short")
    content = json.loads(header["__metadata__"]["example"])
    example = Example(**{**content, "labels": tuple(content["labels"])})
    if example.id != path.stem:
        raise ValueError("another example's")
    texts = (*example.labels, example.file, example.added, example.encoder, example.clip)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a value of another kind")
    return example


def _has(example: Example, label: str | None) -> bool:
    return label in example.labels if label is not None else not example.labels


def _edits_of(report: dict[str, Any] | None) -> int:
    return report["edits"] if report else 0


def labels_counted(examples: Sequence[Example]) -> dict[str, int]:
    """By label, the oldest first."""
    return dict(Counter(label for example in examples for label in example.labels))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
