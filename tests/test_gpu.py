"""What only a GPU can show: training and serving on CUDA agree with the CPU. Skipped where there is none."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from service.audio import decode
from service.model import Model
from service.windows import embed
from training.__main__ import main

FIXTURES = Path("tests/fixtures")

pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device for torch")
needs_onnxruntime_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="no onnxruntime-gpu with a CUDA device",
)


@needs_cuda
def test_a_run_on_cuda_trains_and_resumes(tmp_path):
    out = tmp_path / "run"
    arguments = [
        "pretrain",
        "--data",
        str(FIXTURES),
        "--recipe",
        "demo",
        "--out",
        str(out),
        "--device",
        "cuda",
    ]
    assert main([*arguments, "--stop-after", "6", "--log-every", "1"]) == 0
    assert main([*arguments, "--stop-after", "6", "--log-every", "1", "--resume"]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(np.isfinite(line["loss"]) for line in lines)


@needs_onnxruntime_gpu
def test_cuda_embeds_as_the_cpu_does():
    models = [
        Model.load(Path("models/byola"), device=device, precision="float32") for device in ("cuda", "cpu")
    ]
    for name in ("speech_16k_mono.flac", "footstep_44k1_mono_short.ogg", "birds_30s_16k_mono.opus"):
        samples = decode(FIXTURES / name, sample_rate=16_000).samples
        on_gpu, on_cpu = (embed(model.run, model.card, [model.logmel(samples)]).vector for model in models)
        # cuDNN may multiply in TF32: 10 bits of mantissa
        np.testing.assert_allclose(on_gpu, on_cpu, atol=2e-3 * np.abs(on_cpu).max())
