"""The calls that EVAR makes of an audio representation, on a model folder."""

from types import SimpleNamespace

import pytest
import torch

import hear
from hear.evar import AR_Viola

CONFIG = SimpleNamespace(weight_file="models/byola", sample_rate=16_000)


@pytest.fixture(scope="module")
def representation() -> AR_Viola:
    return AR_Viola(CONFIG)


def test_a_batch_of_audio_becomes_the_vectors_and_frames_of_hear(representation: AR_Viola) -> None:
    audio = 2 * torch.rand(3, 16_000, generator=torch.Generator().manual_seed(0)) - 1
    vectors, frames = representation(audio), representation.encode_frames(audio)
    assert vectors.shape == (3, 3072)
    assert frames.shape == (3, 3072, 25)  # time last
    model = hear.load_model("models/byola")
    assert torch.equal(vectors, hear.get_scene_embeddings(audio, model))
    assert torch.equal(frames.mT, hear.get_timestamp_embeddings(audio, model)[0])


def test_the_sounds_of_a_task_do_not_change_an_embedding(representation: AR_Viola) -> None:
    audio = torch.ones(1, 16_000) / 8
    before = representation(audio)
    representation.precompute(torch.device("cpu"), [(torch.zeros(4, 16_000), torch.zeros(4))])
    assert torch.equal(representation(audio), before)


def test_sounds_of_another_rate_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 16000 Hz, not 44100: set sample_rate"):
        AR_Viola(SimpleNamespace(weight_file="models/byola", sample_rate=44_100))
