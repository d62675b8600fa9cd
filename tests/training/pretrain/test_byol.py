"""BYOL's loss and target against float64 NumPy and hand-computed amounts."""

import numpy as np
import pytest
import torch

import encoders
from training.pretrain.byol import BYOL, byol_loss


@pytest.fixture
def model() -> BYOL:
    torch.manual_seed(0)
    return BYOL(encoders.build("byola-2022", n_mels=16, d=320), hidden_size=16, projection_size=8)


def views(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_two_minus_two_cosines_in_the_mean_over_the_batch() -> None:
    prediction, target = np.random.default_rng(0).normal(size=(2, 16, 256))
    norms = np.linalg.norm(prediction, axis=1) * np.linalg.norm(target, axis=1)
    expected = np.mean(2 - 2 * (prediction * target).sum(axis=1) / norms)
    loss = byol_loss(torch.from_numpy(prediction).float(), torch.from_numpy(target).float())
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_each_term_runs_from_0_for_the_same_direction_to_4_for_the_opposite() -> None:
    x = torch.randn(5, 256)
    assert float(byol_loss(x, 3 * x)) == pytest.approx(0, abs=1e-6)
    assert float(byol_loss(x, -x)) == pytest.approx(4, abs=1e-6)
    assert float(byol_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]))) == pytest.approx(2)


def test_a_step_adds_both_directions_with_the_views_exchanged(model: BYOL) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # so that a second pass gives the same
    a, b = views()
    step = model(a, b)
    p_a, p_b = (model.predictor(model.online(view)[1]) for view in (a, b))
    t_a, t_b = (model.target(view)[1] for view in (a, b))
    torch.testing.assert_close(step.loss, byol_loss(p_a, t_b) + byol_loss(p_b, t_a))
    torch.testing.assert_close(step.embedding, model.online(a)[0])
    assert 0 <= step.loss.item() <= 8


def test_the_embedding_that_is_projected_is_the_clips(model: BYOL) -> None:
    x = views()[0]
    model.eval()
    embedding, projection = model.online(x)
    frames = model.online.encoder(x)
    torch.testing.assert_close(embedding, frames.mean(dim=1) + frames.amax(dim=1))
    assert projection.shape == (4, 8)


def test_the_target_starts_as_the_online_network_and_gets_no_gradient(model: BYOL) -> None:
    for mine, theirs in zip(model.target.parameters(), model.online.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine is not theirs
    model(*views()).loss.backward()
    assert all(weights.grad is None and not weights.requires_grad for weights in model.target.parameters())
    assert all(weights.grad is not None for weights in model.online.parameters())
    assert all(weights.grad is not None for weights in model.predictor.parameters())


def test_the_target_moves_by_a_hundredth_of_the_distance(model: BYOL) -> None:
    with torch.no_grad():
        for weights in model.target.parameters():
            weights.fill_(1.0)
        for weights in model.online.parameters():
            weights.fill_(3.0)
    model.before_step()
    for weights in model.target.parameters():
        torch.testing.assert_close(weights, torch.full_like(weights, 0.99 * 1 + 0.01 * 3))
    assert all((weights == 3).all() for weights in model.online.parameters())


def test_the_targets_normalisation_statistics_are_its_own(model: BYOL) -> None:
    for x in model.target.buffers():
        x.zero_()
    for x in model.online.buffers():
        x.fill_(5)
    model.target_decay = 0.5
    model.before_step()
    assert all((x == 0).all() for x in model.target.buffers())


def test_the_target_runs_in_training_mode(model: BYOL) -> None:
    normalisation = model.target.encoder.features[1]
    before = normalisation.running_mean.clone()
    model(*views())
    assert model.target.training
    assert not torch.equal(normalisation.running_mean, before)
    assert int(normalisation.num_batches_tracked) == 2  # one pass for each view


@pytest.mark.parametrize(
    ("name", "d", "published"), [("byola-2020", 512, 5_868_160), ("byola-2022", 3072, 22_087_104)]
)
def test_the_trainable_parameters_are_as_many_as_published(name: str, d: int, published: int) -> None:
    model = BYOL(encoders.build(name, d=d))
    assert sum(weights.numel() for weights in model.parameters() if weights.requires_grad) == published
