"""A clip's bytes in, its vector out, by viola's own code: the work that is the same for every server.

The environment tells what to load, because some peers start their workers themselves:

    PEER_MODEL      a model folder
    PEER_PRECISION  float32 or int8
    PEER_THREADS    threads inside onnxruntime
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from service.inference.model import Model, Output, Precision
from service.sound.audio import decode

Array = NDArray[np.float32]

MAX_BATCH = 32
CORES = len(os.sched_getaffinity(0))  # threads that decode, where a peer lets one choose
CLIP_SAMPLES = 16_000  # of the warm-up, as long as the benchmark's clip


class Work:
    """Loaded and warm. `logmel` is called by any number of threads, `embed` by one at a time."""

    def __init__(self) -> None:
        self._model = Model.load(
            Path(os.environ["PEER_MODEL"]),
            device="cpu",
            precision=cast(Precision, os.environ["PEER_PRECISION"]),
            threads=int(os.environ["PEER_THREADS"]),
        )
        silence = self._model.logmel(np.zeros(CLIP_SAMPLES, dtype=np.float32))
        for size in (1, MAX_BATCH):
            self.embed([silence] * size)

    def logmel(self, clip: bytes) -> Array:
        """The bytes of an audio file -> (n_mels, T) float32."""
        return self.logmel_of(decode(clip, sample_rate=self._model.card.sample_rate).samples)

    def logmel_of(self, samples: NDArray[np.floating]) -> Array:
        """(n,) mono at the model's rate -> (n_mels, T) float32."""
        return self._model.logmel(samples.astype(np.float32, copy=False))

    def embed(self, logmels: Sequence[Array]) -> list[Array]:
        """One batch -> one vector (D,) float32 each."""
        return [self._vector(output) for output in self._model.run(logmels)]

    def _vector(self, output: Output) -> Array:
        """Over time, as the model's card says."""
        mean: Any = output.sum / output.count
        pooled = mean + output.max if self._model.card.pooling == "mean+max" else mean
        return np.asarray(pooled, dtype=np.float32)


def json_of(vector: Array) -> bytes:
    """The fastest JSON that Python has: orjson straight from the array."""
    return orjson.dumps({"embedding": vector}, option=orjson.OPT_SERIALIZE_NUMPY)


def port_from(arguments: Sequence[str]) -> int:
    """Of `--port PORT`, which every peer is started with."""
    return int(arguments[arguments.index("--port") + 1])
