"""The statistics of a log-mel, on numbers one can check in the head."""

import torch

from encoders.logmel_stats import LogMelStats


def test_a_clip_is_the_mean_deviation_and_maximum_of_each_band() -> None:
    x = torch.tensor([[[[1.0, 3.0], [-5.0, -5.0]]]])  # two bands, two frames
    assert LogMelStats(n_mels=2)(x).tolist() == [[[2, -5, 1, 0, 3, -5]]]


def test_the_statistics_are_those_of_numpy() -> None:
    x = torch.randn(3, 1, 64, 50)
    stats = LogMelStats()
    bands = x[:, 0].numpy()
    found = stats.pool(stats(x)).reshape(3, 3, 64).numpy()
    for k, expected in enumerate((bands.mean(axis=2), bands.std(axis=2), bands.max(axis=2))):
        torch.testing.assert_close(torch.from_numpy(found[:, k]), torch.from_numpy(expected))


def test_nothing_is_trained() -> None:
    assert list(LogMelStats().parameters()) == []
    assert LogMelStats().embedding_size == 192
