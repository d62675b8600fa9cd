"""Every encoder behind the one contract: nothing beyond a clip shows."""

from typing import Any

import pytest
import torch

import encoders
from encoders import AnyEncoder
from encoders.contract import Contract

from .conftest import trained_looking

pytestmark = pytest.mark.usefixtures("narrow")

MEAN, STD = -5.0, 4.0

CASES: list[tuple[str, dict[str, Any]]] = [
    ("byola-2020", {"d": 64}),
    ("byola-2020", {"d": 64, "fuse": (1, 2, 3, 4, 5)}),
    ("byola-2022", {"d": 1088, "mlp_hidden_d": 64, "fuse": (1, 4)}),
    ("vggish", {}),
    ("vggish-4k", {}),
    ("vggish", {"fuse": (10, 15)}),
    ("cnn14", {}),
    ("cnn14", {"fuse": (3, 6)}),
    ("ast", {"fuse": (1,)}),
    ("efficientat", {"width": 0.2}),
    ("efficientat", {"width": 0.2, "fuse": (9, 15)}),
    ("efficientat", {"width": 0.2, "fuse": (7, 13, 16)}),
    ("msm-mae", {}),
    ("msm-mae", {"unit_frames": 32, "width": 24, "depth": 1, "heads": 3}),
    ("logmel-stats", {}),
]
NAMES = ["-".join([name, *map(str, parameters.get("fuse", ()))]) for name, parameters in CASES]


@pytest.fixture(params=CASES, ids=NAMES)
def encoder(request: pytest.FixtureRequest) -> AnyEncoder:
    name, parameters = request.param
    return trained_looking(encoders.build_any(name, **parameters))


def clips_of(encoder: AnyEncoder, lengths: list[int]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [MEAN + STD * torch.randn(encoder.n_mels, length) for length in lengths]


def padded(clips: list[torch.Tensor], length: int) -> torch.Tensor:
    """(B, n_mels, length), NaN and large numbers beyond each clip."""
    batch = torch.full((len(clips), len(clips[0]), length), torch.nan)
    batch[::2, :, -3:] = 1e9
    for row, clip in zip(batch, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    return batch


def test_clips_of_one_length_need_no_masks(encoder: AnyEncoder) -> None:
    encoder.batching = "equal"  # type: ignore[attr-defined]
    clips = torch.stack(clips_of(encoder, [301, 301]))
    lengths = torch.tensor([301, 301])
    frames, total, highest, count = Contract(encoder, mean=MEAN, std=STD)(clips, lengths)
    encoder.batching = "padded"  # type: ignore[attr-defined]
    masked = Contract(encoder, mean=MEAN, std=STD)(clips, lengths)
    n = int(count[0])
    assert torch.equal(count, masked[3])
    rounding = 1e-5 * max(1.0, float(frames.abs().max()))
    assert frames.shape[1] == n
    torch.testing.assert_close(frames, masked[0][:, :n], rtol=1e-4, atol=rounding)
    torch.testing.assert_close(total, masked[1], rtol=1e-4, atol=10 * rounding)
    torch.testing.assert_close(highest, masked[2], rtol=1e-4, atol=rounding)


def test_a_clip_in_a_padded_batch_is_the_clip_alone(encoder: AnyEncoder) -> None:
    encoder.batching = "padded"  # type: ignore[attr-defined]
    contract = Contract(encoder, mean=MEAN, std=STD)
    clips = clips_of(encoder, [301, 97, encoder.windows.min_frames, 258])
    frames, total, highest, count = contract(padded(clips, 320), torch.tensor([c.shape[1] for c in clips]))
    for row, clip in enumerate(clips):
        alone = encoder((clip[None, None] - MEAN) / STD)
        n = int(count[row])
        assert n == alone.shape[1]
        rounding = 1e-5 * max(1.0, float(alone.abs().max()))  # float32, added up in another order
        torch.testing.assert_close(frames[row, :n], alone[0], rtol=1e-4, atol=rounding)
        assert not frames[row, n:].any()
        torch.testing.assert_close(total[row], alone[0].sum(dim=0), rtol=1e-4, atol=10 * rounding)
        torch.testing.assert_close(highest[row], alone[0].amax(dim=0), rtol=1e-4, atol=rounding)
        pooled = total[row] / n + (highest[row] if encoder.pooling == "mean+max" else 0)
        torch.testing.assert_close(pooled, encoder.pool(alone)[0], rtol=1e-4, atol=10 * rounding)
