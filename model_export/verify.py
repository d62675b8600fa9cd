"""Does the served model compute what PyTorch does? Both and real sounds in, their largest distance out.

Clips are cut to several lengths, the shortest input among them. Distances are relative: the largest
difference over the largest number of the reference.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.errors import ExportError
from model_export.sources.trained import Trained
from service.inference.card import Windows
from service.inference.model import Model, Output
from service.inference.windows import embed, split

Array = NDArray[np.float32]

LENGTHS_S = (0.02, 0.5, 1.0, 2.37, 10.0)
AS_TRAINED = 1e-4  # float32 in another order, through five layers: 1e-6 is seen
BATCH_INDEPENDENT = 1e-5
BATCH = 3  # clips: one of 10 s among them pads the others to its length


def cut_to_lengths(clips: Sequence[Array], *, n: int, sample_rate: int) -> list[Array]:
    """n clips (samples,), cut to LENGTHS_S in turn, those that are long enough."""
    return [clips[i % len(clips)][: int(LENGTHS_S[i % len(LENGTHS_S)] * sample_rate)] for i in range(n)]


def check_as_trained(model: Model, trained: Trained, clips: Sequence[Array]) -> float:
    """The largest distance between PyTorch and the model, of frames and vectors. Raises ExportError."""
    worst = 0.0
    for clip in clips:
        logmel = model.logmel(clip)
        frames, vector = torch_embedding(trained, logmel)
        served = embed(model.run, model.card, [logmel], frames=True)
        assert served.frames is not None
        if served.frames.shape != frames.shape:
            raise ExportError(
                f"Of {logmel.shape[1]} log-mel frames the graph makes {len(served.frames)} vectors, PyTorch "
                f"{len(frames)}."
            )
        worst = max(worst, distance(served.frames, frames), distance(served.vector, vector))
    if not worst <= AS_TRAINED:
        raise ExportError(
            f"The graph is not the trained encoder: they differ by {worst:.1e} of the largest value, "
            f"more than {AS_TRAINED:.0e}."
        )
    return worst


@torch.no_grad()
def torch_embedding(trained: Trained, logmel: Array) -> tuple[Array, Array]:
    """logmel (n_mels, T) -> frames (T', D) and clip vector (D,), as in training: alone, without padding; in
    one pass, or as the mean of independent windows by their length."""
    encoder = trained.encoder
    x = (torch.from_numpy(logmel)[None, None] - trained.mean) / trained.std
    windows = Windows(**asdict(encoder.windows))
    if windows.kind == "exact":
        frames = encoder(x)
        return frames[0].numpy(), encoder.pool(frames)[0].numpy()
    pieces = split(logmel.shape[1], windows)
    outputs = [encoder(x[..., piece.start : piece.stop]) for piece in pieces]
    vectors = [encoder.pool(output)[0].numpy() for output in outputs]
    vector = np.average(vectors, axis=0, weights=[piece.stop - piece.start for piece in pieces])
    return torch.cat(outputs, dim=1)[0].numpy(), vector.astype(np.float32)


@torch.no_grad()
def check_head(model: Model, trained: Trained, clips: Sequence[Array]) -> float:
    """The largest distance of the tags of the head from the published ones. Raises ExportError."""
    assert trained.tags is not None
    vectors = np.stack([embed(model.run, model.card, [model.logmel(clip)]).vector for clip in clips])
    logits: torch.Tensor = trained.tags(torch.from_numpy(vectors))
    expected = (logits.sigmoid() if trained.task == "multilabel" else logits.softmax(dim=-1)).numpy()
    worst = float(np.abs(model.heads[trained.head].score(vectors) - expected).max())
    if not worst <= AS_TRAINED:
        raise ExportError(f"The head is not the published one: its tags differ by {worst:.1e}.")
    return worst


def check_batch_independence(
    model: Model, clips: Sequence[Array], *, at_most: float = BATCH_INDEPENDENT
) -> float:
    """The largest distance between a clip alone and in a batch padded to the longest. Raises ExportError."""
    logmels = [model.logmel(clip)[:, : model.card.windows.frames] for clip in clips]
    if model.card.batching == "equal":  # only then do they meet
        shortest = min(logmel.shape[1] for logmel in logmels)
        logmels = [*logmels, *(np.ascontiguousarray(logmel[:, -shortest:]) for logmel in logmels)]
    batches = [logmels[first : first + BATCH] for first in range(0, len(logmels), BATCH)]
    together = [output for batch in batches for output in model.run(batch, frames=True)]
    alone = [model.run([logmel], frames=True)[0] for logmel in logmels]
    worst = max(output_distance(mine, theirs) for mine, theirs in zip(together, alone, strict=True))
    if not worst <= at_most:
        raise ExportError(
            f"An embedding depends on its batch: alone and padded it differs by {worst:.1e} of its largest "
            f"value, more than {at_most:.0e}."
        )
    return worst


def distance_of_outputs(model: Model, reference: Model, clips: Sequence[Array]) -> float:
    """The largest distance between the outputs of two models, as of int8 and float32, for a clip alone."""
    logmels = [model.logmel(clip)[:, : model.card.windows.frames] for clip in clips]
    pairs = ((one.run([logmel], frames=True)[0] for one in (model, reference)) for logmel in logmels)
    return max(output_distance(mine, theirs) for mine, theirs in pairs)


def output_distance(a: Output, b: Output) -> float:
    assert a.frames is not None
    assert b.frames is not None
    if a.count != b.count:
        return float("inf")
    return max(distance(a.sum, b.sum), distance(a.max, b.max), distance(a.frames, b.frames))


def distance(a: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    return float(np.abs(a - reference).max() / max(np.abs(reference).max(), 1e-12))


def cosines(model: Model, reference: Model, logmels: Sequence[Array]) -> NDArray[np.float64]:
    """(n,) cosine between the two models' clip vectors of each log-mel."""
    pairs = (
        (embed(m.run, m.card, [logmel]).vector.astype(np.float64) for m in (model, reference))
        for logmel in logmels
    )
    return np.array([a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs])
