"""How long audio may be cut: what each encoder says fits what the server makes of it."""

import pytest
import torch

import encoders
from service.inference.card import Windows

EVERY = [*encoders.ENCODERS, *encoders.FROZEN, "byola-2020-layered"]
FUSED = {"vggish": (10, 15), "cnn14": (3, 6), "ast": (5, 12), "efficientat": (9, 15), "byola-2022": (1, 4)}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("fused", [False, True])
def test_the_servers_card_accepts_an_encoders_windows(name: str, fused: bool) -> None:
    fuse = FUSED.get(name, ()) if fused else ()
    with torch.device("meta"):
        encoder = encoders.build_any(name, fuse=fuse)
    windows = encoder.windows
    card = Windows(
        kind=windows.kind,
        stride=windows.stride,
        context=windows.context,
        frames=windows.frames,
        min_frames=windows.min_frames,
    )
    assert card.frames % card.stride == 0
    assert windows.min_frames <= windows.frames
    # A frame for each stride, or, of an independent window, one for all of it.
    periods = [windows.stride] if windows.kind == "exact" else [windows.stride, windows.frames]
    assert encoder.frame_period_ms / 10 in periods


def test_an_unknown_encoder_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="byola-2020, byola-2022, byola-2020-layered, vggish"):
        encoders.build_any("wav2vec")
