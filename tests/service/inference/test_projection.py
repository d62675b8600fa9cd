"""Vectors around a centre, against the same in float64 by whole matrices; and what folders are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.errors import BadRequest, ModelFolderError
from service.inference.card import PROJECTION_FILE, load_card, sha256_of, write_card
from service.inference.model import Model
from service.inference.projection import BLOCK_ROWS, Projection
from service.inference.selftest import SelfTest
from tests.service.conftest import write_toy_projection

D, K = 16, 8
VECTORS = np.random.default_rng(0).exponential(2, size=(BLOCK_ROWS + 50, D)).astype(np.float32)


@pytest.fixture(scope="module")
def model(projected_dir: Path) -> Model:
    return Model.load(projected_dir / "toy", device="cpu")


def reference(folder: Path, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rotated (n, K), unrotated (n, D)): Q' S Q (x - c) with a whole basis Q, all in float64."""
    file = {name: each.astype(np.float64) for name, each in load_file(folder / PROJECTION_FILE).items()}
    rotation = file["rotation"]
    beyond = np.linalg.svd(rotation)[2][K:]  # a basis of what the K axes leave
    basis = np.vstack([rotation, beyond])
    scales = np.diag([*file["scales"], *[file["rest"][0]] * (D - K)])
    centred = vectors.astype(np.float64) - file["centre"]
    whole = centred @ (basis.T @ scales @ basis).T
    return centred @ basis.T @ scales, whole / np.linalg.norm(whole, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 5, K])
def test_dimensions_are_the_first_rotated_numbers_at_unit_length(
    n: int, model: Model, projected_dir: Path
) -> None:
    rotated = reference(projected_dir / "toy", VECTORS)[0][:, :n]
    expected = rotated / np.linalg.norm(rotated, axis=1, keepdims=True)
    for normalize in (None, True):
        project = model.project_of(normalize=normalize, dimensions=n)
        assert project is not None
        np.testing.assert_allclose(project(VECTORS), expected, atol=1e-5)  # float32 against float64


@pytest.mark.parametrize("dimensions", [None, D])
def test_all_numbers_stay_where_they_are(dimensions: int | None, model: Model, projected_dir: Path) -> None:
    project = model.project_of(normalize=True, dimensions=dimensions)
    assert project is not None
    expected = reference(projected_dir / "toy", VECTORS)[1]
    # The rows of a rotation in float16 are orthonormal to 1e-3, which the reference's basis is not.
    np.testing.assert_allclose(project(VECTORS), expected, atol=3e-3)
    np.testing.assert_allclose(np.linalg.norm(project(VECTORS), axis=1), 1, atol=1e-6)


def test_without_whitening_the_whole_vector_is_the_centred_one() -> None:
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0][:K].astype(np.float32)
    centre = VECTORS.mean(axis=0)
    found = Projection(centre, axes, np.ones(K, np.float32), 1.0).whole(VECTORS)
    expected = (VECTORS - centre) / np.linalg.norm(VECTORS - centre, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_vector_in_the_centre_has_no_direction_and_is_no_nan(model: Model) -> None:
    assert model.projection is not None
    found = model.projection.whole(model.projection.centre[None])
    assert not found.any()


def test_nothing_asked_is_nothing_done(model: Model, toy_model: Model) -> None:
    for each in (model, toy_model):
        assert each.project_of() is None
        assert each.project_of(normalize=False) is None
        assert each.project_of(dimensions=D) is None


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"dimensions": K + 1}, "of `toy` there are 1 to 8 rotated numbers, or all 16"),
        ({"dimensions": D + 1}, "dimensions is 17"),
        ({"dimensions": 4, "normalize": False}, "normalize=false: fewer dimensions have unit length"),
    ],
)
def test_what_the_projection_cannot_do_is_said(asked: dict[str, int], sentence: str, model: Model) -> None:
    with pytest.raises(BadRequest, match=sentence):
        model.project_of(**asked)


def test_a_folder_without_one_says_how_to_have_it(toy_model: Model) -> None:
    with pytest.raises(BadRequest, match=r"normalize: the folder of `toy` has no projection.*fit-projection"):
        toy_model.project_of(normalize=True)
    with pytest.raises(BadRequest, match="dimensions: the folder"):
        toy_model.project_of(dimensions=4)


def damaged(name: str, value: np.ndarray | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / PROJECTION_FILE)
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
        save_file(tensors, folder / PROJECTION_FILE)
        card = load_card(folder)
        files = card.files | {PROJECTION_FILE: sha256_of(folder / PROJECTION_FILE)}
        write_card(folder, card.model_copy(update={"files": files}))

    return damage


def without_the_field(folder: Path) -> None:
    write_card(folder, load_card(folder).model_copy(update={"projection": None}))


def without_the_file(folder: Path) -> None:
    card = load_card(folder)
    files = {name: digest for name, digest in card.files.items() if name != PROJECTION_FILE}
    write_card(folder, card.model_copy(update={"files": files}))


def with_other_bytes(folder: Path) -> None:
    (folder / PROJECTION_FILE).write_bytes(b"nothing")


def with_more_axes_than_numbers(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    card["projection"]["components"] = 17
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damaged("centre", None), "holds no tensor `centre`"),
        (damaged("centre", np.full(D, np.nan, np.float32)), "`centre` holds NaN"),
        (damaged("rotation", np.eye(4, D, dtype=np.float16)), r"`rotation` is float32 \(4, 16\), not"),
        (damaged("rotation", 2 * np.eye(K, D, dtype=np.float16)), "rows of `rotation` must have unit"),
        (damaged("scales", np.zeros(K, np.float32)), "`scales` and `rest` must be positive"),
        (damaged("rest", np.array([-1], np.float32)), "`scales` and `rest` must be positive"),
        (without_the_field, "card.json has no field `projection`"),
        (without_the_file, "card.json has no file projection.safetensors"),
        (with_other_bytes, "projection.safetensors is not the file of the card"),
        (with_more_axes_than_numbers, "17 components are more than the 16 numbers"),
    ],
)
def test_a_folder_with_a_broken_one_is_refused(
    damage: Callable[[Path], None], sentence: str, make_toy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_toy_projection(make_toy(tmp_path / "toy"))
    damage(folder)
    with pytest.raises(ModelFolderError, match=sentence):
        Model.load(folder, device="cpu")


def test_the_self_test_covers_it(make_toy: Callable[..., Path], tmp_path: Path) -> None:
    """A centre that has moved since the card was written is noticed, though all files have their hashes."""
    folder = write_toy_projection(make_toy(tmp_path / "toy"))
    model = Model.load(folder, device="cpu")
    found = model.projected_fingerprint()
    assert found is not None
    test = SelfTest(expected={}, projected={"float32": found})
    write_card(folder, model.card.model_copy(update={"self_test": test}))
    assert Model.load(folder, device="cpu").probe() is None
    assert model.projection is not None
    damaged("centre", model.projection.centre + np.float32(2) * np.arange(D, dtype=np.float32))(folder)
    assert "its normalised embedding of the test signal lies" in str(Model.load(folder, device="cpu").probe())
