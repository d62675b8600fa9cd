"""A linear head on frozen embeddings: StandardScaler, one linear layer, early stopping on a validation part.

In: embeddings (n, D) float32 and targets, (n,) class numbers or (n, C) of 0 and 1. Out: a LinearHead.
The protocol is EVAR's (arXiv 2204.07402, section IV-B), with a plain cross-entropy that holds for two classes
too: Adam at 3e-4, weight decay 1e-8, batches of at most 200, 200 epochs, patience 20, best weights restored.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from service.inference.heads import Hidden

MULTICLASS, MULTILABEL = "multiclass", "multilabel"
MAX_EPOCHS = 200
PATIENCE = 20  # epochs without improvement; a tie counts as one
MAX_BATCH = 200
VALIDATION_SHARE = 0.1
LEARNING_RATE = 3e-4  # EVAR's default
MAX_REDRAWS = 100  # of the validation part, until every class is in it

Embeddings = NDArray[np.float32]
Targets = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True)
class LinearHead:
    """logits = ((embedding - mean) / std) @ weight.T + bias; scores are their softmax or sigmoid.

    With a hidden layer its H numbers stand for the embedding, and H for D.
    """

    mean: Embeddings  # (D,)
    std: Embeddings  # (D,)
    weight: Embeddings  # (C, D)
    bias: Embeddings  # (C,)
    task: str
    valid_metric: float
    hidden: Hidden | None = None

    def scaled(self, embeddings: Embeddings) -> Embeddings:
        """(n, D) -> (n, D): mean 0 and deviation 1 over what the head was trained on."""
        numbers = self.hidden(embeddings) if self.hidden else embeddings
        return np.divide(numbers - self.mean, self.std)

    def logits(self, embeddings: Embeddings) -> Embeddings:
        """(n, D) -> (n, C)."""
        logits: Embeddings = self.scaled(embeddings) @ self.weight.T + self.bias
        return logits

    def metric(self, embeddings: Embeddings, targets: Targets) -> float:
        return metric_of(self.logits(embeddings), targets, self.task)


def metric_of(logits: Embeddings, targets: Targets, task: str) -> float:
    """Accuracy for one label per clip; mean average precision over the classes for several."""
    if task == MULTICLASS:
        return float((logits.argmax(axis=1) == targets).mean())
    present = targets.sum(axis=0) > 0  # a class that never occurs has no average precision
    return float(average_precision_score(targets[:, present], logits[:, present], average="macro"))


def validation_part(targets: Targets, task: str, random: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) bool: a tenth of the clips, drawn anew until it has every class (or the draws are used up)."""
    n = len(targets)
    size = max(1, round(n * VALIDATION_SHARE))
    for _ in range(MAX_REDRAWS):
        chosen = np.zeros(n, dtype=bool)
        chosen[random.permutation(n)[:size]] = True
        if classes_in(targets[chosen], task) == classes_in(targets, task):
            break
    return chosen


def classes_in(targets: Targets, task: str) -> int:
    return len(np.unique(targets)) if task == MULTICLASS else int((targets.sum(axis=0) > 0).sum())


def fit(
    train: Embeddings,
    train_targets: Targets,
    valid: Embeddings,
    valid_targets: Targets,
    *,
    n_classes: int,
    task: str,
    seed: int,
    learning_rate: float = LEARNING_RATE,
) -> LinearHead:
    """Train on `train`, stop on `valid`."""
    mean, std = scaler_of(train)
    x, x_valid = (torch.from_numpy((part - mean) / std) for part in (train, valid))
    y = torch.from_numpy(train_targets)
    torch.manual_seed(seed)
    layer = nn.Linear(train.shape[1], n_classes)
    optimiser = torch.optim.Adam(layer.parameters(), lr=learning_rate, weight_decay=1e-8)
    best, best_metric, waited = copy.deepcopy(layer.state_dict()), -1.0, 0
    for _ in range(MAX_EPOCHS):
        train_epoch(layer, optimiser, x, y, task)
        with torch.no_grad():
            metric = metric_of(layer(x_valid).numpy(), valid_targets, task)
        waited += 1
        if metric >= best_metric:
            best, best_metric, waited = copy.deepcopy(layer.state_dict()), metric, 0
        if waited >= PATIENCE:
            break
    weight, bias = best["weight"].numpy(), best["bias"].numpy()
    return LinearHead(mean, std, weight, bias, task, best_metric)


def scaler_of(train: Embeddings) -> tuple[Embeddings, Embeddings]:
    """(n, D) -> mean and population std (D,); a constant feature says nothing: its std is 1, so it stays 0.

    In float64, where the mean of equal values is that value and their std exactly 0.
    """
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def train_epoch(layer: nn.Linear, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, task: str) -> None:
    for batch in torch.randperm(len(x)).split(min(MAX_BATCH, len(x))):
        loss = loss_of(layer(x[batch]), y[batch], task)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def loss_of(logits: Tensor, targets: Tensor, task: str) -> Tensor:
    if task == MULTICLASS:
        return nn.functional.cross_entropy(logits, targets)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets)
