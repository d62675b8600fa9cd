"""The losses of distillation, by hand, and the network that makes them."""

import math

import pytest
import torch
from torch.nn import functional as F

import encoders
from training.pretrain.byol import BYOL
from training.pretrain.distil import Distil, Standardised, embedding_loss, tag_loss
from training.pretrain.recipe import DistilRecipe
from training.pretrain.teachers import Subject

SUBJECTS = (Subject("toy", "embedding", 5), Subject("toy/moods", "multilabel", 3))


def recipe(**changes: float) -> DistilRecipe:
    weights = {"embedding_weight": 1.0, "tag_weight": 0.5, "logit_weight": 0.0, "keep_weight": 0.0}
    numbers = {"byol_weight": 0.0, "statistics_crops": 8, "different_batches": 0}
    return DistilRecipe(**{**weights, **numbers, **changes})  # type: ignore[arg-type]


def student() -> encoders.Encoder:
    torch.manual_seed(0)
    return encoders.build("byola-2022", n_mels=16, d=320)


@pytest.fixture
def x() -> torch.Tensor:
    """(8, 1, 16, 32): normalised log-mels."""
    return torch.randn(8, 1, 16, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def answers() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [7 + 3 * torch.randn(8, 5, generator=generator), torch.rand(8, 3, generator=generator)]


# Losses


def test_the_embedding_loss_is_zero_agreeing_one_at_a_right_angle_and_two_opposite() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert [float(embedding_loss(a[i : i + 1], b[i : i + 1])) for i in range(3)] == [0.0, 1.0, 2.0]
    assert float(embedding_loss(a, b)) == 1.0


def test_the_tag_loss_is_least_at_the_teachers_scores_where_it_is_their_entropy() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.5]])
    entropy = -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in (0.9, 0.2, 0.5))
    assert float(tag_loss(scores.logit(), scores, "multilabel", 0.0)) == pytest.approx(entropy, abs=1e-5)
    for moved in (scores.logit() + 0.3, scores.logit() - 0.3):
        assert float(tag_loss(moved, scores, "multilabel", 0.0)) > entropy


def test_the_squared_error_of_the_logits_is_added_but_not_below_minus_twelve() -> None:
    scores = torch.sigmoid(torch.tensor([[1.0, -30.0]]))
    logits = torch.tensor([[3.0, -12.0]])
    without, with_error = (float(tag_loss(logits, scores, "multilabel", weight)) for weight in (0.0, 0.02))
    assert with_error - without == pytest.approx(0.02 * (3 - 1) ** 2, abs=1e-3)
    far = torch.tensor([[1.0, -50.0]])  # as absent as can be, for both
    assert float(tag_loss(far, scores, "multilabel", 1.0) - tag_loss(far, scores, "multilabel", 0.0)) < 1e-3


def test_one_label_is_taught_by_the_cross_entropy_of_the_softmax() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1]])
    expected = -(scores * F.log_softmax(torch.tensor([[1.0, 0.0, 2.0]]), dim=-1)).sum()
    found = tag_loss(torch.tensor([[1.0, 0.0, 2.0]]), scores, "multiclass", 0.02)
    torch.testing.assert_close(found, expected)


# Statistics


def test_numbers_are_standardised_by_what_was_measured() -> None:
    numbers = torch.tensor([2.0, -5.0]) + torch.tensor([3.0, 0.5]) * torch.randn(10_000, 2)
    standardised = Standardised(2)
    standardised.measure(numbers)
    found = standardised(numbers)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=0, correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_a_number_that_never_changes_is_zero_and_not_blown_up_later() -> None:
    numbers = torch.stack([torch.randn(1000), torch.full((1000,), 4.0)], dim=1)
    standardised = Standardised(2)
    standardised.measure(numbers)
    assert (standardised(numbers)[:, 1] == 0).all()
    assert 0 < float(standardised(torch.tensor([[0.0, 5.0]]))[0, 1]) < 30


# The network


def test_the_loss_is_the_weighted_sum_of_its_parts(x: torch.Tensor, answers: list[torch.Tensor]) -> None:
    weights = recipe(keep_weight=0.6)
    model = Distil(student(), SUBJECTS, weights)
    model.keep_start()
    model.measure([x], answers)
    step = model(x, answers)
    assert set(step.parts) == {"toy", "toy/moods", "start"}
    expected = step.parts["toy"] + 0.5 * step.parts["toy/moods"] + 0.6 * step.parts["start"]
    torch.testing.assert_close(step.loss, expected)
    assert step.embedding.shape == (8, 320)
    step.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


def test_tags_begin_at_what_the_teachers_say_in_the_mean(
    x: torch.Tensor, answers: list[torch.Tensor]
) -> None:
    model = Distil(student(), SUBJECTS, recipe())
    model.measure([x], answers)
    with torch.no_grad():
        logits = model.maps[1](model.standardise(model.online.embed(x)))
    torch.testing.assert_close(torch.sigmoid(logits), answers[1].mean(dim=0).expand(8, 3))


def test_the_start_stays_as_it_was_and_the_student_stays_near_it(
    x: torch.Tensor, answers: list[torch.Tensor]
) -> None:
    model = Distil(student(), SUBJECTS, recipe(keep_weight=1.0, embedding_weight=0.0, tag_weight=0.0))
    encoder = model.online.encoder
    with torch.no_grad():
        encoder.fc[0].bias += 0.5  # what --init fills in after the network is built
        served = encoder.eval().pool(encoder(x))
    encoder.train()
    model.keep_start()
    torch.testing.assert_close(model.start_of(x), served, rtol=0, atol=0)

    model.measure([x], answers)
    optimiser = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=1e-3)
    losses = []
    for _ in range(30):
        step = model(x, answers)
        optimiser.zero_grad()
        step.loss.backward()
        optimiser.step()
        losses.append(float(step.parts["start"]))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    torch.testing.assert_close(model.start_of(x), served, rtol=0, atol=0)
    assert not torch.equal(encoder.fc[0].bias, model.start.fc[0].bias)  # type: ignore[union-attr]


def test_byols_own_loss_is_added_and_its_target_moves(x: torch.Tensor, answers: list[torch.Tensor]) -> None:
    encoder = student()
    byol = BYOL(encoder, hidden_size=16, projection_size=4, target_decay=0.5)
    model = Distil(encoder, SUBJECTS, recipe(byol_weight=0.3), byol)
    model.measure([x], answers)
    step = model(x, answers, x, x.flip(-1))
    expected = step.parts["toy"] + 0.5 * step.parts["toy/moods"] + 0.3 * step.parts["byol"]
    torch.testing.assert_close(step.loss, expected)
    assert 0 < float(step.parts["byol"]) < 8
    with torch.no_grad():
        encoder.fc[0].bias += 1.0
    before = byol.target.encoder.fc[0].bias.clone()
    model.before_step()
    torch.testing.assert_close(byol.target.encoder.fc[0].bias, before + 0.5)
    assert model.online.encoder is byol.online.encoder is encoder
