"""Who writes an encoder's graphs: BYOL-A's node by node (graph.py), the rest by torch's exporter (traced.py).

Trained ─ writer_of ─► ByHand  ─► encoder.onnx, encoder.float16.onnx, encoder.int8.onnx
                       Traced
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from encoders import Encoder
from encoders.byola_2020 import AudioNTT2020
from encoders.byola_2022 import AudioNTT2022

from .graph import Float, encoder_graph
from .quantise import int8_graph
from .traced import Traced
from .weights import Trained

Array = NDArray[np.float32]


class Writer(Protocol):
    """Each graph is that of the contract (docs/model_folder.md). Raises ExportError for what it cannot be."""

    @property
    def calibration_clips(self) -> int:
        """The most clips that int8 is made and measured with, a third of them held out."""

    @property
    def is_exact(self) -> bool:
        """Whether a clip alone and in a padded batch agree in fewer bits than 32 as they do in 32."""

    def float32(self, path: Path) -> None: ...

    def float16(self, path: Path) -> None: ...

    def int8(self, path: Path, *, float32: Path, calibration: Sequence[Array]) -> None:
        """float32: the graph written before; calibration: log-mels (n_mels, T_i) of real clips."""


def writer_of(trained: Trained) -> Writer:
    if isinstance(trained.encoder, AudioNTT2020 | AudioNTT2022):
        return ByHand(trained.encoder, mean=trained.mean, std=trained.std)
    return Traced(trained)


class ByHand:
    calibration_clips = 384
    is_exact = True

    def __init__(self, encoder: Encoder, *, mean: float, std: float) -> None:
        self._encoder = encoder
        self._mean = mean
        self._std = std

    def float32(self, path: Path) -> None:
        self._save(Float(), path)

    def float16(self, path: Path) -> None:
        self._save(Float(16), path)

    def int8(self, path: Path, *, float32: Path, calibration: Sequence[Array]) -> None:
        graph = int8_graph(self._encoder, mean=self._mean, std=self._std, calibration=calibration)
        onnx.save(graph, path)

    def _save(self, arithmetic: Float, path: Path) -> None:
        graph = encoder_graph(self._encoder, mean=self._mean, std=self._std, arithmetic=arithmetic)
        onnx.save(graph, path)
