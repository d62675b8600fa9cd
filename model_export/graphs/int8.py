"""A float graph's file in, its 8-bit one out, by onnxruntime's own tools; BYOL-A's is written by hand.

    calibrated    convolutions and linear layers: uint8 by int8, ranges measured once on real clips
    by_blocks     transformers: weights in blocks of 32, each with its own scale; activations are quantised
                  row by row while the graph runs

A few of a transformer's activations are far larger than the others, which one scale for a whole layer would
lose. Where scales are measured while the graph runs, each row must have its own: onnxruntime's dynamic
quantisation takes one for the whole batch, and an embedding would depend on its neighbours.

Weights keep 7 bits where two products are added in 16, as in byola_int8.py, so that CPUs without VNNI compute
the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from model_export.quiet import quiet

Array = NDArray[np.float32]

BLOCK = 32  # weights that share a scale
AS_INT8 = 4  # MatMulNBits' accuracy_level: its input in 8 bits, too


class Clips(CalibrationDataReader):
    """One log-mel (n_mels, T_i) after the other, each alone."""

    def __init__(self, logmels: Sequence[Array]) -> None:
        self._feeds: Iterator[dict[str, NDArray[Any]]] = (
            {"logmel": logmel[None], "n_frames": np.array([logmel.shape[1]], dtype=np.int64)}
            for logmel in logmels
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def calibrated(source: Path, out: Path, logmels: Sequence[Array]) -> None:
    """Convolutions and linear layers in integers, the rest in float."""
    with quiet():
        quantize_static(
            source,
            out,
            Clips(logmels),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    onnx.checker.check_model(out)


def by_blocks(source: Path, out: Path) -> None:
    """Every product with a constant matrix as MatMulNBits, an operator of onnxruntime's own."""
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantiser = MatMulNBitsQuantizer(
            str(source), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=AS_INT8
        )
        quantiser.process()
    onnx.save(quantiser.model.model, out)
    onnx.checker.check_model(out)
