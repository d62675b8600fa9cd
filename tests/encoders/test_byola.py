"""What both encoders of BYOL-A promise: pooling, masks, receptive field and the times of their frames."""

import pytest
import torch

import encoders
from encoders import Encoder

from .conftest import look_trained


@pytest.fixture(scope="module", params=["byola-2020", "byola-2022"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    parameters = {"byola-2020": {"d": 512}, "byola-2022": {"d": 1024 + 256, "mlp_hidden_d": 256}}
    encoder = encoders.build(request.param, **parameters[request.param])
    look_trained(encoder)
    return encoder


def test_the_first_frame_is_centred_on_those_it_comes_from(encoder: Encoder) -> None:
    assert encoder.first_frame_centre_ms == sum(10 * t for t in range(encoder.stride)) / encoder.stride
    assert encoder.frame_period_ms == 10 * encoder.stride


def test_a_clip_is_the_mean_plus_the_maximum_of_its_frames(encoder: Encoder) -> None:
    frames = encoder(torch.randn(3, 1, 64, 50))
    assert frames.shape == (3, 50 // encoder.stride, encoder.embedding_size)
    torch.testing.assert_close(encoder.pool(frames), frames.mean(dim=1) + frames.max(dim=1).values)
    assert (frames >= 0).all()


def test_what_lies_beyond_a_clip_changes_nothing(encoder: Encoder) -> None:
    lengths = [96, 61, encoder.stride, 39]
    clips = [torch.randn(1, 1, 64, length) for length in lengths]
    padded = torch.full((4, 1, 64, 96), torch.nan)
    padded[1:, :, :, 70:] = 1e6  # garbage of every kind
    for row, clip in enumerate(clips):
        padded[row, :, :, : clip.shape[-1]] = clip
    together = encoder(padded, torch.tensor(lengths))
    assert encoder.count(torch.tensor(lengths)).tolist() == [length // encoder.stride for length in lengths]
    for row, clip in enumerate(clips):
        alone = encoder(clip)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_an_output_frame_sees_stride_less_one_log_mel_frames_to_either_side(encoder: Encoder) -> None:
    stride, frame = encoder.stride, 3
    x = torch.randn(1, 1, 64, 7 * stride)
    changed = x.repeat(7 * stride, 1, 1, 1)
    changed[torch.arange(7 * stride), 0, :, torch.arange(7 * stride)] += 100  # each log-mel frame in turn
    differs = ((encoder(changed) - encoder(x))[:, frame].abs() > 1e-3).any(dim=1)  # more than rounding
    seen = list(range((frame - 1) * stride + 1, (frame + 2) * stride - 1))
    assert torch.nonzero(differs).flatten().tolist() == seen


def test_beyond_the_context_a_cut_leaves_no_trace(encoder: Encoder) -> None:
    cut, context = 6 * encoder.stride, encoder.context
    x = torch.randn(1, 1, 64, 2 * cut)
    whole = encoder(x)
    left, right = encoder(x[..., :cut]), encoder(x[..., cut:])
    atol = 1e-5 * float(whole.abs().max())  # sums in another order
    torch.testing.assert_close(left[:, :-context], whole[:, : 6 - context], rtol=0, atol=atol)
    torch.testing.assert_close(right[:, context:], whole[:, 6 + context :], rtol=0, atol=atol)
    # The context is no larger than needed.
    assert not torch.allclose(left[:, -1], whole[:, 5], rtol=0, atol=100 * atol)
