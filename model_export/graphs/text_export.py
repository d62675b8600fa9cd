"""A text tower in, text/encoder.onnx and text/tokenizer.json of a model folder out, held against it.

tower ─ torch.onnx ─► input_ids, attention_mask (B, L) int64 ─► embedding (B, D) float32
"""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from model_export.errors import ExportError
from model_export.graphs.byola import OPSET
from model_export.graphs.torch_export import save_checked
from model_export.quiet import quiet
from model_export.sources.trained import Text

FOLDER = "text"
GRAPH, TOKENIZER = f"{FOLDER}/encoder.onnx", f"{FOLDER}/tokenizer.json"
LENGTHS = (3, 7, 12)  # tokens of the sentences that the exporter is shown and the graph is held against
AS_TRAINED = 1e-4  # of the largest value


def write_text(text: Text, folder: Path) -> None:
    (folder / FOLDER).mkdir()
    (folder / TOKENIZER).write_text(text.tokenizer, encoding="utf-8")
    names = ("input_ids", "attention_mask")
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            text.tower,
            sentences(text),
            input_names=list(names),
            output_names=["embedding"],
            dynamic_shapes={name: {0: "batch", 1: "tokens"} for name in names},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    (output,) = program.model.graph.outputs
    for value in (value for node in program.model.graph for value in node.outputs):
        if value is not output and value.name == output.name:  # the exporter calls other things so, too
            value.name = f"{output.name}_within"
    save_checked(program.model, folder / GRAPH)


@torch.no_grad()
def check_text(text: Text, folder: Path) -> float:
    """The largest distance of a sentence from the tower, which has it alone. Raises ExportError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
    ids, mask = sentences(text)
    (found,) = session.run(["embedding"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    alone = [text.tower(ids[i : i + 1, :n], mask[i : i + 1, :n])[0] for i, n in enumerate(mask.sum(dim=1))]
    expected = torch.stack(alone).numpy()
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not worst <= AS_TRAINED:
        raise ExportError(f"The graph of the text tower is not the tower: they differ by {worst:.1e}.")
    return worst


def sentences(text: Text) -> tuple[Tensor, Tensor]:
    """Token numbers and masks (B, L) of a few sentences, no longer than the tower takes."""
    length = min(max(LENGTHS), text.card.max_tokens)
    ids = torch.randint(text.n_tokens, (len(LENGTHS), length), generator=torch.Generator().manual_seed(0))
    return ids, (torch.arange(length)[None, :] < torch.tensor(LENGTHS)[:, None]).long()
