"""A graph that somebody brings and its description in, an encoder ready to export out.

    description ─► front-end ─┐
    graph ─► OwnGraph ────────┴─► OwnEncoder: where patches lie, how long audio is cut, what may share a batch

OwnEncoder is also what the served graph is held against: it gives the graph one patch after the other, or a
clip of any length, alone and with nothing beside it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from encoders.contract import Batching
from encoders.frontend import Frontend, Waveform
from encoders.pooling import mean_max
from encoders.windows import Windows
from model_export.errors import ExportError
from model_export.sources.description import (
    MOST_FRAMES,
    Description,
    arrays_of,
    frontend_of,
    labels_of,
    read_description,
    statistics_of,
)
from model_export.sources.own_graph import OwnGraph
from model_export.sources.own_scores import OwnScores
from model_export.sources.trained import Trained
from service.inference.card import sha256_of

Array = NDArray[np.float32]

WINDOW_S = 10.0  # of patches that go through the graph at once
SAME = 1e-5  # of the largest value: a clip alone and beside others
SEED = 0


class OwnEncoder:
    """`encoders.AnyEncoder` around an OwnGraph. patch, hop, shortest: in columns of its input; patch is 0 for
    a graph that takes any length. per_patch: frames that a patch gives. batching: what the card says of it,
    and why_alone, where it is that."""

    def __init__(self, graph: OwnGraph, frontend: Frontend | Waveform, *, mean: float, std: float) -> None:
        """Raises ExportError."""
        description, window = graph.description, graph.description.window
        column = frontend.hop_length if isinstance(frontend, Waveform) else 1
        self.graph = graph
        self.frontend = frontend
        self.n_mels = graph.rows
        self.pooling: str = description.outputs.pooling
        self.mean, self.std = mean, std
        self.patch = (window.patch or 0) // column
        self.hop = (window.hop or window.patch or 0) // column
        longest = (window.longest or 0) // column or self.patch
        default = self.patch or (0 if window.shortest else longest)
        self.shortest = -(-window.shortest // column) if window.shortest else default
        if not 0 < longest <= MOST_FRAMES:
            raise ExportError(f"[window] {window.patch or window.longest} is no length for a window.")
        self.embedding_size, self.per_patch = self._sizes(longest)
        self.batching, self.why_alone = self._batching(longest)
        self.windows = self._windows(longest)
        self.frame_period_ms, self.first_frame_centre_ms = self._times_ms(longest)

    def __call__(self, x: Tensor, n_frames: Tensor | None = None) -> Tensor:
        """x (1, 1, rows, T) normalised -> frames (1, T', D)."""
        columns = x[0].numpy()
        if not self.patch:
            return torch.from_numpy(self._frames(self.graph.run(columns)).copy())
        outputs = [self._frames(self.graph.run(patch)) for patch in self._patches(columns)]
        return torch.from_numpy(np.concatenate(outputs, axis=1))

    def count(self, n_frames: Tensor) -> Tensor:
        """(B,) columns -> (B,) output frames, of a graph that takes patches."""
        return ((n_frames - self.shortest) // self.hop + 1).clamp(min=0) * self.per_patch

    def pool(self, frames: Tensor) -> Tensor:
        """(B, T', D) -> (B, D)."""
        return mean_max(frames) if self.pooling == "mean+max" else frames.mean(dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights are in the graph."""
        return {}

    @property
    def silence(self) -> float:
        """What fills a patch that is not full, before the normalisation: the log-mel of zeros, or zero."""
        if isinstance(self.frontend, Waveform):
            return 0.0
        floor = self.frontend.log_floor
        return float(10 * np.log10(floor) if self.frontend.log == "db" else np.log(floor))

    def _patches(self, columns: Array) -> list[Array]:
        """(1, rows, T) -> every patch, the last one filled up."""
        fill = (self.silence - self.mean) / self.std
        patches = []
        for start in range(0, columns.shape[2] - self.shortest + 1, self.hop):
            patch = columns[..., start : start + self.patch]
            missing = self.patch - patch.shape[2]
            patches.append(np.pad(patch, ((0, 0), (0, 0), (0, missing)), constant_values=np.float32(fill)))
        return patches

    def _frames(self, output: Array) -> Array:
        """What the graph gives for B inputs -> (B, frames, D)."""
        outputs = self.graph.description.outputs
        B = output.shape[0] if self.graph.batch != 0 else 1
        if outputs.vector is not None:
            return output.reshape(B, 1, -1)
        if output.ndim != len(outputs.layout):
            raise ExportError(
                f"[outputs] layout: `{outputs.frames}` has the shape {list(output.shape)}, not the "
                f"{len(outputs.layout)} axes {', '.join(map(str, outputs.layout))}."
            )
        named = [axis for axis in outputs.layout if axis != 1]
        x = output.reshape(
            [size for axis, size in zip(outputs.layout, output.shape, strict=True) if axis != 1]
        )
        x = x if "batch" in named else x[None]
        return x if named.index("frames") < named.index("numbers") else x.transpose(0, 2, 1)

    def _sizes(self, longest: int) -> tuple[int, int]:
        """(D, frames per patch): of noise, and of less of it, too, where the length is free."""
        frames = self._frames(self.graph.run(self._noise(1, longest)))
        if not np.isfinite(frames).all():
            raise ExportError(
                "The graph gives NaN or infinite values for noise: its front-end may be another."
            )
        if self.patch:
            if frames.shape[1] > 1 and self.hop < self.patch:
                raise ExportError(
                    f"A patch gives {frames.shape[1]} frames and patches overlap: which frame stands for "
                    "what both cover, is not said. Give a hop as long as the patch."
                )
            return frames.shape[2], frames.shape[1]
        shorter = self._frames(self.graph.run(self._noise(1, self.shortest)))
        if shorter.shape[2] != frames.shape[2] or shorter.shape[1] == 0:
            raise ExportError(
                f"The graph gives vectors of {shorter.shape[2]} numbers for a short clip and of "
                f"{frames.shape[2]} for a long one: it is not free of its length. Give [window] patch in "
                "place of longest."
            )
        return frames.shape[2], 1

    def _batching(self, longest: int) -> tuple[Batching, str]:
        if self.graph.batch == 0:
            return "alone", "its graph has no axis for a batch"
        if self.graph.batch == 1:
            return "alone", "its graph takes one clip at a time"
        several = self._noise(3, longest)
        try:
            together = self._frames(self.graph.run(several))
        except ExportError:
            return "alone", "its graph fails on several clips at once"
        alone = np.concatenate([self._frames(self.graph.run(each[None])) for each in several])
        if together.shape != alone.shape:
            return "alone", "its graph mixes the clips of a batch"
        apart = float(np.abs(together - alone).max() / max(float(np.abs(alone).max()), 1e-12))
        if not apart <= SAME:
            return "alone", f"in a batch its graph gives another vector than alone (by {apart:.1e})"
        return ("padded" if self.patch else "equal"), ""

    def _windows(self, longest: int) -> Windows:
        if not self.patch:
            return Windows("independent", stride=1, frames=longest, min_frames=self.shortest)
        if self.hop == self.patch and self.shortest < self.patch:  # a mean by how much of each is sound
            return Windows("independent", stride=1, frames=self.patch, min_frames=self.shortest)
        reach = self.patch - self.hop
        n = max(1, int(WINDOW_S * 1000 / (self.hop * self._column_ms))) if self.batching == "padded" else 1
        return Windows(
            "exact", stride=self.hop, frames=n * self.hop + reach, reach=reach, min_frames=self.shortest
        )

    def _times_ms(self, longest: int) -> tuple[float, float]:
        outputs = self.graph.description.outputs
        length_ms = longest * self._column_ms
        if outputs.vector is not None:
            period = self.hop * self._column_ms if self.patch else length_ms
            return period, self._centre_ms(longest)
        if self.patch:
            period = outputs.frame_period_ms or length_ms / self.per_patch
        elif outputs.frame_period_ms is None:
            raise ExportError(
                "[outputs] frame_period_ms is needed: how many milliseconds lie between two frames."
            )
        else:
            period = outputs.frame_period_ms
        n = self._frames(self.graph.run(self._noise(1, longest))).shape[1]
        if abs(n * period - length_ms) > max(2 * period, 0.02 * length_ms):
            raise ExportError(
                f"[outputs] frame_period_ms = {period:g}: {n} frames of a window of {length_ms:g} ms lie "
                f"{length_ms / n:.4g} ms apart."
            )
        first = outputs.first_frame_centre_ms
        return period, period / 2 if first is None else first

    @property
    def _column_ms(self) -> float:
        return self.frontend.hop_length * 1000 / self.frontend.sample_rate

    def _centre_ms(self, n_columns: int) -> float:
        """Of so many columns from the beginning."""
        f = self.frontend
        if isinstance(f, Waveform):
            return n_columns * self._column_ms / 2
        first = 0 if f.centred else f.win_length
        return ((n_columns - 1) * f.hop_length + first) * 500 / f.sample_rate

    def _noise(self, n: int, length: int) -> Array:
        """(n, rows, length), of a loudness each."""
        random = np.random.default_rng(SEED)
        scale = np.float32(0.1 if isinstance(self.frontend, Waveform) else 1.0)
        noise = scale * random.standard_normal((n, self.n_mels, length), dtype=np.float32)
        return noise * np.linspace(1, 0.3, n, dtype=np.float32)[:, None, None]


def load_own(graph: Path, describe: Path, *, labels: Path | None = None) -> tuple[Trained, Description]:
    """labels: a table in place of the description's. Raises ExportError."""
    description = read_description(describe)
    if labels is not None:
        if description.scores is None:
            raise ExportError(f"--labels names scores, and {describe} has no [scores].")
        named = description.scores.model_copy(update={"labels": str(labels.resolve())})
        description = description.model_copy(update={"scores": named})
    frontend = frontend_of(description)
    own = OwnGraph(graph, description)
    mean, std = statistics_of(description)
    encoder = OwnEncoder(own, frontend, mean=mean, std=std)
    training: dict[str, JsonValue] = {"weights_file": graph.name, "weights_sha256": sha256_of(graph)}
    if description.training_data:
        training["data"] = description.training_data
    parameters: dict[str, JsonValue] = {
        "input": description.input.model_dump(mode="json"),
        "window": description.window.model_dump(mode="json", exclude_none=True),
        "outputs": description.outputs.model_dump(mode="json", exclude_none=True),
    }
    trained = Trained("onnx", parameters, encoder, mean, std, training)
    if not isinstance(frontend, Waveform):
        trained = replace(trained, arrays=arrays_of(description, frontend))
    if description.scores is not None:
        tags = OwnScores(own, encoder.embedding_size)
        names = labels_of(description, beside=graph.parent)
        tags.check_labels(names)
        trained = replace(trained, tags=tags, labels=names, head=description.scores.name, task=tags.task)
    return trained, description
