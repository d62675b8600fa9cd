"""Pictures of an evaluation as PNG: what is taken for what, how the embeddings lie, what the layers know."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from training.probe.linear import Embeddings

MAX_POINTS = 2000  # of a t-SNE picture: beyond, a random part
MAX_LEGEND = 20  # classes that a legend can name


def picture_file(results: Path, task: str, kind: str) -> Path:
    """results.json -> results.TASK.KIND.png beside it, without what a file's name cannot hold."""
    return results.with_name(f"{results.stem}.{re.sub(r'[^A-Za-z0-9._-]', '_', task)}.{kind}.png")


def draw_confusion(path: Path, matrix: NDArray[np.int64], labels: tuple[str, ...], title: str) -> None:
    """matrix (C, C): rows are the truth, columns the prediction; shown as shares of each row."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = max(4.0, 0.22 * len(labels) + 2)
    figure = Figure(figsize=(size, size), dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="magma", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    figure.savefig(path)


def draw_tsne(
    path: Path, embeddings: Embeddings, classes: NDArray[np.int64], labels: tuple[str, ...], title: str
) -> None:
    """embeddings (n, D) and their class numbers (n,): standardised, then t-SNE to the plane."""
    chosen = np.random.default_rng(0).permutation(len(embeddings))[:MAX_POINTS]
    scaled = StandardScaler().fit_transform(embeddings[chosen])
    perplexity = min(30, max(2, (len(chosen) - 1) // 3))
    points = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=0).fit_transform(scaled)
    figure = Figure(figsize=(9, 7), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["nipy_spectral"](np.linspace(0.03, 0.97, len(labels)))
    for number, label in enumerate(labels):
        mine = classes[chosen] == number
        axes.scatter(points[mine, 0], points[mine, 1], s=9, color=colours[number], label=label)
        if mine.any() and len(labels) > MAX_LEGEND:
            axes.annotate(label, np.median(points[mine], axis=0), fontsize=6, ha="center", alpha=0.85)
    if len(labels) <= MAX_LEGEND:
        axes.legend(fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    figure.savefig(path)


def draw_layers(
    path: Path, values: NDArray[np.float64], layers: Sequence[str], panels: dict[str, list[str]], title: str
) -> None:
    """values (layers, tasks), the tasks in the order of the panels: one panel per kind of task, with a mean,
    because late layers win in one and middle ones in the other (arXiv 2205.08138).

    panels: title -> tasks. Each column has colours of its own, and its best layer in bold.
    """
    panels = {kind: tasks for kind, tasks in panels.items() if tasks}
    widths = [len(tasks) + 1 for tasks in panels.values()]
    figure = Figure(figsize=(2 + 0.95 * sum(widths), 1.6 + 0.36 * len(layers)), dpi=110, layout="constrained")
    all_axes = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
    first = 0
    for axes, (kind, tasks) in zip(all_axes, panels.items(), strict=True):
        part = values[:, first : first + len(tasks)]
        first += len(tasks)
        part = np.column_stack([part, part.mean(axis=1)])
        low, high = part.min(axis=0), part.max(axis=0)
        shades = (part - low) / np.where(high > low, high - low, 1)  # each task on its own scale
        axes.imshow(shades, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(*part.shape):
            axes.text(
                column,
                row,
                f"{100 * part[row, column]:.1f}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if shades[row, column] > 0.6 else "white",
                fontweight="bold" if part[row, column] == high[column] else "normal",
            )
        axes.set_xticks(range(len(tasks) + 1), [*tasks, "mean"], rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(layers)), layers, fontsize=8)
        axes.set_title(kind, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
