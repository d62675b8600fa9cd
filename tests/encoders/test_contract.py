"""Every encoder behind the one contract: nothing beyond a clip shows, and ONNX computes what PyTorch does."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
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
    ("msm-mae", {}),
    ("logmel-stats", {}),
]
NAMES = ["-".join([name, *map(str, parameters.get("fuse", ()))]) for name, parameters in CASES]

EXPORTED = ["byola-2020-1-2-3-4-5", "vggish-10-15", "cnn14", "ast-1", "msm-mae", "logmel-stats"]


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


def test_a_clip_in_a_padded_batch_is_the_clip_alone(encoder: AnyEncoder) -> None:
    contract = Contract(encoder, mean=MEAN, std=STD)
    clips = clips_of(encoder, [301, 97, encoder.windows.min_frames, 258])
    frames, total, highest, count = contract(padded(clips, 320), torch.tensor([c.shape[1] for c in clips]))
    for row, clip in enumerate(clips):
        alone = encoder((clip[None, None] - MEAN) / STD)
        n = int(count[row])
        assert n == alone.shape[1]
        torch.testing.assert_close(frames[row, :n], alone[0], rtol=1e-4, atol=1e-5)
        assert not frames[row, n:].any()
        torch.testing.assert_close(total[row], alone[0].sum(dim=0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(highest[row], alone[0].amax(dim=0), rtol=1e-4, atol=1e-5)
        pooled = total[row] / n + (highest[row] if encoder.pooling == "mean+max" else 0)
        torch.testing.assert_close(pooled, encoder.pool(alone)[0], rtol=1e-4, atol=1e-4)


# One of each kind: torch's exporter takes its time, and model_export tests what it writes.
@pytest.mark.parametrize(
    "encoder",
    [CASES[NAMES.index(name)] for name in EXPORTED],
    indirect=True,
    ids=EXPORTED,
)
def test_it_exports_to_onnx_for_any_batch_and_length(encoder: AnyEncoder, tmp_path: Path) -> None:
    contract = Contract(encoder, mean=MEAN, std=STD).eval()
    dynamic = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, on its own insides
        program = torch.onnx.export(
            contract,
            (torch.randn(2, encoder.n_mels, 300), torch.tensor([300, 200])),
            dynamic_shapes={"logmel": {0: dynamic, 2: dynamic}, "n_frames": {0: dynamic}},
            input_names=["logmel", "n_frames"],
            output_names=["frames", "sum", "max", "count"],
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    for lengths, length in (([101], 104), ([304, 250, 111], 304), ([959, 97], 960)):
        batch, n_frames = padded(clips_of(encoder, lengths), length), torch.tensor(lengths)
        found = session.run(None, {"logmel": batch.numpy(), "n_frames": n_frames.numpy()})
        for ours, expected in zip(found, contract(batch, n_frames), strict=True):
            scale = max(1.0, float(expected.abs().max()))
            np.testing.assert_allclose(ours / scale, expected.numpy() / scale, atol=1e-5)
