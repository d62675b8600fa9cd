import pytest
import torch
from torch import nn

import encoders
from training.pretrain.dropout import QuickDropout, quicken_dropout

N = 200_003  # no multiple of four


def dropped(p: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return QuickDropout(p)(torch.ones(N))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.99])
def test_it_drops_the_share_that_it_is_told_and_scales_the_rest(p):
    x = dropped(p)
    share = (x == 0).double().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / N) ** 0.5 + 1e-5)
    assert x[x != 0].unique().tolist() == [pytest.approx(1 / (1 - p))]


def test_at_one_nothing_is_left():
    assert not dropped(1.0).any()


def test_neighbours_are_dropped_independently():
    zero = (dropped(0.3) == 0).double()
    for distance in (1, 2, 3, 4, 8):  # four elements share one draw
        both = (zero[:-distance] * zero[distance:]).mean().item()
        assert both == pytest.approx(0.09, abs=0.004)


def test_the_generator_decides_alone():
    assert torch.equal(dropped(0.3, seed=1), dropped(0.3, seed=1))
    assert not torch.equal(dropped(0.3, seed=1), dropped(0.3, seed=2))


def test_the_gradient_passes_where_the_value_did():
    x = torch.ones(1000, dtype=torch.bfloat16, requires_grad=True)
    y = QuickDropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y)


def test_in_eval_mode_nothing_changes():
    x = torch.randn(100)
    assert torch.equal(QuickDropout(0.3).eval()(x), x)


def test_an_encoder_keeps_its_weights_and_their_names():
    encoder = encoders.build("byola-2022", d=3072)
    before = encoder.state_dict()
    quicken_dropout(encoder)
    assert [module.p for module in encoder.modules() if isinstance(module, QuickDropout)] == [0.3]
    assert encoder.state_dict().keys() == before.keys()
    assert not any(type(module) is nn.Dropout for module in encoder.modules())
