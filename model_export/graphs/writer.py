"""Who writes an encoder's graphs: BYOL-A's node by node (byola.py), one that is an ONNX graph
already by graft.py, the rest by torch_export.py.

Trained ─ writer_of ─► ByHand  ─► encoder.onnx, encoder.float16.onnx, encoder.int8.onnx
                       Traced
                       Grafted
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
from model_export.graphs.byola import Float, encoder_graph
from model_export.graphs.byola_int8 import int8_graph
from model_export.graphs.graft import Grafted
from model_export.graphs.torch_export import Traced
from model_export.sources.own import OwnEncoder
from model_export.sources.trained import Trained

Array = NDArray[np.float32]


class Writer(Protocol):
    """Its graphs keep the contract of docs/model_folder.md. Raises ExportError for what cannot be made."""

    @property
    def origin(self) -> str:
        """What the served graph is held against, by name."""

    @property
    def calibration_clips(self) -> int:
        """The most clips that int8 takes: two thirds calibrate it, a third measures its distance."""

    @property
    def is_exact(self) -> bool:
        """Whether float16 and int8, too, give a clip the same numbers alone and in a padded batch."""

    def float32(self, path: Path) -> None: ...

    def float16(self, path: Path) -> None: ...

    def int8(self, path: Path, *, float32: Path, calibration: Sequence[Array]) -> None:
        """float32: the graph written before; calibration: log-mels (n_mels, T_i) of real clips."""


def writer_of(trained: Trained) -> Writer:
    if isinstance(trained.encoder, AudioNTT2020 | AudioNTT2022):
        return ByHand(trained.encoder, mean=trained.mean, std=trained.std)
    return Grafted(trained) if isinstance(trained.encoder, OwnEncoder) else Traced(trained)


class ByHand:
    """A Writer for BYOL-A, node by node."""

    origin = "PyTorch"
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
