"""A run that begins with weights that are there: those of another run, or of a model folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.frontend import frontend_of
from service.inference.model import Model
from training.clips import Clips
from training.logmel import LogMel
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.distributed import World
from training.pretrain.loop import pretrain
from training.pretrain.recipe import ColaRecipe, Recipe, load_recipe
from training.pretrain.run import Options, new_run
from training.pretrain.sampler import Plan, crops, plan_of
from training.pretrain.warm_start import start_from

CPU = World(rank=0, size=1, device=torch.device("cpu"))
SHIPPED = Path(__file__).parents[3] / "models" / "byola"


@pytest.fixture(scope="module")
def logmel() -> LogMel:
    return LogMel(frontend_of(64))


@pytest.fixture(scope="module")
def plan(clips: Clips) -> Plan:
    """Of the recipe that the shipped model's encoder fits."""
    recipe = load_recipe("byola-2022", ["byol.hidden_size=32", "optimisation.batch_size=4"])
    return plan_of(clips, recipe, CPU)


def test_a_served_model_becomes_the_encoder_that_it_was_made_of(plan: Plan, logmel: LogMel) -> None:
    x = crops(plan, logmel, 16)
    run = new_run(plan.recipe, CPU.device)
    statistics, description = start_from(SHIPPED, run.model, plan.recipe, x)
    served = Model.load(SHIPPED, device="cpu", precision="float32")
    assert statistics.mean == served.card.normalization.mean
    assert served.card.files["encoder.onnx"] in description

    encoder = run.model.online.encoder.eval()
    for sound in x[:4, 0].numpy():
        (expected,) = served.run([sound])
        with torch.no_grad():
            found = encoder((torch.from_numpy(sound)[None, None] - statistics.mean) / statistics.std)[0]
        np.testing.assert_allclose(found.sum(0), expected.sum, rtol=1e-4, atol=1e-3)


def test_unfolded_normalisation_changes_nothing_in_training_on_the_same_sounds(
    plan: Plan, logmel: LogMel
) -> None:
    x = crops(plan, logmel, 16)
    run = new_run(plan.recipe, CPU.device)
    statistics, _ = start_from(SHIPPED, run.model, plan.recipe, x)
    features = run.model.online.encoder.features
    normalised = (x - statistics.mean) / statistics.std
    with torch.no_grad():
        served, trained = features.eval()(normalised), features.train()(normalised)
    # torch's sums over a batch in float32 are that exact; the features reach 50
    torch.testing.assert_close(served, trained, rtol=0, atol=1e-3 * float(served.max()))


def test_a_run_goes_on_from_another_runs_whole_model(
    finished: Path, clips: Clips, recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "more"
    options = Options(out, precision="float32", init=finished, stop_after_steps=1)
    pretrain(clips, recipe, options, CPU)
    before, after = checkpoint.load(finished), checkpoint.load(out)
    assert after["statistics"] == before["statistics"]
    assert after["step"] == 1
    for key, value in before["model"].items():
        if value.is_floating_point() and not key.endswith(("running_mean", "running_var")):
            # one step of warm-up moves a weight by less than the learning rate
            assert (after["model"][key] - value).abs().max() < 1e-3, key
    said = json.loads((out / "data.json").read_text())["started_from"]
    assert said == f"a run of {before['segments_seen']} segments"


def test_cola_begins_with_a_served_model_too(clips: Clips, logmel: LogMel) -> None:
    recipe = load_recipe("cola", ["cola.projection_size=8", "optimisation.batch_size=4"])
    x = crops(plan_of(clips, recipe, CPU), logmel, 4)
    run = new_run(recipe, CPU.device)
    statistics, _ = start_from(SHIPPED, run.model, recipe, x)
    served = Model.load(SHIPPED, device="cpu", precision="float32")
    (expected,) = served.run([x[0, 0].numpy()])
    with torch.no_grad():
        found = run.model.online.encoder.eval()((x[:1] - statistics.mean) / statistics.std)[0]
    np.testing.assert_allclose(found.sum(0), expected.sum, rtol=1e-4, atol=1e-3)


def test_a_run_of_another_method_is_refused(
    finished: Path, recipe: Recipe, plan: Plan, logmel: LogMel
) -> None:
    cola = replace(recipe, byol=None, cola=ColaRecipe(projection_size=8))
    run = new_run(cola, CPU.device)
    with pytest.raises(CheckpointError, match=r"a run of \[byol\], the recipe's method is \[cola\]: export"):
        start_from(finished, run.model, cola, crops(plan, logmel, 4))


def test_a_folder_that_is_neither_run_nor_model_is_refused(
    plan: Plan, logmel: LogMel, tmp_path: Path
) -> None:
    run = new_run(plan.recipe, CPU.device)
    with pytest.raises(CheckpointError, match=r"neither a checkpoint\.pt nor a card\.json"):
        start_from(tmp_path, run.model, plan.recipe, crops(plan, logmel, 4))


def test_a_model_of_another_encoder_is_refused(clips: Clips, logmel: LogMel) -> None:
    recipe = load_recipe("byola-2020", ["byol.hidden_size=32", "optimisation.batch_size=4"])
    plan = plan_of(clips, recipe, CPU)
    run = new_run(recipe, CPU.device)
    with pytest.raises(CheckpointError, match="holds a byola-2022, the recipe asks for a byola-2020"):
        start_from(SHIPPED, run.model, recipe, crops(plan, logmel, 4))


def test_a_run_of_another_size_is_refused(finished: Path, plan: Plan, logmel: LogMel) -> None:
    run = new_run(plan.recipe, CPU.device)
    with pytest.raises(CheckpointError, match="other sizes than the recipe's"):
        start_from(finished, run.model, plan.recipe, crops(plan, logmel, 4))
