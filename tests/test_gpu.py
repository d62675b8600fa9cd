"""What only a GPU can show: training and serving on CUDA agree with the CPU. Skipped where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.clips import read_clips
from model_export.export import export
from service.inference.model import Model, padded_lengths
from service.inference.session import obstacle
from service.inference.windows import embed
from service.sound.audio import decode
from tests.model_export.conftest import ABOUT, random_trained
from training.__main__ import main

FIXTURES = Path("tests/fixtures")

pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device for torch")
needs_onnxruntime_gpu = pytest.mark.skipif(
    obstacle("cuda") is not None, reason=f"no CUDA device for onnxruntime: {obstacle('cuda')}"
)
needs_tensorrt = pytest.mark.skipif(
    obstacle("tensorrt") is not None, reason=f"no TensorRT for onnxruntime: {obstacle('tensorrt')}"
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


@needs_onnxruntime_gpu
def test_auto_takes_cuda_and_passes_the_self_test_of_the_card():
    model = Model.load(Path("models/byola"))
    assert (model.device, model.precision) == ("cuda", "float32")
    assert model.probe() is None


@needs_onnxruntime_gpu
def test_after_the_warm_up_every_length_runs_and_the_session_can_be_opened_again():
    model = Model.load(Path("models/byola"), device="cuda")
    model.warm_up(max_batch_frames=4096, max_batch_items=8)
    model._session.reopen()
    for length in padded_lengths(model.card.windows.frames):
        (output,) = model.run([np.zeros((64, length), dtype=np.float32)])
        assert output.count == length // 4


@needs_onnxruntime_gpu
def test_float16_on_cuda_points_where_float32_points(tmp_path):
    clips = read_clips(FIXTURES, sample_rate=16_000, at_most=6)
    export(random_trained("byola-2022"), tmp_path / "small", about=ABOUT, clips=clips, float16=True)
    half, full = (
        Model.load(tmp_path / "small", device="cuda", precision=precision)
        for precision in ("float16", "float32")
    )
    assert half.probe() is None
    for clip in clips:
        a, b = (embed(model.run, model.card, [model.logmel(clip)]).vector for model in (half, full))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


@needs_tensorrt
def test_tensorrt_embeds_as_the_cpu_does_and_keeps_its_engine(tmp_path):
    model = Model.load(Path("models/byola"), device="tensorrt", max_batch=4, tensorrt_cache=tmp_path)
    assert model.probe() is None
    assert list(tmp_path.iterdir()), "the engine"
