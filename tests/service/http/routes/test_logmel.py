"""Clips to pictures, over a socket."""

import base64
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.http.live import FIXTURES, check_error, noise, serving, wav


def test_the_log_mel_comes_as_a_picture(client: httpx.Client) -> None:
    sound = (FIXTURES / "birds_30s_16k_mono.opus").read_bytes()
    answer = client.post("/logmel?columns=100", content=sound).json()
    pixels = base64.b64decode(answer["pixels"])
    assert 50 <= answer["columns"] <= 100
    assert len(pixels) == answer["n_mels"] * answer["columns"]
    assert (min(pixels), max(pixels)) == (0, 255)
    assert answer["duration_s"] == pytest.approx(30.0)
    assert client.post("/logmel?columns=0", content=sound).json()["error"] == "bad_request"
    assert client.post("/logmel", content=b"no sound").json()["error"] == "audio_unreadable"


def test_a_model_that_takes_samples_embeds_and_has_no_picture(
    make_toy: Callable[..., Path], tmp_path: Path
) -> None:
    """A minute of sound, cut into windows while it is decoded; the page finds in the card what it must not
    ask for."""
    make_toy(tmp_path / "toy", frontend={"kind": "waveform", "hop_length": 16}, sample_rate=4000)
    with serving(tmp_path) as (client, _):
        assert client.get("/models").json()["models"][0]["card"]["frontend"]["kind"] == "waveform"
        minute = wav(noise(60.0))
        whole = client.post("/embed", content=minute).json()
        frames = client.post("/embed?frames=true", content=minute).json()["frames"]["embeddings"]
        assert len(frames) == 60 * 4000 // 16 // 4  # of 4 columns of 16 samples
        vectors = np.array(frames)
        np.testing.assert_allclose(
            whole["embedding"], vectors.mean(axis=0) + vectors.max(axis=0), rtol=1e-4, atol=1e-5
        )
        sentence = "the model `toy` takes samples, not a log-mel: there is no picture of it"
        assert check_error(client.post("/logmel", content=minute), 422, "bad_request") == sentence
        answer = client.post("/embed?logmel_columns=5", content=minute)
        assert check_error(answer, 422, "bad_request") == sentence
