"""A projection that is measured on embeddings whose distribution is known, and on a toy model's real
sounds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from service.inference.card import PROJECTION_FILE, load_card
from service.inference.model import Model
from training.__main__ import main
from training.clips import DataError
from training.probe.projection import axes_of, balanced, median_cosine

D = 12


def embeddings(n: int, seed: int = 0) -> np.ndarray:
    """Correlated numbers, far from zero, as a network's are."""
    mixing = np.random.default_rng(9).normal(size=(D, D)) * np.geomspace(3, 0.1, D)
    vectors = 20 + np.random.default_rng(seed).normal(size=(n, D)) @ mixing.T
    return vectors.astype(np.float32)


def test_centre_and_axes_are_scikit_learns() -> None:
    vectors = embeddings(500)
    axes = axes_of(vectors, components=5)
    pca = PCA(5).fit(vectors.astype(np.float64))
    np.testing.assert_allclose(axes.centre, pca.mean_, rtol=1e-6)
    np.testing.assert_allclose(axes.variances, pca.explained_variance_ * 499 / 500, rtol=1e-4)
    signs = np.sign(np.einsum("kd,kd->k", axes.rotation, pca.components_))
    np.testing.assert_allclose(axes.rotation, pca.components_ * signs[:, None], atol=2e-3)  # of float16
    assert axes.rest == pytest.approx(pca.noise_variance_ * 499 / 500, rel=1e-3)


def test_unrelated_vectors_have_a_cosine_near_0_afterwards_and_near_1_before() -> None:
    """Measured on other vectors than those that are looked at."""
    axes = axes_of(embeddings(2000), components=6)
    others = embeddings(500, seed=1)
    assert median_cosine(others) > 0.9
    for shrinkage in (None, 0.01, 1.0):
        projection = axes.projection(shrinkage)
        assert abs(median_cosine(projection.whole(others))) < 0.1
        assert abs(median_cosine(projection.first(4, others))) < 0.1


def test_whitening_with_hardly_any_shrinkage_makes_all_axes_alike() -> None:
    axes = axes_of(embeddings(2000), components=6)
    whitened = axes.projection(1e-9)
    points = (embeddings(2000) - axes.centre) @ whitened.rotation.T * whitened.scales
    spread = points.std(axis=0)
    np.testing.assert_allclose(spread, spread[0], rtol=0.02)
    much = axes.projection(1e9)
    np.testing.assert_allclose(much.scales, 1, rtol=1e-3)  # as without whitening


def test_groups_count_the_same_whatever_their_size() -> None:
    vectors = np.concatenate([embeddings(900), embeddings(100, seed=1) + 5])
    weights = balanced(["a"] * 900 + ["b"] * 100)
    assert weights.sum() == pytest.approx(1)
    centre = axes_of(vectors, weights, components=2).centre
    np.testing.assert_allclose(centre, (vectors[:900].mean(0) + vectors[900:].mean(0)) / 2, rtol=1e-5)


def test_the_axes_do_not_depend_on_the_order_of_the_sounds() -> None:
    vectors = embeddings(300)
    a, b = axes_of(vectors, components=4), axes_of(vectors[::-1], components=4)
    np.testing.assert_allclose(a.rotation, b.rotation, atol=2e-3)


def test_too_few_sounds_are_said() -> None:
    with pytest.raises(DataError, match="8 components take more than 8 sounds, and there are 8"):
        axes_of(embeddings(8), components=8)


def test_the_command_writes_file_card_and_self_test(
    make_teacher: Callable[..., Path], sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_teacher(tmp_path / "toy")
    words = ["fit-projection", "--model", str(folder), "--data", str(sounds), "--components", "6"]
    assert main([*words, "--shrinkage", "0.5", "--about", "The fixtures."]) == 0
    model = Model.load(folder, device="cpu")
    facts = model.card.projection
    assert facts is not None
    assert (facts.components, facts.shrinkage, facts.data) == (6, 0.5, "The fixtures.")
    assert facts.clips == len(list(sounds.iterdir()))
    assert facts.hours > 0
    assert facts.median_cosine["after"] < facts.median_cosine["before"]
    assert model.probe() is None
    project = model.project_of(dimensions=6)
    assert project is not None
    assert project(model.probe_vector()[None]).shape == (1, 6)
    assert f"{PROJECTION_FILE}: 6 of 16 numbers" in capsys.readouterr().out
    assert main(words) == 0  # a second time it is replaced
    assert load_card(folder).projection != facts


def test_what_is_wrong_is_said(
    make_teacher: Callable[..., Path], sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_teacher(tmp_path / "toy")
    words = ["fit-projection", "--model", str(folder), "--data", str(sounds)]
    assert main([*words, "--balance", "label"]) == 1
    assert main([*words, "--components", "16"]) == 0  # as many as there are numbers
    assert main(["retrieval", *words[1:], "--task", "none"]) == 1
    said = capsys.readouterr().err
    assert "--balance names a column: it takes a CSV." in said
    assert load_card(folder).projection is not None
