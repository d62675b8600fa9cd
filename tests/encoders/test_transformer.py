"""The transformer's block against timm's, with the same weights under the same names."""

from functools import partial

import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from encoders.transformer import Block

from .conftest import look_trained


def test_a_block_is_timms() -> None:
    reference = TimmBlock(768, 12, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    look_trained(reference)
    block = Block()
    block.load_state_dict(reference.state_dict())
    x = torch.randn(2, 7, 768)
    torch.testing.assert_close(block(x), reference(x), rtol=1e-5, atol=1e-5)


def test_a_block_has_the_parameters_of_a_vision_transformer_of_its_width() -> None:
    attention = 768 * 2304 + 2304 + 768 * 768 + 768
    mlp = 768 * 3072 + 3072 + 3072 * 768 + 768
    assert sum(weights.numel() for weights in Block().parameters()) == attention + mlp + 2 * 2 * 768


def test_a_token_that_is_not_valid_changes_no_other() -> None:
    block = Block(width=24, heads=3)
    look_trained(block)
    x = torch.randn(2, 5, 24)
    valid = torch.tensor([[True, True, True, False, False], [True] * 5])
    found = block(x, valid)
    torch.testing.assert_close(found[0, :3], block(x[:1, :3])[0])
    torch.testing.assert_close(found[1], block(x[1:])[0])
