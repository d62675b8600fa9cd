import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import ModelFolderError
from service.inference.card import Card, load_card, sha256_of, write_card
from service.inference.model import Model

MakeToy = Callable[..., Path]


def change_card(folder: Path, **changes: object) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def accept_changed_file(folder: Path, name: str) -> None:
    """As an exporter would: the file is another one, and the card knows."""
    card = load_card(folder)
    write_card(folder, card.model_copy(update={"files": card.files | {name: sha256_of(folder / name)}}))


def test_a_card_is_written_and_read_back_the_same(toy_folder: Path, tmp_path: Path) -> None:
    card = load_card(toy_folder)
    write_card(tmp_path, card)
    assert load_card(tmp_path) == card
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def test_a_card_is_frozen(toy_folder: Path) -> None:
    card: Card = load_card(toy_folder)
    with pytest.raises(ValueError, match="frozen"):
        card.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"embedding_size": "many"}, "embedding_size: Input should be a valid integer"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"name": "../etc"}, "name: String should match"),
        ({"min_samples": 300}, "min_samples = 300 gives 2 log-mel frames"),
        (
            {"windows": {"kind": "exact", "stride": 4, "frames": 200, "min_frames": 96}},
            "gives 5 log-mel frames, fewer than the 96",
        ),
        ({"windows": {"kind": "exact", "stride": 4, "context": 1, "frames": 8}}, "keeps none of its output"),
        ({"files": {}}, "lists no frontend.safetensors"),
        ({"embedding_size": 17}, r"`scaler_mean` is float32 \(16,\), not float32 \(17,\)"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_with_a_sentence(
    change: dict[str, object], sentence: str, make_toy: MakeToy, tmp_path: Path
) -> None:
    folder = make_toy(tmp_path / "toy")
    change_card(folder, **change)
    with pytest.raises(ModelFolderError, match=sentence):
        Model.load(folder)


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"card.json cannot be read: No such file"):
        Model.load(tmp_path)


def test_a_file_that_is_missing_or_another_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    with (folder / "encoder.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelFolderError, match=r"encoder.onnx is not the file of the card: its SHA-256 is"):
        Model.load(folder)
    (folder / "encoder.onnx").unlink()
    with pytest.raises(ModelFolderError, match=r"encoder.onnx is missing"):
        Model.load(folder)


def test_a_card_cannot_point_outside_its_folder(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy")
    change_card(folder, files=load_card(folder).files | {"../secret": "0"})
    with pytest.raises(ModelFolderError, match="outside the folder"):
        Model.load(folder)
