"""COLA's similarity and loss by hand and against float64 NumPy, and what it does with two views."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import encoders
from training.pretrain.cola import COLA, SIMILARITY_STD, cola_loss, similarity


@pytest.fixture
def model() -> COLA:
    torch.manual_seed(0)
    return COLA(encoders.build("byola-2022", n_mels=16, d=320), projection_size=8)


def views(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def without_dropout(model: COLA) -> COLA:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # so that a second pass gives the same
    return model


# Similarity and loss


def test_row_and_column_of_the_similarity_are_anchor_and_positive() -> None:
    anchor = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    positive = torch.tensor([[1.0, 1.0], [3.0, 0.0]])
    weight = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    # a_0 W = (1, 10) and a_1 W = (200, 2000), each times (1, 1) and (3, 0)
    assert similarity(anchor, positive, weight).tolist() == [[11.0, 3.0], [2200.0, 600.0]]


def test_the_loss_is_the_cross_entropy_of_each_anchor_with_its_own_positive() -> None:
    random = np.random.default_rng(0)
    anchor, positive = random.normal(size=(2, 16, 32))
    weight = random.normal(scale=0.1, size=(32, 32))
    logits = anchor @ weight @ positive.T
    expected = np.mean([logsumexp(row) - row[i] for i, row in enumerate(logits)])
    tensors = (torch.from_numpy(each).float() for each in (anchor, positive, weight))
    assert float(cola_loss(similarity(*tensors))) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_ln_b_when_nothing_is_told_and_0_when_all_is() -> None:
    assert float(cola_loss(torch.zeros(8, 8))) == pytest.approx(np.log(8))
    assert float(cola_loss(100 * torch.eye(8))) == pytest.approx(0, abs=1e-6)


def test_only_the_positives_are_to_be_told_apart_not_the_anchors() -> None:
    """The published loss is a softmax over each row: exchanging the views gives another one."""
    logits = torch.tensor([[2.0, 0.0], [5.0, 1.0]])
    by_hand = np.mean([np.log1p(np.exp(0.0 - 2.0)), np.log1p(np.exp(5.0 - 1.0))])
    assert float(cola_loss(logits)) == pytest.approx(by_hand)
    assert float(cola_loss(logits.T)) != pytest.approx(by_hand)


def test_the_similarity_is_computed_in_float32_where_the_networks_are_not() -> None:
    a, b, weight = torch.rand(3, 4, 4) + 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity(a.bfloat16(), b.bfloat16(), weight)
        assert found.dtype == torch.float32
    expected = a.bfloat16().double() @ weight.double() @ b.bfloat16().double().T
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


# The network


def test_the_projection_is_linear_then_normalised_then_tanh(model: COLA) -> None:
    model.eval()
    x = views()[0]
    embedding, projection = model.online(x)
    frames = model.online.encoder(x)
    torch.testing.assert_close(embedding, frames.mean(dim=1) + frames.amax(dim=1))  # the clip's vector
    linear = model.online.projector[0]
    y = (embedding @ linear.weight.T + linear.bias).detach().double().numpy()
    y = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(projection.detach().numpy(), np.tanh(y), atol=1e-5)


def test_a_step_is_the_loss_of_the_first_view_as_anchor(model: COLA) -> None:
    without_dropout(model)
    a, b = views()
    step = model(a, b)
    embedding, projection = model.online(torch.cat([a, b]))
    expected = cola_loss(similarity(projection[:4], projection[4:], model.similarity))
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(step.embedding, embedding[:4])
    assert not step.embedding.requires_grad


def test_both_views_share_the_statistics_of_the_batch(model: COLA) -> None:
    model(*views())
    assert int(model.online.encoder.features[1].num_batches_tracked) == 1


def test_everything_learns_and_nothing_else_moves(model: COLA) -> None:
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    model(*views()).loss.backward()
    model.before_step()
    for name, weights in model.named_parameters():
        assert weights.requires_grad
        assert weights.grad is not None
        assert torch.isfinite(weights.grad).all()
        assert torch.equal(weights, before[name])
    assert model.similarity.grad is not None
    assert model.similarity.grad.norm() > 0


def test_the_similarity_starts_normal_as_published(model: COLA) -> None:
    torch.manual_seed(0)
    weight = COLA(encoders.build("byola-2022", n_mels=16, d=320)).similarity.detach()
    assert weight.shape == (512, 512)
    assert float(weight.std()) == pytest.approx(SIMILARITY_STD, rel=0.01)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)


def test_a_few_steps_tell_the_sounds_apart(model: COLA) -> None:
    """Each clip is a band of its own, heard twice with other noise: the loss falls from ln 4 to half."""
    without_dropout(model)
    clips = torch.zeros(4, 1, 16, 16)
    for band in range(4):
        clips[band, :, 4 * band : 4 * band + 4] = 3.0
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        a, b = clips + 0.3 * torch.randn(2, 4, 1, 16, 16, generator=generator)
        loss = model(a, b).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.5 * np.log(4)
