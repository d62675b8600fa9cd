"""Weights to begin with instead of random ones: a run or a model folder in, a new run's weights out.

    runs/<run>/checkpoint.pt   encoder, projector and what else its method has; the optimiser starts afresh.
                               Of a distillation by other teachers the encoder alone
    models/<name>/encoder.onnx the encoder alone, in float32; the rest of the method is random

The statistics stay those that the weights were trained with: another mean and std would show the encoder
sounds at another level. What it was started from is kept in the run's data.json and so comes into the card.
"""

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from encoders import Encoder
from encoders.blocks import MODULES_PER_BLOCK
from encoders.efficientat import EfficientAT
from encoders.msm_mae import MSMMAE
from service.errors import ModelFolderError
from service.inference.card import check_files, load_card
from training.pretrain import checkpoint
from training.pretrain.byol import BYOL
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.cola import COLA
from training.pretrain.distil import Distil
from training.pretrain.msm_mae import MaskedAutoencoder
from training.pretrain.recipe import Recipe, as_tables, method_of
from training.pretrain.sampler import Statistics

GRAPH = "encoder.onnx"
ENCODER = "online.encoder."  # in the names of a method's weights

Method = BYOL | COLA | MaskedAutoencoder | Distil


def start_from(folder: Path, model: Method, recipe: Recipe, x: Tensor) -> tuple[Statistics, str]:
    """Put the folder's weights into `model`; returns its statistics and a sentence on what it is.

    x: (B, 1, F, T) unnormalised log-mels of the new run's sounds, by which a folded batch normalisation is
    unfolded. Raises CheckpointError or ModelFolderError where the folder does not hold such an encoder.
    """
    if (folder / checkpoint.FILE_NAME).is_file():
        return _start_from_run(checkpoint.load(folder), folder, model, recipe)
    if (folder / "card.json").is_file():
        return _start_from_model(folder, model, recipe, x)
    raise CheckpointError(
        f"{folder} holds neither a {checkpoint.FILE_NAME} nor a card.json: give a run's folder or a model's."
    )


def _start_from_run(
    state: dict[str, Any], folder: Path, model: Method, recipe: Recipe
) -> tuple[Statistics, str]:
    _check_encoder(folder, state["recipe"]["encoder"]["name"], recipe.encoder.name)
    found, wanted = method_of(state["recipe"]), method_of(as_tables(recipe))
    if found != wanted:
        raise CheckpointError(
            f"{folder} is a run of [{found}], the recipe's method is [{wanted}]: export the run, and begin "
            "with the model's folder."
        )
    description = f"a run of {state['segments_seen']} segments"
    weights: dict[str, Tensor] = state["model"]
    network: nn.Module = model
    if isinstance(model, Distil) and shapes(weights) != shapes(model.state_dict()):
        network = model.online.encoder
        weights = {
            name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)
        }
        description += ", its encoder alone: the rest of it belongs to other teachers or losses"
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: its networks have other sizes than the recipe's: {error}"
        ) from error
    return Statistics(**state["statistics"]), description


def shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _start_from_model(folder: Path, model: Method, recipe: Recipe, x: Tensor) -> tuple[Statistics, str]:
    card = load_card(folder)
    _check_encoder(folder, card.encoder.name, recipe.encoder.name)
    encoder = model.online.encoder
    if isinstance(encoder, EfficientAT | MSMMAE):
        raise CheckpointError(
            f"{folder} holds a {card.encoder.name}, whose graph keeps no weights apart: begin with a run's "
            "folder."
        )
    statistics = fill_from_model(folder, encoder, x)
    byol = model.byol if isinstance(model, Distil) else model
    if isinstance(byol, BYOL):
        byol.restart_target()
    return statistics, f"the model {card.name} {card.version}, {GRAPH} with SHA-256 {card.files[GRAPH]}"


def fill_from_model(folder: Path, encoder: Encoder, x: Tensor) -> Statistics:
    """The weights of a model folder's float32 graph into its encoder; returns its statistics.

    x: (B, 1, F, T) unnormalised log-mels, by which the folded batch normalisation is unfolded. Raises
    ModelFolderError.
    """
    card = load_card(folder)
    check_files(folder, card)
    statistics = Statistics(mean=card.normalization.mean, std=card.normalization.std)
    graph = onnx.load(folder / GRAPH).graph
    arrays = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    try:
        fill_encoder(encoder, arrays, (x - statistics.mean) / statistics.std)
    except (KeyError, RuntimeError) as error:
        raise ModelFolderError(
            f"{folder.name}: {GRAPH} does not hold this encoder's weights: {error}"
        ) from error
    return statistics


def _check_encoder(folder: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise CheckpointError(f"{folder} holds a {found}, the recipe asks for a {wanted}.")


@torch.no_grad()
def fill_encoder(encoder: Encoder, arrays: dict[str, Tensor], x: Tensor) -> None:
    """Weights of a graph, whose batch normalisation is folded into its convolutions, into an encoder.

    The normalisation gets x's own mean and std of every channel as its statistics and, again, as its bias and
    weight: what it takes away it gives back, so that the encoder computes what the graph does, in evaluation
    exactly and in training on batches like x.

    x: (B, 1, F, T) normalised log-mels.
    """
    for block, first in enumerate(range(0, len(encoder.features), MODULES_PER_BLOCK)):
        convolution, normalisation, *rest = list(encoder.features)[first : first + MODULES_PER_BLOCK]
        assert isinstance(normalisation, nn.BatchNorm2d)
        _fill(convolution, arrays[f"conv{block + 1}.weight"], arrays[f"conv{block + 1}.bias"])
        y = convolution(x)
        var, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
        normalisation.running_mean, normalisation.running_var = mean.clone(), var.clone()
        normalisation.weight.copy_((var + normalisation.eps).sqrt())
        normalisation.bias.copy_(mean)
        x = nn.Sequential(*rest)(y)
    linears = [module for module in encoder.fc if isinstance(module, nn.Linear)]
    for number, linear in enumerate(linears):
        _fill(linear, arrays[f"linear{number + 1}.weight"].T, arrays[f"linear{number + 1}.bias"])


def _fill(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.load_state_dict({"weight": weight, "bias": bias})
