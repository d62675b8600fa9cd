"""An ONNX file and a device in, a session that runs it out; which device, with which options, and why.

    auto ─► is there a CUDA provider, a driver, a GPU? ─► cuda, else cpu: the reason goes into the log

The CPU's arena keeps what the largest batch needed and gives later batches the same memory again: with
batches bounded, and lengths of a small set, it stops growing within the first few dozen batches, and it is a
fifth faster than malloc. Memory patterns are off, since they are kept for every input shape. Threads do not
spin while they wait: on a shared machine that is time taken from decoding.

    one item   all threads share its arithmetic (onnxruntime's intra-op threads)     the least latency
               of a small graph one thread does it all
    a batch    parts of it, each run by one thread from end to end (BatchSplitter)   the least CPU

On CUDA the search for convolution algorithms, one for each new shape, is HEURISTIC, and the arena grows by
what is asked for, not by doubling.
"""

import ctypes
import logging
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors

from service.errors import ModelFolderError

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda", "tensorrt"]
Feed = Mapping[str, NDArray[Any]]
Provider = tuple[str, dict[str, str]]

PROVIDER_OF = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# What messages of onnxruntime say when the device or its memory failed, not the input.
FAILURES = (
    "cuda",
    "cudnn",
    "cublas",
    "tensorrt",
    "out of memory",
    "allocate memory",
    "bad_alloc",
    "bad alloc",
)
SECOND_FRAMES = 104  # log-mel frames of a second, padded: the shape for which TensorRT optimises
PART_FRAMES = 8 * SECOND_FRAMES  # in one part of a batch: more fall out of a core's cache
# One clip of a graph this small (mn04: 0.7 ms for a second of sound) takes one thread less time than it takes
# to share it: 438 requests/s of one client, not 366 (2026-11-28, two cores; the script is not kept).
SMALL_GRAPH_BYTES = 5_000_000
LARGE_GRAPH_BYTES = 100_000_000  # of a graph: one clip keeps all threads busy, and takes 100 MB and more
INPUT_IS_WRONG = (onnxruntime_errors.InvalidArgument, ValueError, TypeError)


@dataclass(frozen=True)
class TensorRT:
    """What its engine is built for: log-mels (1 … batch, n_mels, shortest … longest). half: in float16;
    cache: a folder that keeps the engine, without which it is built at each start, for minutes."""

    n_mels: int
    shortest: int
    longest: int
    batch: int
    half: bool
    cache: Path | None = None


class Session:
    """An open graph; `run` and `reopen` are called by one thread at a time.

    threads: for one item; batch_threads: for a batch, by default as many. Raises ModelFolderError.
    """

    def __init__(
        self, path: Path, *, device: str, threads: int, tensorrt: TensorRT, batch_threads: int | None = None
    ) -> None:
        self.device = device
        self._path = path
        is_small = device == "cpu" and path.stat().st_size < SMALL_GRAPH_BYTES
        self._threads = 1 if is_small else threads
        self._batch_threads = batch_threads or threads
        self._providers = providers_of(device, tensorrt)
        self._session: onnxruntime.InferenceSession | None = self._open()
        self._splitter: BatchSplitter | None = self._open_splitter()

    @property
    def inputs(self) -> list[Any]:
        assert self._session is not None
        return list(self._session.get_inputs())

    @property
    def outputs(self) -> list[Any]:
        assert self._session is not None
        return list(self._session.get_outputs())

    def run(self, names: Sequence[str], feed: Feed) -> list[NDArray[Any]]:
        """The outputs called `names`. Raises what onnxruntime raises; see `is_failure_of_device`."""
        if self._session is None:
            raise RuntimeError("the session is closed, because it could not be opened again")
        if self.device == "cpu":
            if self._splitter is not None and len(feed["logmel"]) >= self._splitter.least_items:
                return self._splitter.run(names, feed)
            return list(self._session.run(list(names), dict(feed)))
        return run_bound(self._session, names, feed)

    def reopen(self) -> None:
        """Close the session, then open the file again. Raises ModelFolderError, and then it stays closed."""
        self._session = self._splitter = None  # first, so that the device's memory is free
        self._session = self._open()
        self._splitter = self._open_splitter()

    def _open_splitter(self) -> "BatchSplitter | None":
        """On a CPU only. A large graph is not loaded twice: its parts of a batch are run one after the other,
        each by all threads."""
        if self.device != "cpu":
            return None
        if self._path.stat().st_size > LARGE_GRAPH_BYTES:
            assert self._session is not None
            return BatchSplitter(self._session, 1)
        if self._batch_threads == 1:
            return None
        one = self._session if self._threads == 1 else self._open(threads=1)
        assert one is not None
        return BatchSplitter(one, self._batch_threads)

    def _open(self, threads: int | None = None) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.enable_mem_pattern = False
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # Without its fallback, which would go on with another provider and say so on stdout.
            session = onnxruntime.InferenceSession(
                self._path, options, providers=self._providers, enable_fallback=0
            )
        except Exception as error:  # onnxruntime's errors share no class but this
            raise ModelFolderError(f"{self._path.name} cannot be loaded: {error}") from error
        if session.get_providers()[0] != PROVIDER_OF[self.device]:
            raise ModelFolderError(
                f"onnxruntime could not start its {PROVIDER_OF[self.device]}{_why_not_loaded(self.device)}"
            )
        return session


