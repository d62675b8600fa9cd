"""A model folder in, a model out: `models/<name>/` is checked, loaded and run with onnxruntime.

    card.json                 what it is and how it is fed      ─► Card        (card.py)
    frontend.safetensors      window, filterbank                ─► LogMel      samples -> (n_mels, frames)
                              none where samples are taken      ─► Columns     samples -> (hop_length, T)
    encoder.onnx              the network, float32              ─► Session     log-mels -> Output
    encoder.int8.onnx         optional: for CPUs
    projection.safetensors    optional: centre and axes   ─► Projection   vectors -> unit vectors
    text/encoder.onnx         optional: a text tower    ─► TextEncoder  texts -> vectors (text.py)
    text/tokenizer.json       what takes its texts apart
    background.safetensors    optional: what all kinds of sounds give, for heads that are taught
    heads/<head>.safetensors  optional: small heads             ─► Head        vectors -> scores (heads.py)

A folder that does not fit its card is refused with a ModelFolderError whose sentence says what is wrong.

A network that cannot tell a clip from the padding behind it says so in its card's `batching`: its batches
hold clips of one length (`equal`), or one (`alone`), and nothing is padded.

onnxruntime keeps memory for every input shape it sees, so that batches are padded to a small set of lengths
(`padded_length`). A session whose device fails is opened again:

    session.run ─ fails ─► is it the device, or does the test signal fail, too? ── no ──► the input's fault
                                     └─ yes ─► open again ─► test signal ─► run once more
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import HeadOutdated, ModelFolderError, NoText, Overloaded
from service.inference.card import Card, check_file, check_files, load_card
from service.inference.heads import Head, load_heads, named_head
from service.inference.projection import Project, Projection, load_projection, project_of
from service.inference.selftest import (
    PROJECTED_TOLERANCE,
    Fingerprint,
    complaint,
    fingerprint,
    probe_sound,
)
from service.inference.session import (
    INPUT_IS_WRONG,
    Device,
    Session,
    TensorRT,
    candidates,
    is_failure_of_device,
)
from service.inference.tensors import checked_tensor, read_tensors
from service.inference.text import TextEncoder, load_text, why_no_text
from service.sound.logmel import LogMel, LogMelStream
from service.sound.waveform import Columns, ColumnStream, Waveform

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Precision = Literal["auto", "float32", "float16", "int8"]

REOPEN_EVERY_S = 5.0  # a session that cannot be opened is not tried more often
BACKGROUND = "background.safetensors"
GRAPH_FILES = {"float32": "encoder.onnx", "float16": "encoder.float16.onnx", "int8": "encoder.int8.onnx"}


@dataclass(frozen=True)
class Output:
    """One item's result. sum, max: (D,) over its `count` output frames; frames: (count, D) float32, if
    asked for."""

    sum: NDArray[np.floating]
    max: Array
    count: int
    frames: Array | None = None


class OpenGraph(Protocol):
    """What runs the network: service/inference/session.py."""

    device: str

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]: ...

    def reopen(self) -> None: ...


class Model:
    """A loaded folder. `run`, `self_test` and `warm_up` are called by one thread at a time, `logmel` by any
    number.

    failure: why nothing can be run just now; None while all is well. text: what embeds texts; None where
    there is nothing that does.
    """

    def __init__(
        self,
        folder: Path,
        card: Card,
        logmel: LogMel | Columns,
        session: OpenGraph,
        heads: dict[str, Head],
        precision: str,
        projection: Projection | None = None,
        text: TextEncoder | None = None,
    ) -> None:
        self.card = card
        self.heads = heads
        self.precision = precision
        self.device = session.device
        self.failure: str | None = None
        self._folder = folder
        self._logmel = logmel
        self._session = session
        self.projection = projection
        self.text = text
        self._opened_again_at = -REOPEN_EVERY_S
        # Of what was taught: heads that `heads` does not hold, and why (service/teaching).
        self.own_heads = heads
        self.unserved_heads: dict[str, str] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        threads: int = 1,
        batch_threads: int | None = None,
        max_batch: int = 32,
        tensorrt_cache: Path | None = None,
    ) -> "Model":
        """Checks everything and reads the graph. threads: for one item; batch_threads: for a batch, by
        default as many. Raises ModelFolderError.

        max_batch: the most items of a batch, and tensorrt_cache: both for TensorRT, see session.py.
        """
        card = load_card(folder)
        check_files(folder, card)
        logmel = _load_frontend(folder / "frontend.safetensors", card)
        heads = load_heads(folder, card)
        projection = load_projection(folder, card)
        text = load_text(folder, card)

        def opened(device: str) -> Model:
            chosen = _choose_precision(card, precision, on_cpu=device == "cpu")
            engine = TensorRT(
                n_mels=card.frontend.n_rows,
                shortest=padded_length(card.windows.shortest, longest=card.windows.frames),
                longest=card.windows.frames,
                batch=max_batch,
                half=chosen == "float16",
                cache=tensorrt_cache,
            )
            file = folder / GRAPH_FILES[chosen]
            session = Session(
                file, device=device, threads=threads, batch_threads=batch_threads, tensorrt=engine
            )
            _check_graph(session, card, GRAPH_FILES[chosen])
            return cls(folder, card, logmel, session, heads, chosen, projection, text)

        *better, last = candidates(device)
        for each in better:
            try:
                return opened(each)
            except ModelFolderError as error:
                log.warning("device: %s instead of %s, because %s", last, each, error)
        return opened(last)

    def logmel(self, samples: Array) -> Array:
        """(n,) float32 mono in [-1, 1] at card.sample_rate -> (n_mels, frames) float32; of a network that
        takes samples those, in columns (hop_length, frames).

        A clip shorter than card.min_samples is padded with zeros at its end.
        """
        missing = self.card.min_samples - len(samples)
        return self._logmel(np.pad(samples, (0, missing)) if missing > 0 else samples)

    def logmel_blocks(self, blocks: Iterable[Array]) -> Iterator[Array]:
        """The log-mel of a clip that comes in blocks (n,) of samples, as blocks (n_mels, frames): put
        together they are exactly `logmel` of the whole clip."""
        blocks = iter(blocks)
        first = list(islice(blocks, 2))
        if len(first) == 1:  # as most clips: nothing is kept for a next block, which takes four copies
            yield self.logmel(first[0])
            return
        blocks, stream = chain(first, blocks), self.logmel_stream()
        del first
        for block in blocks:
            yield from stream.push(block)
        yield from stream.close()

    def logmel_stream(self) -> LogMelStream | ColumnStream:
        """The log-mel of a clip that comes in blocks, for whoever takes it at a pace of its own."""
        return self._logmel.stream(min_samples=self.card.min_samples)

    def background(self) -> Array | None:
        """(b, D): embeddings of all kinds of sounds, from background.safetensors; None where there is none.
        Raises ModelFolderError."""
        return load_background(self._folder, self.card)

    def padded_length(self, n_frames: int) -> int:
        """The length to which `run` pads an item; items of one padded length waste nothing on each other."""
        if self.card.batching != "padded":
            return n_frames
        return padded_length(n_frames, longest=self.card.windows.frames)

    def run(self, logmels: Sequence[Array], *, frames: bool = False) -> list[Output]:
        """One batch: log-mels (n_mels, T_i) -> their outputs; with `frames`, one vector per output frame.

        An item's output does not depend on the others: what lies beyond its length changes nothing, or there
        is nothing.
        """
        if self.card.batching == "padded":
            return self._run_padded(logmels, frames=frames)
        lengths = [logmel.shape[1] for logmel in logmels]
        groups = [[i] for i in range(len(logmels))]
        if self.card.batching == "equal":
            groups = [
                [i for i, each in enumerate(lengths) if each == length] for length in dict.fromkeys(lengths)
            ]
        found = {
            i: output
            for group in groups
            for i, output in zip(
                group, self._run_padded([logmels[i] for i in group], frames=frames), strict=True
            )
        }
        return [found[i] for i in range(len(logmels))]

    def _run_padded(self, logmels: Sequence[Array], *, frames: bool) -> list[Output]:
        n_frames = np.array([logmel.shape[1] for logmel in logmels], dtype=np.int64)
        length = self.padded_length(int(n_frames.max()))
        batch = np.zeros((len(logmels), self.card.frontend.n_rows, length), dtype=np.float32)
        for row, logmel in zip(batch, logmels, strict=True):
            row[:, : logmel.shape[1]] = logmel
        names = ["sum", "max", "count", "frames"][: 4 if frames else 3]
        sums, maxima, counts, *vectors = self._run_graph(names, {"logmel": batch, "n_frames": n_frames})
        return [
            Output(sums[i], maxima[i], count := int(counts[i]), vectors[0][i, :count] if frames else None)
            for i in range(len(logmels))
        ]

    def project_of(self, *, normalize: bool | None = None, dimensions: int | None = None) -> Project | None:
        """What makes of vectors (n, D) those that are asked for; None: they are it. Raises BadRequest."""
        return project_of(self.projection, self.card, normalize=normalize, dimensions=dimensions)

    def head(self, name: str | None = None) -> Head:
        """The head of that name; the first one where it is None. Raises UnknownHead, or HeadOutdated."""
        if name in self.unserved_heads and name not in self.heads:
            raise HeadOutdated(f"the head `{name}` is not served: {self.unserved_heads[name]}; fit it again")
        return named_head(self.heads, name, model=self.card.name)

    def text_encoder(self, elsewhere: Sequence[str] | None = None) -> TextEncoder:
        """What embeds texts in the space of the sounds. elsewhere: the models that have such, where they are
        known. Raises NoText."""
        if self.text is None:
            is_off = self.card.text is not None
            raise NoText(why_no_text(self.card.name, is_off=is_off, elsewhere=elsewhere))
        return self.text

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
        test = self.card.self_test
        expected = test.expected.get(self.precision) if test else None
        projected = test.projected.get(self.precision) if test else None
        try:
            vector = self.probe_vector()
            if (reason := complaint(vector, expected)) or not (self.projection and projected):
                return reason
            return complaint(self.projection.whole(vector[None])[0], projected, of="normalised embedding")
        except Exception as error:  # onnxruntime's errors share no class but this
            return f"its graph fails on the test signal: {error}"

    def warm_up(self, *, max_batch_frames: int, max_batch_items: int) -> None:
        """On a GPU one run of every padded length, alone and as a full batch: what is searched for, compiled
        or allocated for a shape is then there before the first request. The CPU prepares nothing."""
        if self.device == "cpu":
            return
        windows = self.card.windows
        lengths = padded_lengths(windows.frames, shortest=windows.shortest)
        for length in lengths if self.card.batching == "padded" else [windows.frames]:
            logmel = np.zeros((self.card.frontend.n_rows, length), dtype=np.float32)
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

    def projected_fingerprint(self) -> Fingerprint | None:
        """Of the test signal's normalised vector, for the card; None without a projection."""
        if self.projection is None:
            return None
        vector = self.projection.whole(self.probe_vector()[None])[0]
        return fingerprint(vector, tolerance=PROJECTED_TOLERANCE)

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


def load_background(folder: Path, card: Card) -> Array | None:
    """`Model.background` of a folder."""
    if BACKGROUND not in card.files:
        return None
    path = folder / BACKGROUND
    tensors, _ = read_tensors(path)
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    n = len(tensors["embeddings"]) if "embeddings" in tensors else 0
    embeddings = checked_tensor(path, tensors, "embeddings", (max(1, n), card.embedding_size))
    if "scales" in tensors:
        embeddings = embeddings * checked_tensor(path, tensors, "scales", (n,))[:, None]
    return embeddings


def _load_frontend(path: Path, card: Card) -> LogMel | Columns:
    frontend = card.frontend
    if isinstance(frontend, Waveform):
        return Columns(frontend)
    tensors, _ = read_tensors(path)
    window = checked_tensor(path, tensors, "window", (frontend.win_length,))
    filterbank = checked_tensor(path, tensors, "filterbank", (frontend.n_fft // 2 + 1, frontend.n_mels))
    return LogMel(frontend, window, filterbank)


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
    n_mels, D = card.frontend.n_rows, card.embedding_size
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
