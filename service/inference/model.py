"""A model folder in, a model out: `models/<name>/` is checked, loaded and run with onnxruntime.

    card.json                 what it is and how it is fed      ─► Card
    frontend.safetensors      window, filterbank                ─► LogMel      samples -> (n_mels, frames)
    encoder.onnx              the network, float32              ─► a session   log-mels -> Output
    encoder.int8.onnx         optional: for CPUs
    heads/<head>.safetensors  optional: linear heads            ─► Head        vectors -> scores

A folder that does not fit its card is refused with a ModelFolderError whose sentence says what is wrong.

onnxruntime keeps memory for every input shape it sees, so that batches are padded to a small set of lengths
(`padded_length`). A session whose device fails is opened again:

    session.run ─ fails ─► is it the device, or does the test signal fail, too? ── no ──► the input's fault
                                     └─ yes ─► open again ─► test signal ─► run once more
"""

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open

from service.errors import ModelFolderError, Overloaded
from service.logmel import Frontend, LogMel
from service.selftest import SelfTest, complaint, probe_sound
from service.session import INPUT_IS_WRONG, Device, Session, TensorRT, candidates, is_failure_of_device

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Precision = Literal["auto", "float32", "float16", "int8"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a model or a head: a file's name everywhere
REOPEN_EVERY_S = 5.0  # a session that cannot be opened is not tried more often
GRAPH_FILES = {"float32": "encoder.onnx", "float16": "encoder.float16.onnx", "int8": "encoder.int8.onnx"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Encoder(_Part):
    """Which network, and what builds it in `encoders`."""

    name: str
    parameters: dict[str, JsonValue] = {}


class Normalization(_Part):
    """(log-mel - mean) / std happens inside the graph; here it informs."""

    mean: float
    std: float


class Windows(_Part):
    """How long audio is cut; see service/windows.py. All in log-mel frames but `context`."""

    kind: Literal["exact", "independent"]
    stride: PositiveInt = 1  # log-mel frames per output frame
    context: int = Field(default=0, ge=0)  # output frames at an inner edge that differ from the whole clip's
    frames: PositiveInt  # longest window
    min_frames: PositiveInt = 1  # a shorter last window gives nothing and is dropped

    @property
    def shortest(self) -> int:
        """The fewest log-mel frames that are ever run."""
        return max(self.stride, self.min_frames)

    @model_validator(mode="after")
    def _advances(self) -> Self:
        if self.kind == "exact" and self.frames // self.stride <= 2 * self.context:
            raise ValueError(
                f"a window of {self.frames} frames keeps none of its output frames; make it longer"
            )
        return self


class Card(_Part):
    """card.json. What the server must know comes first, what a person wants to know after it."""

    format: Literal[1] = 1
    name: str = Field(pattern=NAME)
    version: str
    description: str
    licence: str  # SPDX identifier or a sentence
    created: str  # ISO date
    commit: str = ""  # git hash of the code that exported it
    encoder: Encoder
    sample_rate: PositiveInt  # Hz
    frontend: Frontend
    normalization: Normalization
    embedding_size: PositiveInt
    frame_period_ms: PositiveFloat
    first_frame_centre_ms: float
    pooling: Literal["mean+max", "mean"]
    min_samples: PositiveInt  # shorter clips are padded with zeros at their end
    windows: Windows
    files: dict[str, str]  # name within the folder -> SHA-256
    variants: dict[str, dict[str, JsonValue]] = {}
    training: dict[str, JsonValue] = {}
    evaluation: list[dict[str, JsonValue]] = []
    intended_use: str = ""
    limitations: str = ""
    self_test: SelfTest | None = None

    @model_validator(mode="after")
    def _shortest_input_is_enough(self) -> Self:
        n_frames = self.frontend.n_frames(self.min_samples)
        if n_frames < self.windows.shortest:
            raise ValueError(
                f"min_samples = {self.min_samples} gives {n_frames} log-mel frames, fewer than the "
                f"{self.windows.shortest} that make an output frame"
            )
        return self


@dataclass(frozen=True)
class Head:
    """A linear head. scaler_mean, scaler_std: (D,); weight: (C, D); bias: (C,), all float32; C labels.

    layer_norm_eps: each embedding is first brought to mean 0 and variance 1 over its own numbers; None: not.
    """

    name: str
    labels: tuple[str, ...]
    task: Literal["multiclass", "multilabel"]
    scaler_mean: Array
    scaler_std: Array
    weight: Array
    bias: Array
    training_data: str = ""
    results: JsonValue = None
    layer_norm_eps: float | None = None

    def score(self, embeddings: Array) -> Array:
        """(n, D) -> (n, C): probabilities that sum to 1 (multiclass) or stand alone (multilabel)."""
        if self.layer_norm_eps is not None:
            embeddings = _layer_norm(embeddings, self.layer_norm_eps)
        scaled = (embeddings - self.scaler_mean) / self.scaler_std
        logits = np.asarray(scaled @ self.weight.T + self.bias, dtype=np.float32)
        return _softmax(logits) if self.task == "multiclass" else _sigmoid(logits)


@dataclass(frozen=True)
class Output:
    """One item's result. sum, max: (D,) over its `count` output frames; frames: (count, D) float32, if
    asked for."""

    sum: NDArray[np.floating]
    max: Array
    count: int
    frames: Array | None = None


class OpenGraph(Protocol):
    """What runs the network: service/session.py."""

    device: str

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]: ...

    def reopen(self) -> None: ...


class Model:
    """A loaded folder. `run`, `self_test` and `warm_up` are called by one thread at a time, `logmel` by any
    number.

    failure: why nothing can be run just now; None while all is well.
    """

    def __init__(
        self,
        folder: Path,
        card: Card,
        logmel: LogMel,
        session: OpenGraph,
        heads: dict[str, Head],
        precision: str,
    ) -> None:
        self.card = card
        self.heads = heads
        self.precision = precision
        self.device = session.device
        self.failure: str | None = None
        self._folder = folder
        self._logmel = logmel
        self._session = session
        self._opened_again_at = -REOPEN_EVERY_S

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        threads: int = 1,
        lanes: int | None = None,
        max_batch: int = 32,
        tensorrt_cache: Path | None = None,
    ) -> "Model":
        """Checks everything and reads the graph; `threads` within the run of one item, `lanes` (by default as
        many) parts of a batch side by side. Raises ModelFolderError.

        max_batch: the most items of a batch, and tensorrt_cache: both for TensorRT, see service/session.py.
        """
        card = load_card(folder)
        check_files(folder, card)
        logmel = _load_logmel(folder / "frontend.safetensors", card.frontend)
        heads = dict(_load_heads(folder, card))

        def opened(device: str) -> Model:
            chosen = _choose_precision(card, precision, on_cpu=device == "cpu")
            engine = TensorRT(
                n_mels=card.frontend.n_mels,
                shortest=padded_length(card.windows.shortest, longest=card.windows.frames),
                longest=card.windows.frames,
                batch=max_batch,
                half=chosen == "float16",
                cache=tensorrt_cache,
            )
            file = folder / GRAPH_FILES[chosen]
            session = Session(file, device=device, threads=threads, lanes=lanes, tensorrt=engine)
            _check_graph(session, card, GRAPH_FILES[chosen])
            return cls(folder, card, logmel, session, heads, chosen)

        *better, last = candidates(device)
        for each in better:
            try:
                return opened(each)
            except ModelFolderError as error:
                log.warning("device: %s instead of %s, because %s", last, each, error)
        return opened(last)

    def logmel(self, samples: Array) -> Array:
        """(n,) float32 mono in [-1, 1] at card.sample_rate -> (n_mels, frames) float32.

        A clip shorter than card.min_samples is padded with zeros at its end.
        """
        missing = self.card.min_samples - len(samples)
        return self._logmel(np.pad(samples, (0, missing)) if missing > 0 else samples)

    def logmel_blocks(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """The log-mel of a clip that comes in blocks (n,) of samples, as blocks (n_mels, frames): put
        together they are exactly `logmel` of the whole clip."""
        stream = self._logmel.stream(min_samples=self.card.min_samples)
        for block in blocks:
            yield from stream.push(block)
        yield from stream.close()

    def padded_length(self, n_frames: int) -> int:
        """The length to which `run` pads an item; items of one padded length waste nothing on each other."""
        return padded_length(n_frames, longest=self.card.windows.frames)

    def run(self, logmels: Sequence[Array], *, frames: bool = False) -> list[Output]:
        """One batch: log-mels (n_mels, T_i) -> their outputs; with `frames`, one vector per output frame.

        An item's output does not depend on the others: what lies beyond its length changes nothing.
        """
        n_frames = np.array([logmel.shape[1] for logmel in logmels], dtype=np.int64)
        length = self.padded_length(int(n_frames.max()))
        batch = np.zeros((len(logmels), self.card.frontend.n_mels, length), dtype=np.float32)
        for row, logmel in zip(batch, logmels, strict=True):
            row[:, : logmel.shape[1]] = logmel
        names = ["sum", "max", "count", "frames"][: 4 if frames else 3]
        sums, maxima, counts, *vectors = self._run_graph(names, {"logmel": batch, "n_frames": n_frames})
        return [
            Output(sums[i], maxima[i], count := int(counts[i]), vectors[0][i, :count] if frames else None)
            for i in range(len(logmels))
        ]

    def self_test(self) -> str | None:
        """`probe`, and where something is wrong a new session: None once all is well, else what is not.

        It costs about as much as a clip of a second, and is what makes a server without requests ready again.
        """
        reason = self.failure or self.probe()
        if reason is not None:
            try:
                self._open_again(reason)
            except Overloaded:
                return self.failure
        return None

    def probe(self) -> str | None:
        """What is wrong with the embedding of the test signal: None where it is the card's, or where the card
        knows none and it is finite."""
        expected = self.card.self_test.expected.get(self.precision) if self.card.self_test else None
        try:
            return complaint(self.probe_vector(), expected)
        except Exception as error:  # onnxruntime's errors share no class but this
            return f"its graph fails on the test signal: {error}"

    def warm_up(self, *, max_batch_frames: int, max_batch_items: int) -> None:
        """On a GPU one run of every padded length, alone and as a full batch: what is searched for, compiled
        or allocated for a shape is then there before the first request. The CPU prepares nothing."""
        if self.device == "cpu":
            return
        windows = self.card.windows
        for length in padded_lengths(windows.frames, shortest=windows.shortest):
            logmel = np.zeros((self.card.frontend.n_mels, length), dtype=np.float32)
            for n in sorted({1, max(1, min(max_batch_items, max_batch_frames // length))}):
                self.run([logmel] * n)

    def probe_logmel(self) -> Array:
        """(n_mels, T): the test signal, no longer than a window."""
        return self.logmel(probe_sound(self.card.sample_rate))[:, : self.card.windows.frames]

    def probe_vector(self) -> Array:
        """(D,): the embedding of the test signal. Raises what onnxruntime raises."""
        logmel = self.probe_logmel()
        n_frames = np.array([logmel.shape[1]], dtype=np.int64)
        sums, maxima, counts = self._session.run(
            ["sum", "max", "count"], {"logmel": logmel[None], "n_frames": n_frames}
        )
        mean = np.asarray(sums[0] / counts[0], dtype=np.float32)
        return mean + maxima[0] if self.card.pooling == "mean+max" else mean

    def _run_graph(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Raises what onnxruntime raises where the input is to blame, Overloaded while nothing can be run."""
        if self.failure is not None:
            self._open_again(self.failure)
        try:
            return self._session.run(names, feed)
        except INPUT_IS_WRONG:
            raise
        except Exception as error:
            is_new = time.monotonic() - self._opened_again_at >= REOPEN_EVERY_S
            if not (is_failure_of_device(error) and is_new) and self.probe() is None:
                raise  # the session does what it should: this input is the reason
            reason = f"{type(error).__name__}: {error}"
        self._open_again(reason)
        return self._session.run(names, feed)

    def _open_again(self, reason: str) -> None:
        """A new session that has passed its self-test. Raises Overloaded where there is none, and for a few
        seconds from then on without another try."""
        if self.failure is not None and time.monotonic() - self._opened_again_at < REOPEN_EVERY_S:
            raise Overloaded(f"the model {self.failure}", retry_after_s=REOPEN_EVERY_S)
        self.failure = f"failed and is being opened again: {reason}"
        log.error("the model %s %s", self.card.name, self.failure)
        self._opened_again_at = time.monotonic()
        try:
            graph = GRAPH_FILES[self.precision]
            check_file(self._folder, graph, self.card.files[graph])
            self._session.reopen()
            still_wrong = self.probe()
        except ModelFolderError as error:
            still_wrong = str(error)
        if still_wrong:
            self.failure = f"failed and could not be opened again: {still_wrong}"
            log.error("the model %s %s", self.card.name, self.failure)
            raise Overloaded(f"the model {self.failure}", retry_after_s=REOPEN_EVERY_S)
        self.failure = None
        log.warning("the model %s was opened again and has passed its self-test", self.card.name)


def padded_lengths(longest: int, *, shortest: int = 1) -> list[int]:
    """All lengths to which log-mels of `shortest` to `longest` frames are padded."""
    return sorted({padded_length(n, longest=longest) for n in range(shortest, longest + 1)})


def padded_length(n_frames: int, *, longest: int) -> int:
    """The next length of a small set, in log-mel frames.

    Steps of 8 up to 128, then 8 steps per doubling (144, 160 … 256, 288 …), so that padding costs less than
    an eighth, 6 % in the mean: 101 -> 104, 501 -> 512. `longest`, a full window, is in the set too.
    """
    step = max(8, (1 << (n_frames - 1).bit_length()) // 16)
    padded = -(-n_frames // step) * step
    return min(padded, longest) if n_frames <= longest else padded


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_card(folder: Path) -> Card:
    """card.json, validated. Raises ModelFolderError."""
    try:
        return Card.model_validate_json((folder / "card.json").read_bytes())
    except OSError as error:
        raise ModelFolderError(f"{folder.name}: card.json cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ModelFolderError(f"{folder.name}: card.json does not fit: {_complaints(error)}") from error


def write_card(folder: Path, card: Card) -> None:
    """Writes card.json in one step: a reader sees the old card or the new one, never half of it."""
    text = card.model_dump_json(indent=2) + "\n"
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix=".card-", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary = Path(file.name)
    temporary.chmod(0o644)
    temporary.replace(folder / "card.json")


def check_files(folder: Path, card: Card) -> None:
    """Every file of the card is there and is the one the card was written for. Raises ModelFolderError."""
    for required in ("frontend.safetensors", "encoder.onnx"):
        if required not in card.files:
            raise ModelFolderError(f"{folder.name}: card.json lists no {required}, which every model needs")
    for name, expected in card.files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelFolderError(f"{folder.name}: card.json lists {name}, which is outside the folder")
        check_file(folder, name, expected)


def check_file(folder: Path, name: str, expected: str) -> None:
    """The file is there and has this SHA-256. Raises ModelFolderError."""
    path = folder / name
    try:
        found = sha256_of(path) if path.is_file() else None
    except OSError as error:
        raise ModelFolderError(f"{folder.name}: {name} cannot be read: {error.strerror}") from error
    if found is None:
        raise ModelFolderError(f"{folder.name}: {name} is missing")
    if found != expected:
        raise ModelFolderError(
            f"{folder.name}: {name} is not the file of the card: its SHA-256 is {found[:12]}…, not "
            f"{expected[:12]}…; restore the file or export the model again"
        )


def _complaints(error: ValidationError) -> str:
    places = (".".join(map(str, e["loc"])) + ": " + e["msg"] for e in error.errors()[:5])
    return "; ".join(place.removeprefix(": ") for place in places)


def _tensors(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """A safetensors file: its arrays and its metadata."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path.name} is no safetensors file: {error}") from error


def _checked_tensor(path: Path, tensors: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> Array:
    if name not in tensors:
        raise ModelFolderError(f"{path.name} holds no tensor `{name}`")
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.shape != shape:
        raise ModelFolderError(f"{path.name}: `{name}` is {tensor.dtype} {tensor.shape}, not float32 {shape}")
    if not np.isfinite(tensor).all():
        raise ModelFolderError(f"{path.name}: `{name}` holds NaN or infinite values")
    return tensor


def _load_logmel(path: Path, frontend: Frontend) -> LogMel:
    tensors, _ = _tensors(path)
    window = _checked_tensor(path, tensors, "window", (frontend.win_length,))
    filterbank = _checked_tensor(path, tensors, "filterbank", (frontend.n_fft // 2 + 1, frontend.n_mels))
    return LogMel(frontend, window, filterbank)


def _load_heads(folder: Path, card: Card) -> Iterator[tuple[str, Head]]:
    for name in card.files:
        if name.startswith("heads/") and name.endswith(".safetensors"):
            head = load_head(folder / name, embedding_size=card.embedding_size)
            yield head.name, head


def load_head(path: Path, *, embedding_size: int) -> Head:
    """`heads/<head>.safetensors`, checked. Raises ModelFolderError.

    A head with a layer normalisation holds no scaler, so that a server which knows of none refuses it.
    """
    tensors, metadata = _tensors(path)
    try:
        labels = tuple(json.loads(metadata["labels"]))
        results = json.loads(metadata.get("results", "null"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(
            f"{path.name}: the metadata `labels` must be a list in JSON ({error})"
        ) from error
    D, C = embedding_size, len(labels)
    eps = _layer_norm_eps(path, metadata.get("layer_norm_eps"))
    if eps is not None:
        tensors |= {"scaler_mean": np.zeros(D, np.float32), "scaler_std": np.ones(D, np.float32)}
    head = Head(
        name=path.stem,
        labels=labels,
        task=_task(path, metadata.get("task")),
        scaler_mean=_checked_tensor(path, tensors, "scaler_mean", (D,)),
        scaler_std=_checked_tensor(path, tensors, "scaler_std", (D,)),
        weight=_checked_tensor(path, tensors, "weight", (C, D)),
        bias=_checked_tensor(path, tensors, "bias", (C,)),
        training_data=metadata.get("training_data", ""),
        results=results,
        layer_norm_eps=eps,
    )
    if not (head.scaler_std > 0).all():
        raise ModelFolderError(f"{path.name}: `scaler_std` must be positive everywhere")
    return head


def _layer_norm_eps(path: Path, written: str | None) -> float | None:
    if written is None:
        return None
    try:
        eps = float(written)
    except ValueError:
        eps = math.nan
    if not 0 < eps < 1:
        raise ModelFolderError(
            f"{path.name}: the metadata `layer_norm_eps` is {written!r}, not a small positive number"
        )
    return eps


def _task(path: Path, task: str | None) -> Literal["multiclass", "multilabel"]:
    if task == "multiclass":
        return "multiclass"
    if task == "multilabel":
        return "multilabel"
    raise ModelFolderError(f"{path.name}: the metadata `task` is {task!r}, not multiclass or multilabel")


def _choose_precision(card: Card, precision: Precision, *, on_cpu: bool) -> str:
    if precision == "auto":
        return "int8" if on_cpu and GRAPH_FILES["int8"] in card.files else "float32"
    if GRAPH_FILES[precision] not in card.files:
        raise ModelFolderError(
            f"{card.name} has no {GRAPH_FILES[precision]}; choose the precision auto or float32"
        )
    return precision


def _check_graph(session: Session, card: Card, name: str) -> None:
    """Inputs and outputs are those of the contract; a number in a shape must be this one."""
    n_mels, D = card.frontend.n_mels, card.embedding_size
    inputs = {"logmel": ("float", (None, n_mels, None)), "n_frames": ("int64", (None,))}
    outputs: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "frames": ("float", (None, None, D)),
        "sum": ("float", (None, D)),
        "max": ("float", (None, D)),
        "count": ("int64", (None,)),
    }
    _check_values(name, "input", session.inputs, inputs)
    _check_values(name, "output", session.outputs, outputs)


def _check_values(
    graph: str, kind: str, found: list[Any], expected: dict[str, tuple[str, tuple[int | None, ...]]]
) -> None:
    names = [value.name for value in found]
    if set(names) != set(expected):
        raise ModelFolderError(f"{graph} has the {kind}s {names}, not {list(expected)}")
    for value in found:
        dtype, shape = expected[value.name]
        fits = len(value.shape) == len(shape) and all(
            want is None or not isinstance(got, int) or got == want
            for got, want in zip(value.shape, shape, strict=True)
        )
        if value.type != f"tensor({dtype})" or not fits:
            raise ModelFolderError(
                f"{graph}: {kind} `{value.name}` is {value.type} {value.shape}, "
                f"not tensor({dtype}) {[want or 'any' for want in shape]}"
            )


def _layer_norm(embeddings: Array, eps: float) -> Array:
    """(n, D) -> (n, D): mean 0, variance 1 over each one's numbers."""
    centred = embeddings - embeddings.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps), dtype=np.float32)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _sigmoid(logits: Array) -> Array:
    return (1 + np.tanh(logits / 2)) * np.float32(0.5)  # never overflows
