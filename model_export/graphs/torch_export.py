"""Any encoder in, its graphs out, by torch's exporter: for networks that are not trained here, fused layers.

    encoder ─ Contract (encoders/contract.py) ─ torch.onnx ─► encoder.onnx ─► encoder.int8.onnx
    encoder, halved ─ Contract ─ torch.onnx ─► encoder.float16.onnx

The exporter writes on every node which line of which file on this machine it comes from: these notes are
removed. Batch and length stay free.
"""

import copy
import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnx_ir.passes.common
import torch
from numpy.typing import NDArray
from torch import nn

from encoders import AnyEncoder
from encoders.contract import Contract
from encoders.transformer import Block
from model_export.errors import ExportError
from model_export.graphs.byola import IR_VERSION, OPSET
from model_export.graphs.int8 import by_blocks, calibrated
from model_export.quiet import quiet
from model_export.sources.trained import Trained

Array = NDArray[np.float32]

EXAMPLE_FRAMES = 300  # of the two clips that the exporter is shown: long enough for every encoder


class Traced:
    """A Writer by torch.onnx.export."""

    origin = "PyTorch"
    calibration_clips = 48  # 10 s of AST or CNN14 take seconds on a CPU
    # Sums over a longer batch are added in another order: the last bit of float32 differs, and with it at
    # times the rounding to 16 or 8 bits. The neighbours' numbers are not in it.
    is_exact = False

    def __init__(self, trained: Trained) -> None:
        assert isinstance(trained.encoder, nn.Module)
        self._trained = trained
        self._encoder = trained.encoder

    def float32(self, path: Path) -> None:
        write_graph(self._trained.encoder, path, mean=self._trained.mean, std=self._trained.std)

    def float16(self, path: Path) -> None:
        self._check_has_weights()
        half = copy.deepcopy(self._encoder).to(torch.float16)
        mean, std = self._trained.mean, self._trained.std
        write_graph(half, path, mean=mean, std=std, dtype=torch.float16)

    def int8(self, path: Path, *, float32: Path, calibration: Sequence[Array]) -> None:
        self._check_has_weights()
        if getattr(self._encoder, "is_transformer", False) or any(
            isinstance(module, Block) for module in self._encoder.modules()
        ):
            by_blocks(float32, path)
        else:
            calibrated(float32, path, calibration)

    def _check_has_weights(self) -> None:
        if not self._encoder.state_dict():
            raise ExportError(
                f"{self._trained.name} has no weights to write in fewer bits: export it without --int8 and "
                "--float16."
            )


def write_graph(
    encoder: AnyEncoder, path: Path, *, mean: float, std: float, dtype: torch.dtype = torch.float32
) -> None:
    """The graph of the contract as one checked file. `encoder`: in eval mode, its weights of `dtype`."""
    contract = Contract(encoder, mean=mean, std=std, dtype=dtype).eval()
    logmel = torch.zeros(2, encoder.n_mels, EXAMPLE_FRAMES)
    n_frames = torch.tensor([EXAMPLE_FRAMES, EXAMPLE_FRAMES - 100])
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            contract,
            (logmel, n_frames),
            input_names=["logmel", "n_frames"],
            output_names=["frames", "sum", "max", "count"],
            dynamic_shapes={"logmel": {0: "batch", 2: "frames"}, "n_frames": {0: "batch"}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model
    del program
    save_checked(model, path)


def save_checked(model: onnx_ir.Model, path: Path) -> None:
    """What the exporter made, without its notes, as one file."""
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(model)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "viola", None
    onnx_ir.save(model, path)
    gc.collect()  # the checker makes another copy of all weights
    onnx.checker.check_model(path)