class BatchSplitter:
    """A batch in, its parts run side by side, each by one thread in a session that starts none of its own."""

    def __init__(self, session: onnxruntime.InferenceSession, n_threads: int) -> None:
        self.least_items = 2 * n_threads  # of fewer, each costs more alone than all threads need together
        self._session = session
        self._n_threads = n_threads
        self._helpers = ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="viola-batch")

    def run(self, names: Sequence[str], feed: Feed) -> list[NDArray[Any]]:
        """As a session's own `run`. Raises the first error once no part is running any more."""
        n, _, length = feed["logmel"].shape
        size = max(1, min(-(-n // self._n_threads), PART_FRAMES // length))
        starts = deque(range(0, n, size))
        results: dict[int, list[NDArray[Any]]] = {}

        def take_parts() -> None:
            with suppress(IndexError):  # nothing is left
                while True:
                    start = starts.popleft()
                    part = {name: value[start : start + size] for name, value in feed.items()}
                    results[start] = self._session.run(list(names), part)

        helpers = [self._helpers.submit(take_parts) for _ in range(min(self._n_threads, len(starts)) - 1)]
        try:
            take_parts()
        finally:
            wait(helpers)
        for helper in helpers:
            helper.result()
        return [np.concatenate(parts) for parts in zip(*(results[at] for at in sorted(results)), strict=True)]


def run_bound(session: onnxruntime.InferenceSession, names: Sequence[str], feed: Feed) -> list[NDArray[Any]]:
    """One run by IO binding: inputs are copied to the device once, outputs stay there until they are read."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return list(binding.copy_outputs_to_cpu())


def is_failure_of_device(error: Exception) -> bool:
    """Whether the error says by itself that device or memory failed, whatever the input was."""
    if isinstance(error, (onnxruntime_errors.EPFail, MemoryError)):
        return True
    sentence = str(error).lower()
    return any(word in sentence for word in FAILURES)


def candidates(device: Device) -> list[str]:
    """The devices to try, in order; what `auto` finds missing is logged once. Raises ModelFolderError."""
    if device == "auto":
        return ["cpu"] if _logged_obstacle() else ["cuda", "cpu"]
    if device == "cpu":
        return ["cpu"]
    reason = obstacle(device)
    if reason:
        raise ModelFolderError(f"device {device} was asked for, but {reason}; choose device cpu or auto")
    return [device]


@cache
def _logged_obstacle() -> str | None:
    reason = obstacle("cuda")
    if reason:
        log.info("device: cpu, because %s", reason)
    return reason


@cache
def obstacle(device: str) -> str | None:
    """Why a provider of onnxruntime cannot work on this machine, as far as that shows without a graph."""
    available = onnxruntime.get_available_providers()
    if PROVIDER_OF[device] not in available:
        return (
            f"this onnxruntime offers only {', '.join(available)}: the extra `gpu` has one for NVIDIA's GPUs"
        )
    reason = _why_no_gpu()
    if reason is None and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN where pip installed them
    return reason


def _why_no_gpu() -> str | None:
    """As NVIDIA's driver tells it."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed (there is no libcuda.so.1)"
    found = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(found))
    if code:
        return f"NVIDIA's driver fails with CUDA error {code}"
    return None if found.value else "NVIDIA's driver finds no GPU"


_LOAD_PROVIDER = """
import ctypes, onnxruntime, pathlib, sys
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
folder = pathlib.Path(onnxruntime.__file__).parent / "capi"
ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
try:
    ctypes.CDLL(str(folder / f"libonnxruntime_providers_{sys.argv[1]}.so"))
except OSError as error:
    sys.stderr.write(f"\\nreason: {error}")
"""


def _why_not_loaded(device: str) -> str:
    """The library that the provider lacks. Asked in another process: here, where onnxruntime has failed to
    load the provider, loading it by hand could end this one."""
    command = [sys.executable, "-c", _LOAD_PROVIDER, device]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    _, _, reason = tried.stderr.rpartition("reason: ")
    return f": {reason.strip()}" if "\nreason: " in tried.stderr else "; its own line in the log says why"


def providers_of(device: str, tensorrt: TensorRT) -> list[Provider]:
    """With their options, the first one first; what it cannot compute falls to the next."""
    cpu: Provider = (PROVIDER_OF["cpu"], {})
    cuda: Provider = (
        PROVIDER_OF["cuda"],
        {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
    )
    if device == "cpu":
        return [cpu]
    if device == "cuda":
        return [cuda, cpu]
    return [(PROVIDER_OF["tensorrt"], tensorrt_options(tensorrt)), cuda, cpu]


def tensorrt_options(engine: TensorRT) -> dict[str, str]:
    """One engine for all shapes that will come."""

    def profile(batch: int, frames: int) -> str:
        return f"logmel:{batch}x{engine.n_mels}x{frames},n_frames:{batch}"

    options = {
        "trt_fp16_enable": str(engine.half),  # with it, even layers of a float32 graph would be computed so
        "trt_profile_min_shapes": profile(1, engine.shortest),
        "trt_profile_opt_shapes": profile(engine.batch, min(SECOND_FRAMES, engine.longest)),
        "trt_profile_max_shapes": profile(engine.batch, engine.longest),
    }
    if engine.cache is not None:
        options |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(engine.cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(engine.cache),
        }
    return options
